"""Conversations with several first questions: `"parent": "root"` edits the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_agent_http import check, followed, running, text_of

ASKED = "/v1/agent/chat"


def test_the_first_question_is_edited(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return f"\nanswer {len(seen)}"

    with running(tmp_path, answer) as live, live.client() as client:
        first = followed(client, ASKED, {"content": "Old question"})[0][1]
        talk = first["conversation"]
        followed(client, ASKED, {"content": "Old sequel", "conversation": talk})
        edited = followed(client, ASKED, {"content": "New question", "conversation": talk, "parent": "root"})
        assert text_of(edited) == "answer 3"
        assert "Old" not in seen[2]  # the model sees nothing of the other branch
        path = f"/v1/agent/conversations/{talk}"
        whole = check("AgentConversationWithMessages", client.get(path).json())
        roots = [one for one in whole["messages"] if one["parent"] is None]
        assert [one["parts"][0]["text"] for one in roots] == ["Old question", "New question"]
        assert whole["conversation"]["leaf"] == edited[0][1]["message"]
        assert whole["conversation"]["title"] == "Old question"
        # It goes on from what is shown, and each first question can be answered anew.
        followed(client, ASKED, {"content": "New sequel", "conversation": talk})
        assert "New question" in seen[3]
        assert "Old" not in seen[3]
        again = followed(client, ASKED, {"conversation": talk, "parent": first["parent"]})
        assert again[0][1]["parent"] == first["parent"]
        assert "Old question" in seen[4]
        assert "New" not in seen[4]
        markdown = client.get(path + "/export?format=markdown").text
        assert "New question" not in markdown
        assert "answer 5" in markdown
        html = client.get(path + "/export?format=html").text
        assert "New question" not in html
        assert "answer 5" in html
        client.patch(path, json={"leaf": edited[0][1]["message"]})
        assert "answer 3" in client.get(path + "/export?format=markdown").text
        document = client.get(path + "/export").json()
        copy = client.post("/v1/agent/conversations", json=document).json()["id"]
        copied = client.get(f"/v1/agent/conversations/{copy}").json()
        assert shape(copied["messages"]) == shape(client.get(path).json()["messages"])
        assert client.get(f"/v1/agent/conversations/{copy}/export?format=markdown").text == client.get(
            path + "/export?format=markdown"
        ).text  # fmt: skip


def shape(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What each message says, and the place of its parent."""
    at = {one["id"]: index for index, one in enumerate(messages)}
    return [(at.get(one["parent"]), one["role"], one["parts"], one["created"]) for one in messages]


def test_root_is_for_questions_of_a_known_conversation(tmp_path: Path) -> None:
    with running(tmp_path, lambda prompt: "\nYes.") as live, live.client() as client:
        refused = client.post("/v1/agent/turns", json={"content": "x", "parent": "root"})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "conversation"
        talk = followed(client, ASKED, {"content": "Q"})[0][1]["conversation"]
        refused = client.post("/v1/agent/turns", json={"parent": "root", "conversation": talk})
        assert refused.status_code == 400
        assert "content is missing" in refused.json()["error"]["message"]
        assert len(client.get(f"/v1/agent/conversations/{talk}").json()["messages"]) == 2
