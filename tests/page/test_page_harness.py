"""The harness itself: what it must notice, it notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from page_browser import Watch, serious_findings, sideways
from page_model import HOLD, Asked, Model, call

from live import config, serve
from web_sites import Site, page, site

pytestmark = pytest.mark.page
People = Callable[..., Watch]

WRONG = """<!doctype html><html lang="en"><head><title>x</title><link rel="icon" href="data:,"></head><body>
<main><h1>Wrong</h1><div style="width: 3000px">wide</div><img src="/missing.png"></main>
<script>console.error("bad"); setTimeout(() => { throw new Error("worse"); });
alert("hello"); fetch("http://127.0.0.1:%d/").catch(() => 0);</script></body></html>"""


@pytest.fixture
def wrong() -> Iterator[tuple[Site, Site]]:
    with site({"/": page(b"", media_type="text/plain")}) as other:
        html = (WRONG % other.port).encode()
        with site({"/ui": page(html, media_type="text/html"), "/missing.png": page(b"", status="404 No")}) as wrong:
            yield wrong, other


def test_what_goes_wrong_in_a_page_is_seen(wrong: tuple[Site, Site], person: People) -> None:
    watch = person(f"http://127.0.0.1:{wrong[0].port}")
    tab = watch.page()
    for part in ("console: bad", "uncaught: Error: worse", "alert: hello", "another origin", "404"):
        watch.until(tab, lambda part=part: part in "\n".join(watch.problems), part)  # type: ignore[misc]
    assert watch.dialogs == ["hello"]
    assert any("image-alt" in finding for finding in serious_findings(tab))
    assert sideways(tab) > 1000
    with pytest.raises(AssertionError, match="console: bad"):
        watch.check()
    watch.expect("bad|worse|hello|another origin|404|CORS|Failed to load|ERR_FAILED")
    watch.check()


def test_the_model_waits_where_it_is_told(tmp_path: Path) -> None:
    def sum_up(asked: Asked) -> str:
        return f"It says {asked.observations[-1]}."

    model = Model(tmp_path, {"weather": (call("weather", '{"city": "Rome"}'), sum_up), "Tell": f"One{HOLD}, two."})
    with serve(config("m"), model.llm) as live, live.client() as client:
        body = {"messages": [{"role": "user", "content": "Tell"}], "model": "m", "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            said = next(line for line in lines if '"content":"' in line)
            assert "two" not in said
            model.go()
            assert "data: [DONE]" in list(lines)
        said = client.post("/v1/chat/completions", json={**body, "stream": False, "messages": [
            {"role": "user", "content": "How is the weather?"},
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {
                "name": "weather", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ]}).json()["choices"][0]["message"]["content"]  # fmt: skip
        assert said == "It says rain."
        assert httpx.get(f"{live.url}/health").status_code == 200
        model.rest()
        assert [asked.question for asked in model.asked] == ["Tell", "How is the weather?"]
