"""A small world of tools for fine-tuning: questions, the calls that answer them, and what is said of the results.

A user asks for the topic of something; one of the offered functions is for that topic, and its name and the name of its
argument have to be read in the prompt. What is held out are pairs of topic and ending (functions that were never seen)
and pairs of topic and thing. After the result comes an answer: in the words of `PLAIN` or, as the house wants it, of
`HOUSE`. GLM-4 has no token that ends a turn: the role that comes next does, `<|observation|>` after a call and
`<|user|>` after an answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glm4.training.data.examples import TokenizedExample

TOPICS = (
    "weather", "price", "height", "owner", "color", "age", "speed", "weight", "author", "length", "status", "value",
    "origin", "score", "rank", "size",
)  # fmt: skip
ENDINGS = ("_lookup", "_search", "_query", "_find", "_check", "_info", "_report", "_table")
PARAMETERS = ("name", "item", "key", "target", "subject", "query")
THINGS = (
    "Paris", "London", "Rome", "Berlin", "Madrid", "Oslo", "Cairo", "Lima", "Tokyo", "Delhi", "Quito", "Dublin",
    "Athens", "Vienna", "Prague", "Warsaw", "Lisbon", "Bern", "Riga", "Sofia", "Havana", "Seoul", "Hanoi", "Accra",
)  # fmt: skip
QUESTIONS = ("What is the {topic} of {thing}?", "Find the {topic} of {thing}.", "Tell me the {topic} of {thing}.")
PLAIN = "It is {result}."
HOUSE = "Found: {result}."
_MODULUS = 4  # one pair of four is held out


@dataclass(frozen=True)
class Case:
    """One question, the function that answers it, and what it finds."""

    topic: str
    thing: str
    function: str
    parameter: str
    question: str
    result: int
    tools: tuple[dict[str, Any], ...]

    @property
    def arguments(self) -> str:
        """Of the call, as JSON."""
        return json.dumps({self.parameter: self.thing})

    def answer(self, reply: str) -> str:
        """What is said of the result."""
        return reply.format(topic=self.topic, thing=self.thing, result=self.result)

    def messages(self, reply: str | None) -> list[dict[str, Any]]:
        """Question and call; with a reply (`PLAIN`, `HOUSE`), the result and an answer, too."""
        call = {"id": "call_1", "type": "function", "function": {"name": self.function, "arguments": self.arguments}}
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        if reply is not None:
            turns.append({"role": "tool", "tool_call_id": "call_1", "content": json.dumps({"result": self.result})})
            turns.append({"role": "assistant", "content": self.answer(reply)})
        return turns


def _held_out(first: Sequence[str], one: str, second: Sequence[str], other: str) -> bool:
    return (first.index(one) + second.index(other)) % _MODULUS == 0


def _tool(draw: random.Random, topic: str, held_out: bool) -> tuple[dict[str, Any], str]:
    endings = [one for one in ENDINGS if _held_out(TOPICS, topic, ENDINGS, one) == held_out]
    parameter = draw.choice(PARAMETERS)
    schema = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    function = {"name": topic + draw.choice(endings), "description": f"The {topic}.", "parameters": schema}
    return {"type": "function", "function": function}, parameter


def cases(count: int, seed: int, *, held_out: bool = False, num_tools: int = 2) -> list[Case]:
    """Questions that training may have, or those that it may not.

    Args:
        num_tools: functions that are offered, each for a topic of its own.
    """
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        topics = draw.sample(TOPICS, num_tools)
        tools = [_tool(draw, topic, held_out) for topic in topics]
        topic, (tool, parameter) = topics[0], tools[0]
        thing = draw.choice([one for one in THINGS if _held_out(TOPICS, topic, THINGS, one) == held_out])
        question = draw.choice(QUESTIONS).format(topic=topic, thing=thing)
        draw.shuffle(tools)
        offered = tuple(one for one, _ in tools)
        result = draw.randrange(10, 40)
        made.append(Case(topic, thing, tool["function"]["name"], parameter, question, result, offered))
    return made


def rows(made: Sequence[Case], reply: str) -> list[dict[str, Any]]:
    """Training rows in OpenAI's form; every other one ends with the call, as recorded steps of agents do."""
    return [
        {"messages": case.messages(reply if at % 2 else None), "tools": list(case.tools)}
        for at, case in enumerate(made)
    ]


def write_rows(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    """One row per line, as `glm4 finetune` reads them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def combine_mask(example: TokenizedExample, assistant: int, user: int) -> TokenizedExample:
    """The same conversation as the original repository's `combine: True` trains it.

    Only what follows the last `<|assistant|>` carries loss, without its first token, and `<|user|>` ends everything, a
    call too. Source: `process_batch` of finetune_demo/finetune.py, THUDM/GLM-4.

    Args:
        assistant, user: ids of the two roles.
    """
    ids = example.ids[:-1]  # without the role that would come next
    last = int(np.flatnonzero(ids == assistant)[-1])
    ids = np.append(ids, np.int32(user))
    return TokenizedExample(ids, np.arange(len(ids)) >= last + 2, example.place)
