"""`agent_app`: the assistant as an app of the server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from glm4.agent.attachments import attached
from glm4.agent.file_store import FolderFileStore
from glm4.agent.files import StoredFile
from glm4.agent.sessions import SessionStore, new_id
from glm4.agent.tool import Sources
from glm4.api.agent.request import APPROVAL_FIELDS, CHANGE_FIELDS, PROMPT_FIELDS, TURN_FIELDS
from glm4.api.schemas import components
from glm4.chat.messages import Message
from glm4.llm import LLM
from glm4.server.agent import conversations as saved
from glm4.server.agent import endpoints as turns
from glm4.server.agent import prompts
from glm4.server.agent.config import AgentConfig
from glm4.server.agent.documents import Documents
from glm4.server.agent.file_operations import FILE_OPERATIONS
from glm4.server.agent.reading import Readers
from glm4.server.agent.state import AgentState
from glm4.server.agent.store import ThreadedSessionStore
from glm4.server.agent.tool_pool import ToolPool
from glm4.server.agent.turns import Turns
from glm4.server.app_parts import App
from glm4.server.operations import GENERATING, READING, TEXT, Operation

_TURN = {"turn_id": "the id of a turn"}
_CONVERSATION = {"conversation_id": "the id of a conversation"}
_PROMPT = {"prompt_id": "the id of a saved prompt"}
_ASK = {"content": "What is 12345 times 6789?", "tools": []}

OPERATIONS: tuple[Operation, ...] = (
    Operation("post", "/v1/agent/chat", turns.chat, "Assistant", "Ask the assistant, and follow its turn",
        "向助手提问，并跟随这一轮", "AgentEvent", TURN_FIELDS, ("content",), _ASK, events="AgentEvent",
        errors=GENERATING),
    Operation("post", "/v1/agent/turns", turns.start_turn, "Assistant", "Start a turn; it goes on by itself",
        "开始一轮，连接断开也会继续", "AgentTurn", TURN_FIELDS, (), _ASK, errors=GENERATING),
    Operation("get", "/v1/agent/turns", turns.list_turns, "Assistant", "The turns that run", "正在进行的轮次",
        "AgentTurns"),
    Operation("get", "/v1/agent/turns/{turn_id}/events", turns.follow_turn, "Assistant",
        "The events of a turn, from a number on", "一轮的事件，可从某个序号续读", "AgentEvent", events="AgentEvent",
        errors=(400, 404), parameters={**_TURN, "after": "number of the last event that is known"}),
    Operation("post", "/v1/agent/turns/{turn_id}/stop", turns.stop_turn, "Assistant", "End a turn", "结束一轮",
        "AgentDone", errors=(404,), parameters=_TURN),
    Operation("post", "/v1/agent/turns/{turn_id}/approvals/{call_id}", turns.approve, "Assistant",
        "Say whether a tool call may run", "批准或拒绝一次工具调用", "AgentDone", APPROVAL_FIELDS, ("decision",),
        {"decision": "once"}, errors=READING, parameters={**_TURN, "call_id": "the id of a call"}),
    Operation("get", "/v1/agent/tools", turns.list_tools, "Assistant", "The tools that turns may use", "可用的工具",
        "AgentTools"),
    Operation("get", "/v1/agent/conversations", saved.list_conversations, "Assistant", "Saved conversations",
        "已保存的对话", "AgentConversations", errors=(400, 404),
        parameters={"limit": "how many", "after": "the last one of the page before"}),
    Operation("post", "/v1/agent/conversations", saved.import_conversation, "Assistant",
        "Keep exported conversations, ours or OpenAI's", "导入对话（本程序或 OpenAI 导出的）", "AgentImport",
        errors=READING),
    Operation("get", "/v1/agent/conversations/{conversation_id}", saved.conversation, "Assistant",
        "A conversation with its messages", "一段对话及其消息", "AgentConversationWithMessages", errors=(404,),
        parameters=_CONVERSATION),
    Operation("patch", "/v1/agent/conversations/{conversation_id}", saved.change_conversation, "Assistant",
        "Change a conversation's title, options or branch", "修改对话的标题、选项或分支", "AgentConversation",
        CHANGE_FIELDS, (), {"title": "Sums"}, errors=READING, parameters=_CONVERSATION),
    Operation("delete", "/v1/agent/conversations/{conversation_id}", saved.delete_conversation, "Assistant",
        "Delete a conversation", "删除对话", "AgentDone", errors=(404,), parameters=_CONVERSATION),
    Operation("get", "/v1/agent/conversations/{conversation_id}/export", saved.export_conversation, "Assistant",
        "A conversation as JSON, Markdown or HTML", "把对话导出为 JSON、Markdown 或 HTML", "AgentExport",
        errors=(400, 404), parameters={**_CONVERSATION, "format": "json, markdown or html"}),
    Operation("get", "/v1/agent/search", saved.search, "Assistant", "Find messages by their text", "按文字查找消息",
        "AgentFound", parameters={"q": "text to find"}),
    Operation("post", "/v1/agent/files", saved.upload_file, "Assistant", "Keep a file for a later turn",
        "上传文件，供之后的轮次使用", "AgentFile", errors=READING, parameters={"name": "what it is called"}),
    Operation("get", "/v1/agent/files/{sha256}", saved.download_file, "Assistant", "A file", "下载文件", TEXT,
        errors=(404,), parameters={"sha256": "what the file is found by", "download": "1 has browsers save it"}),
    Operation("get", "/v1/agent/prompts", prompts.list_prompts, "Assistant", "Saved system prompts",
        "已保存的系统提示词", "AgentPrompts"),
    Operation("post", "/v1/agent/prompts", prompts.add_prompt, "Assistant", "Save a system prompt", "保存系统提示词",
        "AgentPrompt", PROMPT_FIELDS, ("name", "text"), {"name": "Brief", "text": "Answer in one sentence."},
        errors=READING),
    Operation("put", "/v1/agent/prompts/{prompt_id}", prompts.change_prompt, "Assistant", "Change a saved prompt",
        "修改已保存的提示词", "AgentPrompt", PROMPT_FIELDS, (), {"text": "Answer in two sentences."}, errors=READING,
        parameters=_PROMPT),
    Operation("delete", "/v1/agent/prompts/{prompt_id}", prompts.delete_prompt, "Assistant", "Delete a saved prompt",
        "删除已保存的提示词", "AgentDone", errors=(404,), parameters=_PROMPT),
    *FILE_OPERATIONS,
)  # fmt: skip


def agent_app(config: AgentConfig) -> App:
    """The assistant: turns, conversations, files.

    Raises:
        StoreError: the folder of conversations cannot be used.
    """
    # Made when the first file comes.
    folder = config.sessions or Path(tempfile.gettempdir()) / f"glm4-files-{new_id()}"
    path = None if config.sessions is None else folder / "conversations.sqlite"
    store = ThreadedSessionStore(partial(SessionStore, path), now=path is not None)
    files = FolderFileStore(folder / "files", max_file_bytes=config.max_upload_bytes, quota=config.max_files_bytes)
    readers = Readers(config.max_reading)
    tools = ToolPool(config, readers)

    async def attach(
        message: Message, given: Sequence[StoredFile], llm: LLM, names: Sequence[str], sources: Sources
    ) -> Message:
        if not given:
            return message
        return await readers.run(partial(attached, message, given, files, llm, names, _load, sources))

    made = Turns(config, store, files, tools, attach)

    async def start(app: Starlette) -> None:
        await store.end_interrupted()

    async def stop(app: Starlette) -> None:
        await made.close()
        await tools.close()
        readers.close()
        await store.close()
        if config.sessions is None:
            shutil.rmtree(folder, ignore_errors=True)

    return App(
        "assistant", operations=OPERATIONS, schemas={**components("agent"), **components("files")},
        state=AgentState(config, store, files, tools, made, Documents(files, readers)), start=start, stop=stop,
    )  # fmt: skip


def _load(data: bytes, name: str):  # type: ignore[no-untyped-def]
    from glm4.documents.loading import load_document

    return load_document(data, name)
