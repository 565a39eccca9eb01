"""How smooth the web page is: an answer of 10,000 tokens in a real Chromium, the first paint, and what is sent.

    python benchmarks/page.py [--tokens 10000] [--rate 500] [--visits 5] [--json FILE]

The server is the real one. The model's tokens are those of `markup.py` (English and Chinese text, code, tables, lists,
formulas; two to five characters each), written here at `--rate` a second, or as fast as the machine can. Printed:

- frames: time between two of them while the answer is written, and the tasks of over 50 ms that the browser reports;
  both are by the clock, so another program that takes the processor is in them;
- tasks of the page's main thread by processor time, and what it computes per second of writing, by the browser's own
  trace and counters, which a busy machine changes less;
- rendering on the server, per token: that of `markup.py`;
- first paint (first-contentful-paint) of a visitor without a cache while the model is still loading;
- bytes of all static files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("", "page")]

from page_actions import STATIC, Chat  # noqa: E402
from page_browser import Watch, expect, open_browser  # noqa: E402

import harness  # noqa: E402
import markup  # noqa: E402
from glm4.backends.scripted import ScriptedBackend, _Running  # noqa: E402
from glm4.chat.dialects.table import dialect_for  # noqa: E402
from glm4.engine.protocol import GenerationOutput  # noqa: E402
from glm4.llm import LLM  # noqa: E402
from glm4.requests.processor import Processor  # noqa: E402
from glm4.server.config import ModelSpec, ServerConfig  # noqa: E402
from live import serve  # noqa: E402
from tiny import VOCAB_SIZE, special_id, write_folder  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession

MAX_MODEL_LEN = 1 << 20  # its tokens are bytes
WARM_UP = 300  # tokens of a first answer, after which scripts are compiled
WATCH = """() => {
  const seen = (window.measured = {frames: [], tasks: [], running: true});
  new PerformanceObserver((list) => seen.tasks.push(...list.getEntries().map((one) => one.duration)))
    .observe({type: "longtask"});
  let last = performance.now();
  const frame = (now) => {
    seen.frames.push(now - last);
    last = now;
    if (seen.running) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""
FIRST_PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  const found = list.getEntriesByName("first-contentful-paint")[0];
  if (found) resolve(found.startTime);
}).observe({type: "paint", buffered: true}))"""
COUNTERS = ("TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration")


class Writer(ScriptedBackend):
    """Writes an answer in given pieces, one a step, at no more than a rate."""

    def __init__(self, rate: float) -> None:
        super().__init__(self._ids, vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN)
        self.pieces: list[str] = []
        self._pause = 1 / rate
        self._next = 0.0
        self._at = 0

    def _ids(self, prompt_ids: object) -> list[int]:
        self._at = 0
        return [*"".join(self.pieces).encode(), special_id("<|user|>")]

    def step(self) -> list[GenerationOutput]:
        """One piece of the answer, when it is due."""
        now = time.monotonic()
        self._next = max(self._next + self._pause, now)
        time.sleep(self._next - now)
        return super().step()

    def _advance(self, running: _Running) -> GenerationOutput:
        size = len(self.pieces[self._at].encode()) if self._at < len(self.pieces) else 1
        self._at += 1
        outputs = []
        for _ in range(size):
            outputs.append(super()._advance(running))
            if outputs[-1].finish_reason is not None:
                break
        ids = tuple(token for output in outputs for token in output.token_ids)
        return GenerationOutput(running.request.request_id, ids, outputs[-1].finish_reason, outputs[-1].stop_token_id)


def writing_llm(folder: Path, rate: float) -> tuple[LLM, Writer]:
    """An LLM over such a writer."""
    text = Processor.open(write_folder(folder, chat_template=None))
    writer = Writer(rate)
    processor = Processor(**{**vars(text), "dialect": dialect_for("glm4"), "template": None})
    return LLM.from_backend(writer, processor), writer


def long_answer(url: str, writer: Writer, tokens: int) -> dict[str, Any]:
    """Watch the page while an answer is written."""
    with open_browser() as browser:
        watch = Watch(browser, url)
        chat = Chat(watch).ready()
        counters = watch.context.new_cdp_session(chat.page)
        counters.send("Performance.enable")
        writer.pieces = ["\n", *markup.answer(WARM_UP)]
        chat.ask("Warm up.")
        chat.fresh()
        writer.pieces = ["\n", *markup.answer(tokens)]
        before = _counters(counters)
        traced = Trace(counters)
        chat.evaluate(WATCH)
        started = time.monotonic()
        chat.send("Write ten thousand tokens.")
        chat.page.wait_for_function(
            "() => document.querySelector('article:last-of-type')?.dataset.status === 'completed'", timeout=0
        )
        seconds = time.monotonic() - started
        measured = chat.evaluate("() => { window.measured.running = false; return window.measured; }")
        after = _counters(counters)
        tasks = traced.end(chat)
        expect(chat.messages).to_have_count(2)
        blocks = chat.body().locator(".block").count()
        watch.check()
        watch.close()
    frames = sorted(measured["frames"][1:])
    return {
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "blocks": blocks,
        "frames": len(frames),
        "frame_median_ms": round(statistics.median(frames), 1),
        "frame_p99_ms": round(statistics.quantiles(frames, n=100)[98], 1),
        "frame_longest_ms": round(frames[-1], 1),
        "frames_over_50_ms": sum(one > 50 for one in frames),
        "long_tasks": len(measured["tasks"]),
        "longest_task_ms": round(max(measured["tasks"], default=0), 1),
        "longest_task_processor_ms": round(tasks[-1], 1),
        "tasks_over_50_ms_processor": sum(one > 50 for one in tasks),
        **{f"{_snake(name)}_ms_per_second": round((after[name] - before[name]) / seconds * 1e3) for name in COUNTERS},
        "heap_mb": round(after["JSHeapUsedSize"] / 1e6, 1),
    }


class Trace:
    """The browser's trace, from now on."""

    def __init__(self, session: CDPSession) -> None:
        self._session = session
        self._events: list[dict[str, Any]] = []
        self._ended: list[object] = []
        session.on("Tracing.dataCollected", lambda data: self._events.extend(data["value"]))
        session.on("Tracing.tracingComplete", lambda data: self._ended.extend([data]))
        kinds = {"includedCategories": ["toplevel", "devtools.timeline"]}
        session.send("Tracing.start", {"transferMode": "ReportEvents", "traceConfig": kinds})

    def end(self, chat: Chat) -> list[float]:
        """Milliseconds of processor time of the tasks of the thread that runs scripts, the shortest first."""
        self._session.send("Tracing.end")
        chat.watch.until(chat.page, lambda: self._ended, "the trace")
        threads = Counter((one["pid"], one["tid"]) for one in self._events if one["name"] == "FunctionCall")
        scripts = threads.most_common(1)[0][0]
        return sorted(
            one.get("tdur", 0) / 1e3
            for one in self._events
            if (one["pid"], one["tid"]) == scripts and one["name"].endswith("RunTask")
        )


def _counters(session: CDPSession) -> dict[str, float]:
    return {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name.removesuffix("Duration")).strip("_")


def first_paints(url: str, visits: int) -> list[float]:
    """Milliseconds to the first paint of visitors without a cache."""
    found = []
    with open_browser() as browser:
        for _ in range(visits + 1):  # the first one starts the browser's own processes
            watch = Watch(browser, url)
            found.append(float(watch.page().evaluate(FIRST_PAINT)))
            watch.close()
    return found[1:]


def measure(tokens: int, rate: float, visits: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        llm, writer = writing_llm(Path(folder), rate)
        loaded = threading.Event()

        def load(spec: ModelSpec, progress: Callable[..., None]) -> LLM:
            loaded.wait()
            return llm

        config = ServerConfig((ModelSpec("m", ("m",)),), ui=True)
        with serve(config, load=load, wait=False) as live:
            try:
                harness.progress("first paint")
                paints = first_paints(live.url, visits)
            finally:
                loaded.set()
            harness.progress("an answer")
            written = long_answer(live.url, writer, tokens)
    harness.progress("rendering on the server")
    pieces = markup.answer(tokens)
    markup.timed(pieces[:500], markup.incremental())
    rendered = markup.summary("incremental", *markup.timed(pieces, markup.incremental()))
    harness.progress("")
    return {
        "answer": written,
        "server": {name: rendered[name] for name in ("median_ms", "p99_ms", "first_ms", "last_ms", "last_to_first")},
        "first_paint": {"median_ms": round(statistics.median(paints)), "all_ms": [round(one) for one in paints]},
        "static_bytes": sum(len(path.read_bytes()) for path in STATIC.iterdir() if path.is_file()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=500, help="tokens a second, at most")
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    facts = harness.facts(1)
    found = measure(arguments.tokens, arguments.rate, arguments.visits)
    print(harness.bullets(facts))
    rows = [
        (f"{part}: {name}" if part != name else part, value)
        for part, values in found.items()
        for name, value in (values.items() if isinstance(values, dict) else [(part, values)])
    ]
    print(harness.table(("what", "value"), [(name, str(value)) for name, value in rows]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts, **found}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
