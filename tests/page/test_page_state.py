"""The state of a conversation and the reader of streams, as modules in a real browser: no page, no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from page_browser import Watch
from page_server import page_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.page
Run = Callable[..., Any]

EVENTS: list[dict[str, Any]] = [
    {"type": "progress", "phase": "prefill", "done": 10, "total": 20},
    {"type": "part", "part": 0, "kind": "reasoning"},
    {"type": "text", "part": 0, "add": "Hm."},
    {"type": "html", "part": 0, "first": 0, "blocks": ["<p>Hm.</p>"]},
    {"type": "part", "part": 1, "kind": "tool"},
    {"type": "call", "part": 1, "call": "c1", "tool": "python", "state": "writing", "add": "print("},
    {"type": "call", "part": 1, "call": "c1", "tool": "python", "state": "writing", "add": "1)"},
    {"type": "call", "part": 1, "call": "c1", "tool": "python", "state": "running", "code": "<pre>print(1)</pre>"},
    {"type": "output", "call": "c1", "channel": "output", "add": "1"},
    {"type": "output", "call": "c1", "channel": "output", "add": "\n"},
    {"type": "output", "call": "c1", "channel": "error", "add": "careful", "truncated": True},
    {"type": "file", "call": "c1", "file": "f" * 64, "name": "plot.png", "media_type": "image/png", "bytes": 3},
    {"type": "call", "part": 1, "call": "c1", "tool": "python", "state": "done", "seconds": 0.5},
    {"type": "usage", "prompt": 20, "cached": 0, "completion": 9, "context": 100, "decode_seconds": 1.5},
    {"type": "part", "part": 2, "kind": "text"},
    {"type": "text", "part": 2, "add": "# One\n\n```py\nif a <"},
    {"type": "html", "part": 2, "first": 0, "blocks": ["<h1>One</h1>", "<pre><code>if a &lt;</code></pre>"]},
    {"type": "text", "part": 2, "add": " b && c:"},
    {"type": "code", "part": 2, "block": 1, "add": " b && c:"},
    {"type": "text", "part": 2, "add": "\n```\n\nEnd 【1†A】"},
    {"type": "html", "part": 2, "first": 1, "blocks": ["<pre><code><span>if</span></code></pre>", "<p>End</p>"]},
    {"type": "citation", "part": 2, "n": 1, "title": "A", "start": 40, "end": 45},
    {"type": "error", "where": "model", "code": "timeout", "message": "too late", "retry": True},
    {"type": "unheard", "part": 2, "of": 1},
    {"type": "usage", "prompt": 40, "cached": 20, "completion": 30, "context": 100, "decode_seconds": 2.5},
    {"type": "end", "status": "limit", "reason": "rounds"},
]
VIEW: dict[str, Any] = {
    "conversation": {"id": "c", "title": "T"},
    "tree": [
        {"id": "q", "parent": None, "role": "user", "status": "completed", "created": 1},
        {"id": "a", "parent": "q", "role": "assistant", "status": "running", "created": 2},
    ],
    "messages": [
        {"id": "q", "parent": None, "role": "user", "status": "completed", "parts": [{"kind": "text", "text": "?"}]},
        {"id": "a", "parent": "q", "role": "assistant", "status": "running", "turn": "t", "parts": []},
    ],
    "files": [],
}
_STARTED = "const {ConversationState} = state; const shown = new ConversationState(); shown.load(given.view);"


@pytest.fixture(scope="module")
def run(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """`run(body, **given)` runs JavaScript with the modules `state` and `stream`, and `given`."""
    with page_server(tmp_path_factory.mktemp("state"), {}, functions=False) as served:
        watch = Watch(browser, served.url)
        page = watch.page()

        def ran(body: str, **given: Any) -> Any:
            return page.evaluate(
                "async (given) => { const folder = document.baseURI.split('#')[0];"
                " const state = await import(`${folder}/state.js`); const stream = await import(`${folder}/stream.js`);"
                f"{body} }}",
                given,
            )

        yield ran
        watch.close()
        watch.check()


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_stream_is_read_wherever_it_is_cut(run: Run, line_end: str) -> None:
    text = ': keep-alive\n\nid: 7\nevent: text\ndata: {"a":\ndata: "中 x"}\n\n: more\n\n'
    text += "data:no space\n\nevent: end\ndata:\n\n"
    found = run(
        """return [1, 2, 3, 5, 1000].map((size) => {
            const parser = new stream.EventParser(); const events = [];
            for (let at = 0; at < given.text.length; at += size) {
              events.push(...parser.feed(given.text.slice(at, at + size)));
            }
            return events;
        });""",
        text=text.replace("\n", line_end),
    )
    assert found[0] == ['{"a":\n"中 x"}', "no space", ""]
    assert all(one == found[0] for one in found)


def test_the_pause_before_another_attempt_grows_to_its_limit(run: Run) -> None:
    pauses = run("return [...Array(40).keys()].map((n) => [stream.backoff(n, 0), stream.backoff(n, 1)]);")
    assert pauses[0] == [500, 500]
    assert all(low == 500 and low <= high <= 8000 for low, high in pauses)
    assert [high for _, high in pauses] == sorted(high for _, high in pauses)
    assert pauses[-1][1] == 8000


def test_a_snapshot_at_any_moment_and_what_follows_are_the_same_as_all_events(run: Run) -> None:
    ends = run(
        _STARTED
        + """
        const told = ({parts, errors, status, usage, files, reason}) =>
            JSON.parse(JSON.stringify({parts, errors, status, usage: {...usage, last: null}, files, reason}));
        const snapshots = []; const message = shown.messages.get("a");
        for (const event of given.events) {
            snapshots.push(structuredClone({type: "snapshot", turn: "t", message: "a", model: "m", context: 100,
              parts: message.parts, files: message.files, usage: message.usage, errors: message.errors, end: null}));
            shown.apply(event, message);
        }
        return [told(message), ...snapshots.map((snapshot, at) => {
            const again = new ConversationState(); again.load(structuredClone(given.view));
            // Twice: a connection that broke.
            const mine = again.messages.get("a");
            again.apply(structuredClone(snapshots[Math.floor(at / 2)]), mine);
            again.apply(snapshot, mine);
            for (const event of given.events.slice(at)) again.apply(event, mine);
            return told(mine);
        })];""",
        view=VIEW,
        events=EVENTS,
    )
    assert all(end == ends[0] for end in ends)
    whole = ends[0]
    assert (whole["status"], whole["reason"]) == ("limit", "rounds")
    assert [part["kind"] for part in whole["parts"]] == ["reasoning", "tool", "text"]
    tool, text = whole["parts"][1:]
    assert [tool[name] for name in ("arguments", "state", "seconds")] == ["print(1)", "done", 0.5]
    assert tool["output"] == [
        {"channel": "output", "text": "1\n"},
        {"channel": "error", "text": "careful", "truncated": True},
    ]
    assert [file["name"] for file in tool["files"]] == ["plot.png"]
    assert text["blocks"] == ["<h1>One</h1>", "<pre><code><span>if</span></code></pre>", "<p>End</p>"]
    assert text["text"] == "# One\n\n```py\nif a < b && c:\n```\n\nEnd 【1†A】"
    assert [error["code"] for error in whole["errors"]] == ["timeout"]
    assert [whole["usage"][name] for name in ("completion", "rounds")] == [39, 2]


def test_code_that_is_added_stays_text(run: Run) -> None:
    block = run("return state.withCode('<pre><code>a</code></pre>', '</code><img src=x> &amp;');")
    assert block == "<pre><code>a&lt;/code&gt;&lt;img src=x&gt; &amp;amp;</code></pre>"


def test_what_is_stored_does_not_set_back_what_was_heard(run: Run) -> None:
    heard = run(
        _STARTED
        + """
        const texts = () => shown.branch().map((one) => [one.status, one.parts.map((part) => part.text).join("")]);
        const results = []; const message = () => shown.messages.get("a");
        shown.apply({type: "part", part: 0, kind: "text"}, message());
        shown.apply({type: "text", part: 0, add: "later"}, message());
        shown.load(given.view); results.push(texts());
        const late = structuredClone(given.view); // the turn ended after the server had read the message
        delete late.messages[1].turn;
        shown.load(late); results.push([message().turn, texts()[1]]);
        shown.apply({type: "end", status: "completed", reason: "stop"}, message());
        shown.load(given.view); results.push(texts());
        const ended = structuredClone(given.view);
        Object.assign(ended.messages[1], {status: "interrupted", parts: [{kind: "text", text: "stored"}]});
        shown.load(ended); results.push(texts());
        return results;""",
        view=VIEW,
    )
    assert heard[0] == [["completed", "?"], ["running", "later"]]
    assert heard[1] == ["t", ["running", "later"]]
    assert heard[2] == [["completed", "?"], ["completed", "later"]]
    assert heard[3] == [["completed", "?"], ["interrupted", "stored"]]


def test_messages_that_are_being_sent(run: Run) -> None:
    steps = run(
        _STARTED
        + """
        const told = () => [shown.id, shown.branch().map((one) => one.id), shown.branch().map((one) => one.local)];
        shown.apply({type: "end", status: "completed"}, shown.messages.get("a"));
        const results = [];
        shown.addLocal("mine", {text: "hi", files: [], parent: "a"}); results.push(told());
        shown.load(given.view); results.push(told());
        shown.started("mine", {turn: "t2", conversation: "c", user_message: "q2", message: "a2"}, "m");
        results.push(told()); results.push(shown.runningMessage().id);
        shown.apply({type: "end", status: "completed"}, shown.messages.get("a2"));
        shown.addLocal("other", {text: "no", files: [], parent: "a2"}); shown.removeLocal("other");
        results.push(told());
        return results;""",
        view=VIEW,
    )
    assert steps[0] == ["c", ["q", "a", "mine"], [False, False, True]]
    assert steps[1] == steps[0]
    assert steps[2] == ["c", ["q", "a", "q2", "a2"], [False] * 4]
    assert steps[3] == "a2"
    assert steps[4] == steps[2]


def test_branches(run: Run) -> None:
    tree = [("q", None), ("a", "q"), ("a2", "q"), ("q3", "a2"), ("a3", "q3"), ("q1", None), ("a4", "q1")]
    view = {
        **VIEW,
        "tree": [
            {"id": one, "parent": parent, "role": "user" if one[0] == "q" else "assistant", "status": "completed"}
            for one, parent in tree
        ],
    }
    found = run(_STARTED + 'return [["q", "a", "a2", "q3"].map((id) => shown.siblings(id)), shown.leafBelow("q"),'
                           ' shown.leafBelow("q1"), shown.leafBelow("a")];', view=view)  # fmt: skip
    assert found[0] == [
        {"ids": ["q", "q1"], "index": 0},
        {"ids": ["a", "a2"], "index": 0},
        {"ids": ["a", "a2"], "index": 1},
        {"ids": ["q3"], "index": 0},
    ]
    assert found[1:] == ["a3", "a4", "a"]
