"""`ThreadedSessionStore`: `SessionStore` for the event loop."""

from __future__ import annotations

from glm4.agent import prompts, uploads, vector_stores
from glm4.agent.session_export import as_document, as_markdown, from_document
from glm4.agent.sessions import SessionStore
from glm4.server.stores.thread import OwnThread, on_thread


class ThreadedSessionStore(OwnThread[SessionStore]):
    """A `SessionStore` on a thread of its own."""

    end_interrupted = on_thread(SessionStore.end_interrupted)
    create = on_thread(SessionStore.create)
    get = on_thread(SessionStore.get)
    sessions = on_thread(SessionStore.sessions)
    change = on_thread(SessionStore.change)
    delete = on_thread(SessionStore.delete)
    add = on_thread(SessionStore.add)
    write = on_thread(SessionStore.write)
    messages = on_thread(SessionStore.messages)
    branch = on_thread(SessionStore.branch)
    search = on_thread(SessionStore.search)
    add_file = on_thread(SessionStore.add_file)
    files = on_thread(SessionStore.files)
    file = on_thread(SessionStore.file)
    as_document = on_thread(as_document)
    as_markdown = on_thread(as_markdown)
    from_document = on_thread(from_document)

    list_prompts = on_thread(prompts.prompts)
    add_prompt = on_thread(prompts.add_prompt)
    change_prompt = on_thread(prompts.change_prompt)
    delete_prompt = on_thread(prompts.delete_prompt)

    add_upload = on_thread(uploads.add_upload)
    find_upload = on_thread(uploads.find_upload)
    list_uploads = on_thread(uploads.uploads)
    delete_upload = on_thread(uploads.delete_upload)
    has_content = on_thread(uploads.has_content)
    create_store = on_thread(vector_stores.create_store)
    find_store = on_thread(vector_stores.find_store)
    list_stores = on_thread(vector_stores.stores)
    change_store = on_thread(vector_stores.change_store)
    delete_store = on_thread(vector_stores.delete_store)
    add_member = on_thread(vector_stores.add_member)
    remove_member = on_thread(vector_stores.remove_member)
    members = on_thread(vector_stores.members)
    find_member = on_thread(vector_stores.find_member)
