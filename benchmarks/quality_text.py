"""The token set of `quality.py`: text the model writes itself, this repository's documents and its source code.

Everything is made on the spot, with fixed seeds, from what the repository holds; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.backends.local import LocalBackend, LocalOptions
from glm4.chat.chat_request import ChatRequest
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.engine.protocol import GenerationRequest
from glm4.loading.weights import CanonicalTensors
from glm4.prompt import Prompt
from glm4.requests.processor import Processor
from glm4.sampling_params import SamplingParams

REPOSITORY = Path(__file__).resolve().parent.parent

# Share of tokens of each kind.
MIX = {"generated": 0.3, "english": 0.2, "chinese": 0.2, "code": 0.3}
SOURCES = {
    "english": ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/*.md"),
    "chinese": ("README_zh.md", "docs/zh/*.md"),
    "code": ("src/glm4/**/*.py", "csrc/*", "tests/**/*.py"),
}
PROMPTS = (
    "Explain to a student how a refrigerator moves heat from a cold place to a warm one.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "What were the main causes of the decline of the Roman Empire? Give a balanced account.",
    "Compare trains and aeroplanes for a journey of 600 km: cost, time, comfort and emissions.",
    "请用通俗的语言解释为什么天空是蓝色的，并举一个日常生活中的例子。",
    "写一篇关于秋天的散文，描写一个小镇清晨的景象。",
    "介绍一下中国古代四大发明，以及它们对世界的影响。",
    "我想学做西红柿炒鸡蛋，请给出详细的步骤和注意事项。",
    "Write a Python class for an LRU cache with get and put, and explain its complexity.",
    "Write a C function that reverses a singly linked list, and a test for it.",
    "写一个 Python 函数，判断一个字符串是不是合法的 IPv4 地址，并说明思路。",
    "Write a SQL query that finds the three best-selling products of each month.",
    "You may call get_weather(city: string, day: string). Answer only with JSON such as "
    '{"name": ..., "arguments": {...}}. What will the weather be in Hangzhou, Lyon and Nairobi tomorrow?',
    "Turn this into a JSON list of objects with the keys item, quantity and price: three apples at 0.5 each, "
    "two loaves of bread at 3.2 and a litre of milk at 1.1. Then do the same for five other purchases.",
    "你可以调用 search(query: string) 和 book_train(from: string, to: string, date: string)。"
    "用户想在下周五从北京去西安，请逐步写出需要的调用和参数（JSON）。",
    "Solve step by step: a tank is filled by two pipes in 6 and 9 hours and emptied by a third in 12. How long?",
)
ANSWER_TOKENS = 480


def token_set(checkpoint: Checkpoint, count: int, sequence: int, log: Callable[[str], None]) -> NDArray[np.int32]:
    """About `count` ids in whole sequences of `sequence` tokens."""
    text = Processor.load(checkpoint)
    kinds = {kind: max(1, round(count * share / sequence)) for kind, share in MIX.items()}
    sequences = [_documents(text, SOURCES[kind], kinds[kind], sequence) for kind in SOURCES]
    sequences.append(_generated(checkpoint, text, kinds["generated"], sequence))
    for kind, part in zip((*SOURCES, "generated"), sequences, strict=True):
        log(f"  {kind}: {part.size} tokens")
    return np.concatenate(sequences).reshape(-1)


def documents(text: Processor, count: int, sequence: int) -> NDArray[np.int32]:
    """The part of the token set that no model writes: about `count` ids of documents and code in whole sequences."""
    share = count / sequence / sum(MIX[kind] for kind in SOURCES)
    wanted = {kind: max(1, round(share * MIX[kind])) for kind in SOURCES}
    return np.concatenate([_documents(text, SOURCES[kind], wanted[kind], sequence) for kind in SOURCES]).reshape(-1)


def _documents(text: Processor, patterns: tuple[str, ...], wanted: int, sequence: int) -> NDArray[np.int32]:
    """Whole sequences of the files' text, spread evenly over all of it."""
    ids: list[int] = []
    for pattern in patterns:
        for path in sorted(REPOSITORY.glob(pattern)):
            if path.is_file():
                ids += text.tokenizer.encode(path.read_text(encoding="utf-8"))
    whole = np.array(ids[: len(ids) // sequence * sequence], np.int32).reshape(-1, sequence)
    chosen = np.unique(np.linspace(0, len(whole) - 1, min(wanted, len(whole))).round().astype(int))
    return whole[chosen]


def _generated(checkpoint: CanonicalTensors, text: Processor, wanted: int, sequence: int) -> NDArray[np.int32]:
    """Prompts and the model's own answers in float32, one conversation after the other."""
    options = LocalOptions(dtype="fp32", max_model_len=1024, max_num_seqs=16, speculation=False)
    backend = LocalBackend.load(checkpoint, options, text.tokenizer.unnamed_ids(checkpoint.config.vocab_size))
    prompts = {f"{i}": ids for i, ids in zip(range(wanted * sequence // 256 + 2), _rendered(text), strict=False)}
    answers: dict[str, list[int]] = {key: [] for key in prompts}
    for index, (key, ids) in enumerate(prompts.items()):
        params = SamplingParams(temperature=0.8, top_p=0.95, seed=index, max_tokens=ANSWER_TOKENS)
        stop = frozenset(checkpoint.config.eos_token_ids)
        backend.add_request(GenerationRequest(key, Prompt(ids), params, stop))
    while backend.has_unfinished_requests():
        for output in backend.step():
            answers[output.request_id] += output.token_ids
    ids = [token for key, prompt in prompts.items() for token in (*prompt, *answers[key])]
    whole = min(wanted, len(ids) // sequence)
    return np.array(ids[: whole * sequence], np.int32).reshape(-1, sequence)


def _rendered(text: Processor) -> Iterator[list[int]]:
    """The prompts in the model's chat format, again and again (each time answered with another seed)."""
    while True:
        for prompt in PROMPTS:
            yield list(text.render(ChatRequest.of([{"role": "user", "content": prompt}])).ids)
