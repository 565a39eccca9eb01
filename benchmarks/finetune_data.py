"""Conversations of mixed lengths from the standard library's docstrings, and a model to train on them, in files.

Nothing here needs torch: the peers get the token ids and the loss mask that our own text side made.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.chat.chat_request import ChatRequest
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.export.targets import ExportRequest, export_target
from glm4.requests.processor import Processor
from glm4.tokenizer.tiktoken_tokenizer import GLM4_SPECIAL_TOKENS

MODULES = (
    "argparse", "asyncio", "bisect", "calendar", "collections", "configparser", "contextlib", "copy", "csv", "datetime",
    "decimal", "difflib", "email.message", "fnmatch", "fractions", "functools", "glob", "gzip", "hashlib", "heapq",
    "html", "http.client", "importlib", "inspect", "io", "ipaddress", "itertools", "json", "locale", "logging", "math",
    "mimetypes", "operator", "os", "os.path", "pathlib", "pickle", "platform", "pprint", "queue", "random", "re",
    "secrets", "shlex", "shutil", "signal", "socket", "sqlite3", "statistics", "string", "struct", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "time", "tokenize", "traceback", "types", "unittest",
    "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "xml.etree.ElementTree", "zipfile", "zlib",
)  # fmt: skip

GLM4_RANKS = 151329  # of GLM-4's tokenizer.model; the special tokens follow
_END, _USER, _OBSERVATION = (
    GLM4_RANKS + GLM4_SPECIAL_TOKENS.index(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")
)

Rows = list[tuple[NDArray[np.int32], NDArray[np.bool_]]]
"""Token ids of each conversation, and which of them carry loss."""


def documented(modules: Sequence[str] = MODULES) -> Iterator[tuple[str, str, Any]]:
    """Module, name and object of everything public in these modules that is called and has a docstring of its own."""
    for module in modules:
        space = importlib.import_module(module)
        for name, value in sorted(vars(space).items()):
            if name.startswith("_") or not callable(value) or not inspect.getdoc(value):
                continue
            if getattr(value, "__module__", module) in (module, None) or inspect.isbuiltin(value):
                yield module, name, value


def conversations(count: int, seed: int) -> list[list[dict[str, str]]]:
    """What functions do, or what a docstring says in short; most conversations are short, a few many times as long."""
    draw = random.Random(seed)
    known = [(f"{module}.{name}", inspect.getdoc(value) or "") for module, name, value in documented()]
    made = []
    for _ in range(count):
        messages: list[dict[str, str]] = []
        wanted = draw.lognormvariate(math.log(700), 0.8)  # characters
        while not messages or sum(len(message["content"]) for message in messages) < wanted:
            name, text = draw.choice(known)
            text = text[: int(max(80, wanted))]
            asked, answered = f"What does Python's `{name}` do?", text
            if draw.random() < 0.5:
                asked, answered = f"Sum this up in a line:\n\n{text}", text.partition("\n")[0]
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        made.append(messages)
    return made


def write_rows(path: Path, made: Sequence[list[dict[str, str]]]) -> None:
    """One conversation per line, as `glm4 finetune` reads them."""
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in made), encoding="utf-8")


def tokenized(model: Path, made: Sequence[list[dict[str, str]]]) -> Rows:
    """Ids and loss mask of each conversation, by the model's own dialect."""
    with open_checkpoint(model) as checkpoint:
        processor = Processor.load(checkpoint)
    rows: Rows = []
    for messages in made:
        request = ChatRequest.of(messages, add_generation_prompt=False)
        ids, mask = processor.dialect.loss_mask(request, tokenizer=processor.tokenizer, template=processor.template)
        rows.append((np.array(ids, np.int32), np.array(mask)))
    return rows


def save_tokens(path: Path, rows: Rows) -> None:
    """For `load_tokens`, in another process."""
    lengths = np.array([len(ids) for ids, _ in rows])
    np.savez(path, lengths=lengths, ids=np.concatenate([r[0] for r in rows]), mask=np.concatenate([r[1] for r in rows]))


def load_tokens(path: Path) -> Rows:
    """What `save_tokens` wrote."""
    with np.load(path) as file:
        ends = np.cumsum(file["lengths"])[:-1]
        return list(zip(np.split(file["ids"], ends), np.split(file["mask"], ends), strict=True))


def peak_nbytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def export_hf(source: Path, folder: Path) -> None:
    """A checkpoint as Hugging Face's classes load it, in fp32, with its tokenizer."""
    with open_checkpoint(source) as checkpoint:
        export_target("hf").export(ExportRequest(checkpoint, folder, "fp32"))


def write_random_glm(folder: Path, layers: int, hidden: int, seed: int = 0) -> None:
    """A small GLM with random weights and GLM-4's whole vocabulary, which is that of splintr-rs."""
    import splintr
    from safetensors.numpy import save_file

    folder.mkdir()
    source = splintr.Tokenizer.from_pretrained("glm4")
    pieces = (bytes(source.decode_token_bytes(rank)) for rank in range(GLM4_RANKS))
    (folder / "tokenizer.model").write_bytes(
        b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))
    )
    config = {
        "architectures": ["GlmForCausalLM"], "model_type": "glm", "vocab_size": 151552, "hidden_size": hidden,
        "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 8192,
        "rms_norm_eps": 1.5625e-07, "attention_bias": True, "attention_dropout": 0.0, "tie_word_embeddings": False,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "pad_token_id": _END,
        "eos_token_id": [_END, _USER, _OBSERVATION], "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {name: _draw(rng, name, shape) for name, shape in _shapes(layers, hidden).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _shapes(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    key_value, found = 128, dict[str, tuple[int, ...]]()
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for letter, rows in (("q", hidden), ("k", key_value), ("v", key_value)):
            found[f"{at}self_attn.{letter}_proj.weight"] = (rows, hidden)
            found[f"{at}self_attn.{letter}_proj.bias"] = (rows,)
        found[f"{at}self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{at}mlp.gate_up_proj.weight"] = (6 * hidden, hidden)
        found[f"{at}mlp.down_proj.weight"] = (hidden, 3 * hidden)
        found[f"{at}input_layernorm.weight"] = found[f"{at}post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    found["model.embed_tokens.weight"] = found["lm_head.weight"] = (151552, hidden)
    return found


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    scale = 0.02 if len(shape) < 2 or "embed" in name else shape[1] ** -0.5
    return rng.standard_normal(shape, np.float32) * np.float32(scale)
