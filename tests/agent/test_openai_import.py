"""OpenAI's data export as conversations of ours; hostile ones are refused whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from openai_exports import conversation, message, node, trip

from glm4.agent.session_export import as_markdown, from_document
from glm4.agent.sessions import SessionMessage, SessionStore
from glm4.errors import InvalidRequestError


def read(document: dict[str, Any]) -> tuple[SessionStore, str, list[SessionMessage]]:
    store = SessionStore(None)
    name = from_document(store, document)
    return store, name, store.messages(name)


def test_a_tree_with_code_pages_and_an_edited_question() -> None:
    store, name, messages = read(trip())
    session = store.get(name)
    assert (session.title, session.created, session.updated) == ("Trip to 杭州", 1700000000.5, 1700000900.25)
    assert (session.model, session.system) == ("", "")  # the server's own model goes on with it
    at = {one.id: index for index, one in enumerate(messages)}
    assert [(one.role, None if one.parent is None else at[one.parent], one.created, one.model) for one in messages] == [
        ("user", None, 1700000001.0, ""), ("assistant", 0, 1700000002.0, "gpt-4o-mini"),
        ("user", None, 1700000003.0, ""), ("assistant", 2, 1700000003.5, "gpt-4o"),
        ("assistant", 2, 1700000007.0, "gpt-4o"),
    ]  # fmt: skip
    assert session.leaf == messages[3].id
    assert messages[2].parts == [
        {"kind": "text", "text": "How far?\n\n(1 picture is not in the export)"},
        {"kind": "text", "text": "(1 file is not in the export: map.pdf)"},
    ]
    thought, code, page, text = messages[3].parts
    assert thought == {"kind": "reasoning", "text": "Distance\n\nI compute."}
    assert (code["tool"], code["state"], code["arguments"]) == ("python", "done", "print(6 * 7)")
    assert code["output"] == [{"channel": "output", "text": "42"}]
    assert (page["tool"], page["arguments"]) == ("browser", "")
    assert page["output"] == [{"channel": "output", "text": "Near\nhttps://x.example/\nIt is near."}]
    assert code["call"] != page["call"]
    assert text == {"kind": "text", "text": "It is 42 km."}
    (told,) = messages[3].messages
    assert told["content"].startswith("```python\nprint(6 * 7)\n```\n\n```\n42\n```\n\n")
    assert "I compute" not in told["content"]
    assert "secret" not in str(messages)
    assert "How far?" in as_markdown(store, name)
    assert "Where is it?" not in as_markdown(store, name)
    assert [one.conversation for one in store.search("zhejiang")] == [name]


def test_branches_within_an_answer_lose_nothing() -> None:
    nodes = [
        node("q", None, message("user", "q", 1.0), "a"),
        node("a", "q", message("assistant", "first half", 2.0), "b", "c"),
        node("b", "a", message("assistant", "one end", 3.0)),
        node("c", "a", message("assistant", "another end", 4.0)),
    ]
    store, name, messages = read(conversation(nodes, "b"))
    assert [one.parts[0]["text"] for one in messages] == ["q", "first half", "one end", "another end"]
    assert [one.parts[0]["text"] for one in store.branch(name)] == ["q", "first half", "one end"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"content_type": "text", "parts": ["a", None, "", "b"]}, "a\n\nb"),
        ({"content_type": "code", "language": "unknown", "text": "x ``` y"}, "````\nx ``` y\n````"),
        ({"content_type": "multimodal_text", "parts": [{"content_type": "audio_transcription", "text": "spoken"},
          {"content_type": "audio_asset_pointer"}, {"content_type": "audio_asset_pointer"}]},
         "spoken\n\n(2 recordings are not in the export)"),
        ({"content_type": "of_a_later_year", "text": "still read"}, "still read"),
        ({"content_type": "of_a_later_year", "odd": 1}, None),
        ({"content_type": "reasoning_recap", "content": "Thought for 5s"}, None),
        ({"content_type": "text", "parts": ["  "]}, None),
    ],
)  # fmt: skip
def test_kinds_of_content(content: dict[str, Any], text: str | None) -> None:
    nodes = [node("q", None, message("user", "q", 1.0), "a"), node("a", "q", message("assistant", content, 2.0))]
    _, _, messages = read(conversation(nodes, None))
    assert [one.parts for one in messages[1:]] == ([] if text is None else [[{"kind": "text", "text": text}]])


def test_what_failed_and_what_was_cut_off_says_so() -> None:
    broken = message(
        "tool", {"content_type": "system_error", "name": "Timeout", "text": "too slow"}, 3.0, name="python"
    )
    cut = message("assistant", "half an", 4.0) | {"status": "finished_partial_completion"}
    code = message("assistant", {"content_type": "code", "language": "python", "text": "1"}, 2.0, recipient="python")
    nodes = [node("c", None, code, "t"), node("t", "c", broken, "a"), node("a", "t", cut)]
    _, _, (made,) = read(conversation(nodes, "a"))
    assert made.status == "stopped"
    assert made.parts[0]["state"] == "error"
    assert made.parts[0]["output"] == [{"channel": "error", "text": "Timeout: too slow"}]


def test_a_very_long_chain_and_a_very_wide_tree() -> None:
    length = 3000
    chain = [node(f"n{n}", f"n{n - 1}" if n else None, message(("user", "assistant")[n % 2], f"number {n}", float(n)),
                  f"n{n + 1}") for n in range(length)]  # fmt: skip
    store, name, messages = read(conversation(chain, f"n{length - 1}"))
    assert len(store.branch(name)) == len(messages) == length
    comb = [node("q", None, message("user", "q", 1.0))]
    comb += [node(f"a{n}", "q" if not n else f"a{n - 1}", message("assistant", f"a{n}", 2.0)) for n in range(length)]
    comb += [node(f"b{n}", f"a{n}", message("assistant", f"b{n}", 3.0)) for n in range(length - 1)]
    _, _, messages = read(conversation(comb, None))
    assert sum(len(one.parts) for one in messages) == 2 * length  # nothing twice


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(trip())
    at: Any = document
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return document


Q1 = ("mapping", "q1")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("mapping",), [], "mapping must be an object"), (("mapping",), {}, "no message"),
        (("title",), 5, "title must be a string"), (("create_time",), "now", "create_time must be seconds"),
        (("update_time",), -1, "update_time must be seconds"), (("update_time",), True, "must be seconds"),
        (("create_time",), 1e300, "must be seconds"), (("current_node",), "gone", "current_node is not one"),
        (("current_node",), ["f2"], "current_node is not one"), (("mapping", "q1"), 3, "must be an object"),
        ((*Q1, "parent"), "gone", "parent is not one of the nodes"), ((*Q1, "parent"), {}, "parent is not one"),
        ((*Q1, "parent"), "q1", "own ancestors"), ((*Q1, "parent"), "a1", "own ancestors"),
        ((*Q1, "children"), "a1", "children must be a list"), ((*Q1, "children"), [1], "children must be a string"),
        ((*Q1, "message"), "hi", "message must be an object"), ((*Q1, "message", "author"), None, "author must be"),
        ((*Q1, "message", "author", "role"), "king", "role is not a known one"),
        ((*Q1, "message", "author", "role"), ["user"], "role is not a known one"),
        ((*Q1, "message", "content"), "text", "content must be an object"),
        ((*Q1, "message", "content", "content_type"), 1, "content_type must be a string"),
        ((*Q1, "message", "content", "parts"), "text", "parts must be a list"),
        ((*Q1, "message", "content", "parts"), [["deep"]], "parts must be an object"),
        ((*Q1, "message", "create_time"), "2024", "create_time must be seconds"),
        ((*Q1, "message", "metadata"), [1], "metadata must be an object"),
        ((*Q1, "message", "metadata"), {"attachments": {"a": 1}}, "attachments must be a list"),
    ],
)  # fmt: skip
def test_a_hostile_export_is_refused_whole(path: tuple[str, ...], value: Any, said: str) -> None:
    store = SessionStore(None)
    with pytest.raises(InvalidRequestError, match=said):
        from_document(store, changed(path, value))
    assert store.sessions() == []
    assert store.search("Zhejiang") == []


def test_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm4.agent.openai_export.MAX_NODES", 5)
    with pytest.raises(InvalidRequestError, match="more than 5 nodes"):
        from_document(SessionStore(None), trip())


def test_odd_names_and_texts_do_no_harm() -> None:
    odd = "\ud800 \x00 <script> 【7†x】 \ue200"
    document = changed((*Q1, "message", "content", "parts"), [odd])
    document["title"] = odd * 40
    document["mapping"]["c2"]["message"]["recipient"] = {"a": 1}
    document["mapping"]["a1"]["message"]["metadata"]["model_slug"] = ["x"]
    store, name, messages = read(document)
    assert len(store.get(name).title) <= 80
    assert "<script>" in messages[0].parts[0]["text"]
    assert "\ue200" not in messages[0].parts[0]["text"]
