"""Twenty small tasks with real tools: how many a model solves, with calls held to their grammars and without.

    python benchmarks/agent_tasks.py
    python benchmarks/agent_tasks.py --model starter --tasks primes plot --grammars on

Code runs in the sandbox (`glm4 tools install`), the browser reads a web of its own on this machine, functions come from
a file, an MCP server is started, documents are searched. Greedy; one turn for each task, in a new conversation, without
instructions beside the agent's own. The tasks and how answers are checked: agent_task_set.py. Goal: 60 % with grammars.
Ctrl-C skips the rest of a run, and what there is is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import agent_task_web
import harness
from agent_task_set import FILES, Outcome, Task, tasks
from glm4 import LLM, SamplingParams
from glm4.agent.agent import Agent
from glm4.agent.attachments import attached
from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent, ErrorRaised, FileAdded, TurnEnded, UsageAdded
from glm4.agent.file_store import FolderFileStore
from glm4.agent.files import StoredFile
from glm4.agent.limits import AgentLimits
from glm4.agent.tool import Sources, Tool
from glm4.agent.toolbox import ToolServices, open_tools
from glm4.chat.messages import Message
from glm4.documents.loading import load_document
from glm4.multimodal.fetch import FetchPolicy

_HERE = Path(__file__).resolve().parent
_FUNCTIONS = str(_HERE / "agent_task_functions.py")
TODAY = date(2026, 6, 1)  # a part of the prompt


@dataclass(frozen=True)
class Row:
    """What a task came to.

    Attributes:
        rounds: with the model; `written`: tokens of all rounds.
        transcript: messages of the turn, for `--json`.
    """

    task: str
    passed: bool
    rounds: int
    written: int
    seconds: float
    ending: str
    answer: str
    transcript: Sequence[dict[str, Any]]


class Bench:
    """A place for tasks: a web, a file of MCP servers, files of conversations."""

    def __init__(self, llm: LLM, folder: Path, port: int, max_tokens: int) -> None:
        self._llm = llm
        self._store = FolderFileStore(folder / "files")
        config = folder / "mcp.json"
        server = {"command": sys.executable, "args": [str(_HERE / "agent_task_mcp.py")], "approval": "always"}
        config.write_text(json.dumps({"mcpServers": {"library": server}}))
        self._services = ToolServices(
            self._store,
            search=f"searxng:http://127.0.0.1:{port}",
            mcp_config=config,
            fetch_policy=FetchPolicy(private_hosts=(agent_task_web.HOST,), ports=(port,)),
        )
        self._params = SamplingParams(temperature=0, max_tokens=max_tokens)

    def run(self, task: Task, *, grammars: bool) -> Row:
        """One turn."""
        names = [_FUNCTIONS if name == "functions" else name for name in task.tools]
        with ExitStack() as stack:
            tools = open_tools(names, self._services)
            for tool in tools:
                stack.callback(tool.close)
            conversation = Conversation(files=self._store)
            conversation.messages.append(self._question(task, tools))
            agent = Agent(
                self._llm, tools, params=self._params, constrain_calls=grammars, today=TODAY,
                limits=AgentLimits(rounds=6),
            )  # fmt: skip
            began = time.perf_counter()
            events = list(agent.run(conversation))
            seconds = time.perf_counter() - began
            return self._row(task, conversation.messages[1:], events, tools, seconds)

    def _question(self, task: Task, tools: Sequence[Tool]) -> Message:
        """The question with its files, as `glm4 serve` puts it."""
        files: list[StoredFile] = []
        for name in task.files:
            data = FILES[name]()
            files.append(self._store.put(name, data))
            for tool in tools:
                tool.add_file(name, data)
        message = Message("user", task.question)
        return (
            attached(message, files, self._store, self._llm, task.tools, load_document, Sources()) if files else message
        )

    def _row(
        self, task: Task, said: Sequence[Message], events: Sequence[AgentEvent], tools: Sequence[Tool], seconds: float
    ) -> Row:
        usage = [event for event in events if isinstance(event, UsageAdded)]
        [end] = [event for event in events if isinstance(event, TurnEnded)]
        errors = [event.message for event in events if isinstance(event, ErrorRaised)]
        made = [event.file for event in events if isinstance(event, FileAdded)]
        last = said[-1] if said else Message("assistant", "")
        outcome = Outcome(
            answer=last.text if last.role == "assistant" else "",
            files=[(file.name, file.alt or "", self._store.read(file.sha256)) for file in made],
            calls=[(call.name, call.arguments) for message in said for call in message.tool_calls],
            shopping_list=_shopping_list(tools),
        )
        return Row(
            task.name,
            task.check(outcome),
            len(usage),
            sum(one.completion for one in usage),
            seconds,
            "; ".join([f"{end.status}/{end.reason}", *errors]),
            outcome.answer,
            [message.as_dict() for message in said],
        )


def _shopping_list(tools: Sequence[Tool]) -> dict[str, float]:
    """What functions have written down; each task has loaded their file anew."""
    for tool in tools:
        if tool.name == "add_to_shopping_list":
            return dict(tool.__wrapped__.__globals__["SHOPPING_LIST"])  # type: ignore[attr-defined]
    return {}


@contextmanager
def bench(model: str, max_tokens: int, **options: Any) -> Iterator[Bench]:
    """A model that has answered nothing yet, and a place for it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        agent_task_web.local_web() as port,
        LLM(model, **options) as llm,
    ):
        yield Bench(llm, Path(folder), port, max_tokens)


def _cells(row: Row | None) -> list[object]:
    if row is None:
        return ["–"] * 4
    return ["pass" if row.passed else "fail", row.rounds, row.written, round(row.seconds)]


def _summary(rows: Sequence[Row]) -> str:
    solved = sum(row.passed for row in rows)
    tokens = sum(row.written for row in rows)
    seconds = sum(row.seconds for row in rows)
    rounds = sum(row.rounds for row in rows)
    share = f"{solved} of {len(rows)} ({solved / max(1, len(rows)):.0%})"
    return f"{share}; {rounds} rounds, {tokens} tokens written, {seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter-large")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in tasks()], metavar="NAME")
    parser.add_argument("--grammars", choices=("on", "off", "both"), default="both")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--max-tokens", type=int, default=300, help="of each round")
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--json", action="store_true", help="with what was said")
    arguments = parser.parse_args()
    facts = harness.facts(1) | {"rounds": "1; greedy"}
    chosen = [task for task in tasks() if arguments.tasks is None or task.name in arguments.tasks]
    modes = {"on": (True,), "off": (False,), "both": (True, False)}[arguments.grammars]
    found: dict[bool, list[Row]] = {}
    for grammars in modes:
        label = f"grammars {'on' if grammars else 'off'}"
        harness.progress(f"{label}: loading")
        with bench(
            arguments.model, arguments.max_tokens,
            dtype=arguments.dtype, max_model_len=arguments.context, max_num_seqs=1, num_threads=arguments.threads,
        ) as place:  # fmt: skip
            rows = found.setdefault(grammars, [])
            with suppress(KeyboardInterrupt):  # what there is, is printed
                for number, task in enumerate(chosen, 1):
                    solved = sum(row.passed for row in rows)
                    harness.progress(f"{label}: task {number}/{len(chosen)}, {task.name} ({solved} solved)")
                    rows.append(place.run(task, grammars=grammars))
    harness.progress("")
    facts |= {f"grammars {'on' if grammars else 'off'}": _summary(rows) for grammars, rows in found.items()}
    if arguments.json:
        listed = [{"grammars": grammars, **vars(row)} for grammars, rows in found.items() for row in rows]
        print(json.dumps({"facts": facts, "rows": listed}, indent=2, ensure_ascii=False))
        return
    titles = ["task", *(f"{word}, {side}" for side in _sides(found) for word in ("result", "rounds", "tokens", "s"))]
    lines = [
        [task.name, *(cell for rows in found.values() for cell in _cells(rows[at] if at < len(rows) else None))]
        for at, task in enumerate(chosen)
    ]
    print(f"{harness.bullets(facts)}\n\n{harness.table(titles, lines)}")


def _sides(found: dict[bool, list[Row]]) -> list[str]:
    return ["grammars" if grammars else "no grammars" for grammars in found]


if __name__ == "__main__":
    main()
