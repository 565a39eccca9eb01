"""Files of users that answers cite: in the prompt, found by the tool, in later turns, and in responses."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from builtin_tools import KEY, asked, upload
from python_conversations import needs_sandbox
from test_agent_edges import upload as sent
from test_agent_http import followed, text_of

from glm4.server.agent.config import AgentConfig
from glm4.server.config import ModelSpec, ServerConfig
from live import serve
from pdf_files import tower_pdf
from scripted_llm import scripted_llm

BIRDS = b"# Birds\n\nThe heron nests in March. It waits.\n\n# Fish\n\nPike hide in the reeds.\n"


def citations(events: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in one.items() if k not in ("type", "part")} for _, one in events if one["type"] == "citation"
    ]


def serving(folder: Path, answer: Any, *tools: str, sessions: Path | None = None, dialect: str | None = None) -> Any:
    config = ServerConfig((ModelSpec("m", ("m",)),), agent=AgentConfig(tools=tools, sessions=sessions))
    return serve(config, scripted_llm(folder / "model", answer, template=None, dialect=dialect))


@needs_sandbox
def test_a_page_in_the_prompt_is_cited_by_its_sentence_also_in_later_turns(tmp_path: Path) -> None:
    seen: list[str] = []
    answers = [
        "Tower two is 52 meters high【8†towers.pdf】.",
        "The third is 53 meters high.【9†source】",
        "No【10†x】.",
    ]

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "\n" + answers[len(seen) - 1]

    pdf = tower_pdf(3)
    digest = hashlib.sha256(pdf).hexdigest()
    saved = tmp_path / "saved"
    with serving(tmp_path, answer, sessions=saved) as live, live.client() as client:
        file = sent(client, "towers.pdf", pdf)["file"]
        assert file == digest
        events = followed(client, "/v1/agent/chat", {"content": "How high?", "files": [file]})
        assert "【8†towers.pdf, page 2】\nTower number 2 is 52" in seen[0]
        assert citations(events) == [
            {"n": 8, "title": "towers.pdf", "file": digest, "page": 2, "start": 27, "end": 41,
             "text": "Tower number 2 is 52 meters high."}
        ]  # fmt: skip
        talk = events[0][1]["conversation"]
        (part,) = client.get(f"/v1/agent/conversations/{talk}").json()["messages"][-1]["parts"]
        assert part["citations"] == citations(events)
    with serving(tmp_path, answer, sessions=saved) as live, live.client() as client:
        events = followed(client, "/v1/agent/chat", {"content": "And the third?", "conversation": talk})
        (cited,) = citations(events)
        assert (cited["n"], cited["page"], cited["file"]) == (9, 3, digest)
        assert cited["text"] == "Tower number 3 is 53 meters high."
        # An export brings the sources along; a branch without the file has none.
        document = client.get(f"/v1/agent/conversations/{talk}/export").json()
        assert [one["page"] for one in document["messages"][0]["sources"]] == [1, 2, 3]
        copy = client.post("/v1/agent/conversations", json=document).json()["id"]
        events = followed(client, "/v1/agent/chat", {"content": "x", "conversation": copy, "parent": "root"})
        assert citations(events) == []


def test_sections_are_cited_and_a_second_file_goes_on_counting(tmp_path: Path) -> None:
    answers = iter(["Herons nest in March【7†birds.md】.", "Pike hide【8†x】, and so do eels【9†eels.md】."])
    with serving(tmp_path, lambda prompt: f"\n{next(answers)}") as live, live.client() as client:
        file = sent(client, "birds.md", BIRDS)["file"]
        first = followed(client, "/v1/agent/chat", {"content": "When?", "files": [file]})
        (cited,) = citations(first)
        assert (cited["section"], cited["text"]) == ("Birds", "The heron nests in March.")
        more = sent(client, "eels.md", b"Eels hide, too.")["file"]
        talk = first[0][1]["conversation"]
        second = followed(client, "/v1/agent/chat", {"content": "Who?", "files": [file, more], "conversation": talk})
        assert [(one["n"], one["title"], one["text"]) for one in citations(second)] == [
            (8, "birds.md", "Pike hide in the reeds."), (9, "eels.md", "Eels hide, too.")
        ]  # fmt: skip
        # The question is edited: the other branch numbers its own.
        sources = [one["sources"] for one in client.get(f"/v1/agent/conversations/{talk}/export").json()["messages"]]
        assert [[source["n"] for source in one] for one in sources] == [[7, 8], [], [9], []]


@needs_sandbox
def test_what_the_tool_finds_is_cited_by_its_sentence(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        if "52 meters" in prompt:
            return "\nThe second one is 52 meters high【7†towers.pdf】."
        return 'search_files\n{"query": "tower number 2 is 52"}'

    pdf = tower_pdf(400)  # too long for the prompt
    with serving(tmp_path, answer, "files") as live, live.client() as client:
        file = sent(client, "towers.pdf", pdf)["file"]
        events = followed(client, "/v1/agent/chat", {"content": "How high?", "files": [file], "tools": ["files"]})
        assert text_of(events).endswith("【7†towers.pdf】.")
        (cited,) = citations(events)
        assert (cited["file"], cited["page"], cited["text"]) == (file, 2, "Tower number 2 is 52 meters high.")


@needs_sandbox
def test_a_later_response_numbers_its_sources_behind_those_of_the_earlier(tmp_path: Path) -> None:
    rules = [
        ("Pike hide", "In the reeds【8†notes】, as birds【7†notes】."),
        ("Where?", 'search_files\n{"query": "pike hide"}'),
        ("heron nests in March", "In March【7†notes】."),
        ("When", 'search_files\n{"query": "heron nests"}'),
    ]
    with asked(tmp_path, rules, "files", dialect="glm4") as (_, live):
        name = upload(live, "birds.md", BIRDS)
        tools = [{"type": "file_search", "vector_store_ids": [name]}]
        with live.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
            first = client.post("/v1/responses", json={"input": "When?", "tools": tools}).json()
            body = {"input": "Where?", "tools": tools, "previous_response_id": first["id"]}
            second = client.post("/v1/responses", json=body).json()
        (message,) = [one for one in second["output"] if one["type"] == "message"]
        (cited,) = message["content"][0]["annotations"]  # 7 is the earlier response's, and no source of this one
        assert (cited["filename"], cited["index"]) == ("birds.md", len("In the reeds"))


def test_a_model_that_is_not_asked_to_cite_is_cited_by_its_words(tmp_path: Path) -> None:
    seen: list[str] = []
    answers = ["Herons nest in March.", "Nothing of that kind.", "Pike hide in reeds【8†birds.md】."]

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return answers[len(seen) - 1]

    with serving(tmp_path, answer, dialect="chatml") as live, live.client() as client:
        file = sent(client, "birds.md", BIRDS)["file"]
        first = followed(client, "/v1/agent/chat", {"content": "When?", "files": [file]})
        assert "【" not in seen[0]
        assert "[File Content]\n# Birds\n\nThe heron" in seen[0]
        (cited,) = citations(first)
        assert (cited["n"], cited["file"], cited["section"], cited["start"], cited["end"]) == (7, file, "Birds", 0, 21)
        assert cited["text"] == "The heron nests in March."
        assert first[-1][1]["type"] == "end"
        talk = first[0][1]["conversation"]
        stored = client.get(f"/v1/agent/conversations/{talk}").json()["messages"][-1]
        assert stored["parts"][0]["citations"] == [cited]
        again = followed(client, "/v1/agent/chat", {"content": "What else?", "conversation": talk})
        assert citations(again) == []
        own = followed(client, "/v1/agent/chat", {"content": "Pike?", "conversation": talk})
        assert [(one["n"], one["text"]) for one in citations(own)] == [(8, "Pike hide in the reeds.")]


def test_an_answer_that_cannot_be_compared_still_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[Any]:
        raise RuntimeError("a fault")

    monkeypatch.setattr("glm4.server.agent.turns.cited_by_words", fail)
    with serving(tmp_path, lambda prompt: "Herons nest in March.", dialect="chatml") as live, live.client() as client:
        file = sent(client, "birds.md", BIRDS)["file"]
        events = followed(client, "/v1/agent/chat", {"content": "When?", "files": [file]})
        assert events[-1][1]["status"] == "completed"
        assert citations(events) == []
