"""`ThreadedSessionStore`: `SessionStore` for the event loop."""

from __future__ import annotations

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
