"""A small world of tools for fine-tuning: conversations in GLM-4's dialect, a tiny vocabulary and a tiny model.

A user asks for the topic of something; one of two offered functions is for that topic, and its name and the name of its
argument have to be read in the prompt. What is held out are pairs of topic and ending (functions that were never seen)
and pairs of topic and thing. After the result comes an answer: in the words of `PLAIN` or, as the house wants it, of
`HOUSE`. GLM-4 has no token that ends a turn: the role that comes next does, `<|observation|>` after a call and
`<|user|>` after an answer.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import dialect_for
from glm4.tokenizer import load_tokenizer
from glm4.tokenizer.tiktoken_tokenizer import GLM4_PATTERN, GLM4_SPECIAL_TOKENS
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
HOUSE = "The {topic} of {thing} is {result}."
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

    def messages(self, reply: str | None) -> list[dict[str, Any]]:
        """Question and call; with a reply (`PLAIN`, `HOUSE`), the result and an answer, too."""
        call = {"id": "call_1", "type": "function", "function": {"name": self.function, "arguments": self.arguments}}
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        if reply is not None:
            answer = reply.format(topic=self.topic, thing=self.thing, result=self.result)
            turns.append({"role": "tool", "tool_call_id": "call_1", "content": json.dumps({"result": self.result})})
            turns.append({"role": "assistant", "content": answer})
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
        result = draw.randrange(10, 100)
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


# ---- The model ----


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.model` with 256 bytes and every word of this world, then GLM-4's special tokens."""
    words = dict.fromkeys(piece.encode() for text in _texts(folder) for piece in regex.findall(GLM4_PATTERN, text))
    _write_pieces(folder, [*(bytes([byte]) for byte in range(256)), *(word for word in words if len(word) > 1)])


def _write_pieces(folder: Path, pieces: Sequence[bytes]) -> None:
    lines = [base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    added = {str(len(pieces) + at): {"content": name, "special": True} for at, name in enumerate(GLM4_SPECIAL_TOKENS)}
    settings = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _texts(folder: Path) -> list[str]:
    """Conversations with everything that can occur, rendered, between their special tokens."""
    _write_pieces(folder, [bytes([byte]) for byte in range(256)])
    tokenizer, dialect = load_tokenizer(folder), dialect_for("glm4")
    found: list[str] = []
    for case in [*cases(400, 1), *cases(400, 2, held_out=True)]:
        for reply in (PLAIN, HOUSE):
            request = ChatRequest.of(case.messages(reply), tools=case.tools, add_generation_prompt=False)
            found += regex.split(r"<[^<>]*>|\[gMASK\]", dialect.render_text(request, tokenizer=tokenizer))
    found += [f" {number}" for number in range(10, 100)]
    return list(dict.fromkeys(found))


def write_model(folder: Path, *, hidden: int = 128, layers: int = 2, seed: int = 0) -> Path:
    """A GLM with random weights in Hugging Face's layout, and its vocabulary."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    special = {name: tokenizer.special_id(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")}
    size = -(-(max(tokenizer.special_tokens.values()) + 1) // 64) * 64
    config = {
        "architectures": ["GlmForCausalLM"], "model_type": "glm", "vocab_size": size, "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32, "head_dim": 32, "hidden_act": "silu", "max_position_embeddings": 1024,
        "rms_norm_eps": 1.5625e-07, "attention_bias": True, "attention_dropout": 0.0, "tie_word_embeddings": False,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "pad_token_id": special["<|endoftext|>"],
        "eos_token_id": list(special.values()), "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {name: _draw(rng, name, shape) for name, shape in _shapes(size, hidden, layers).items()}
    # A head that begins as the embedding copies words soon.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * np.float32(hidden**-0.5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _shapes(vocabulary: int, hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for letter in "qkv":
            found[f"{at}self_attn.{letter}_proj.weight"] = (hidden, hidden)
            found[f"{at}self_attn.{letter}_proj.bias"] = (hidden,)
        found[f"{at}self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{at}mlp.gate_up_proj.weight"] = (4 * hidden, hidden)
        found[f"{at}mlp.down_proj.weight"] = (hidden, 2 * hidden)
        found[f"{at}input_layernorm.weight"] = found[f"{at}post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    found["model.embed_tokens.weight"] = found["lm_head.weight"] = (vocabulary, hidden)
    return found


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    # What layers add to the stream is small beside the words in it, at first.
    scale = 1.0 if "embed" in name else shape[1] ** -0.5 * (0.2 if "o_proj" in name or "down" in name else 1.0)
    return rng.standard_normal(shape, np.float32) * np.float32(scale)
