"""Conversations as OpenAI's data export has them, written by hand."""

from __future__ import annotations

from typing import Any


def node(name: str, parent: str | None, message: dict[str, Any] | None, *children: str) -> dict[str, Any]:
    return {"id": name, "parent": parent, "message": message, "children": list(children)}


def message(
    role: str, content: dict[str, Any] | str, time: float | None = None, *, name: str | None = None,
    recipient: str = "all", **metadata: Any,
) -> dict[str, Any]:  # fmt: skip
    if isinstance(content, str):
        content = {"content_type": "text", "parts": [content]}
    return {
        "id": f"m-{time}", "author": {"role": role, "name": name, "metadata": {}}, "create_time": time,
        "update_time": None, "content": content, "status": "finished_successfully", "end_turn": True, "weight": 1.0,
        "metadata": metadata, "recipient": recipient, "channel": None,
    }  # fmt: skip


def conversation(nodes: list[dict[str, Any]], current: str | None, **more: Any) -> dict[str, Any]:
    return {
        "title": "Trip to 杭州", "create_time": 1700000000.5, "update_time": 1700000900.25,
        "mapping": {one["id"]: one for one in nodes}, "moderation_results": [], "current_node": current,
        "plugin_ids": None, "conversation_id": "c-1", "default_model_slug": "gpt-4o", "is_archived": False,
        "id": "c-1", **more,
    }  # fmt: skip


HIDDEN: Any = {"is_visually_hidden_from_conversation": True}


def trip() -> dict[str, Any]:
    """An edited question, an answer that was regenerated, code with its output, a page that was read, a picture."""
    instructions = {"content_type": "user_editable_context", "user_profile": "secret", "user_instructions": "secret"}
    photo = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://file-1", "size_bytes": 9}
    return conversation(
        [
            node("root", None, None, "sys"),
            node("sys", "root", message("system", "", None, **HIDDEN), "ctx"),
            node("ctx", "sys", message("user", instructions, None, **HIDDEN), "q1", "q2"),
            node("q1", "ctx", message("user", "Where is it?", 1700000001.0), "a1"),
            node("a1", "q1", message("assistant", "In Zhejiang.", 1700000002.0, model_slug="gpt-4o-mini")),
            node("q2", "ctx", message("user", {"content_type": "multimodal_text", "parts": [photo, "How far?"]},
                 1700000003.0, attachments=[{"name": "map.pdf", "id": "file-2"}]), "t2", "b2"),
            node("t2", "q2", message("assistant", {"content_type": "thoughts", "thoughts":
                 [{"summary": "Distance", "content": "I compute."}]}, 1700000003.5), "c2"),
            node("c2", "t2", message("assistant", {"content_type": "code", "language": "python",
                 "text": "print(6 * 7)"}, 1700000004.0, recipient="python"), "o2"),
            node("o2", "c2", message("tool", {"content_type": "execution_output", "text": "42"}, 1700000005.0,
                 name="python"), "w2"),
            node("w2", "o2", message("tool", {"content_type": "tether_quote", "url": "https://x.example/",
                 "domain": "x", "text": "It is near.", "title": "Near"}, 1700000005.5, name="browser"), "f2"),
            node("f2", "w2", message("assistant", "It is \ue200cite\ue202turn0search0\ue20142 km.", 1700000006.0,
                 model_slug="gpt-4o")),
            node("b2", "q2", message("assistant", "Far.", 1700000007.0, model_slug="gpt-4o")),
        ],
        "f2",
    )  # fmt: skip
