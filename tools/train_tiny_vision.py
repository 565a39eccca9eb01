"""Trains a GLM-4V of 0.4 million parameters to answer questions about pictures: `python tools/train_tiny_vision.py`.

Writes tests/golden/vision/trained (a checkpoint in glm-4v-9b's layout, bfloat16) and tests/golden/vision/digits.npz.
Run it with .venv-golden/bin/python, which `make golden` sets up; it takes some minutes on two cores. The model is the
torch reference of tools/golden/vision.py, the pictures are those of tests/vision_pictures.py and scikit-learn's digits.

Prompts have GLM-4's format. The weights are rounded to bfloat16 or to 4 bits in random steps, so that the model answers
alike in every number format; gradients pass through the rounding.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "tests", "src")]

import golden_models as gm  # noqa: E402
import vision_models as vm  # noqa: E402
import vision_pictures as vp  # noqa: E402
from glm4.tokenizer import load_tokenizer  # noqa: E402
from glm4.tokenizer.tiktoken_tokenizer import GLM4_PATTERN, GLM4_SPECIAL_TOKENS  # noqa: E402
from golden import vision  # noqa: E402
from golden.files import write_json, write_npz  # noqa: E402

HELD_OUT_DIGITS = 360
SCENES, DIGIT_DRAWINGS = 16_000, 8  # drawn once; each step flips scenes, which changes no answer
BATCH_SCENES, BATCH_DIGITS = 40, 24
VOCABULARY = 320
IGNORED = -100


def shape(ids: dict[str, int]) -> vm.TinyVision:
    text = gm.TinyModel(
        "glm-4v-trained", 0, "chatglm", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128,
        num_hidden_layers=3, head_dim=16, max_position_embeddings=1024,
    )  # fmt: skip
    return vm.TinyVision(
        text, num_hidden_layers=4, hidden_size=64, intermediate_size=192,
        end_of_text=ids["<|endoftext|>"], begin_of_image=ids["<|begin_of_image|>"],
        end_of_image=ids["<|end_of_image|>"],
    )  # fmt: skip


def write_tokenizer(folder: Path) -> dict[str, int]:
    """`tokenizer.model`: 256 bytes and the words of questions and answers, then GLM-4's special tokens; their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        *(text for pair in vp.QUESTIONS.values() for text in pair),
        *(word for row in vp.COLORS for word in row[:2]),
    ]
    words = {piece.encode(): None for text in texts for piece in regex.findall(GLM4_PATTERN, text)}
    pieces = [*(bytes([byte]) for byte in range(256)), *(word for word in words if len(word) > 1)]
    lines = [base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    ids = {name: len(pieces) + index for index, name in enumerate(GLM4_SPECIAL_TOKENS)}
    added = {str(token): {"content": name, "special": True} for name, token in ids.items()}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, "eos_token": "<|endoftext|>"})
    return ids


class Renderer:
    """Conversations as ids, with labels on the answers and on the `<|user|>` after each."""

    def __init__(self, folder: Path, ids: dict[str, int]) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.ids = ids
        self.before = [ids["[gMASK]"], ids["<sop>"], ids["<|user|>"], *self.encode("\n")]

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text))

    def after(self, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """What follows the picture: ids, and for each of them the id that must come next, or IGNORED."""
        ids: list[int] = []
        targets: list[int] = []
        for index, (question, answer) in enumerate(turns):
            asked = [*(self.encode("\n") if index else []), *self.encode(question), self.ids["<|assistant|>"]]
            answered = [*self.encode("\n" + answer), self.ids["<|user|>"]]
            ids += asked + answered
            targets += [IGNORED] * (len(asked) - 1) + answered + [IGNORED]
        return ids, targets


@dataclass
class Pictures:
    """Drawn pictures at the model's size, uint8 [N, S, S, 3], and their answers."""

    pixels: NDArray[np.uint8]
    answers: list[dict[str, tuple[str, str]]]

    @classmethod
    def of(cls, drawn: list[vp.Picture], size: int) -> Pictures:
        return cls(np.stack([vision.resized(one.pixels, size) for one in drawn]), [one.answers for one in drawn])


def split_digits() -> tuple[list[tuple[NDArray[np.uint8], int]], list[tuple[NDArray[np.uint8], int]]]:
    """Scikit-learn's 1,797 digits: for training, held out."""
    data: Any = load_digits()
    order = np.random.RandomState(7).permutation(len(data.target))
    rows = [(data.images[i].astype(np.uint8), int(data.target[i])) for i in order]
    return rows[HELD_OUT_DIGITS:], rows[:HELD_OUT_DIGITS]


class Batches:
    """Random batches: pixels [B, S, S, 3], ids after the picture [B, T] and their targets, padded at the end."""

    def __init__(self, renderer: Renderer, scenes: Pictures, digits: Pictures, seed: int) -> None:
        self.renderer, self.scenes, self.digits = renderer, scenes, digits
        self.rng = np.random.RandomState(seed)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pixels, rendered = [], []
        for pictures, count in ((self.scenes, BATCH_SCENES), (self.digits, BATCH_DIGITS)):
            for index in self.rng.randint(0, len(pictures.answers), count):
                picture = pictures.pixels[index]
                if pictures is self.scenes:
                    picture = picture[:: self.rng.choice((1, -1)), :: self.rng.choice((1, -1))]
                    picture = picture.transpose(1, 0, 2) if self.rng.randint(2) else picture
                pixels.append(picture)
                rendered.append(self.renderer.after(self.turns(pictures.answers[index])))
        longest = max(len(ids) for ids, _ in rendered)
        pad = self.renderer.ids["<|endoftext|>"]
        ids = [one + [pad] * (longest - len(one)) for one, _ in rendered]
        targets = [one + [IGNORED] * (longest - len(one)) for _, one in rendered]
        return torch.from_numpy(np.stack(pixels)), torch.tensor(ids), torch.tensor(targets)

    def turns(self, answers: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
        """Every question that the picture answers, in random order and languages."""
        kinds = self.rng.permutation(sorted(answers))
        return [(vp.QUESTIONS[k][which], answers[k][which]) for k in kinds for which in (self.rng.randint(2),)]


def conversation_logits(
    model: vision.GLM4V, renderer: Renderer, pixels: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Logits [B, T, V] of the rows after the picture."""
    rows = model.vision(pixels)
    before = torch.tensor(renderer.before).expand(len(ids), -1)
    h = model.embed(before, rows, ids)
    first = h.shape[1] - ids.shape[1]
    positions = vision.row_positions(h.shape[1], before.shape[1], rows.shape[1])
    return model.run(h, positions)[:, first:]


def four_bits(weight: torch.Tensor) -> torch.Tensor:
    """A matrix rounded to 16 evenly spaced values per row and group of 32 columns."""
    rows = weight.flatten(1)
    groups = functional.pad(rows, (0, -rows.shape[1] % 32)).unflatten(1, (-1, 32))
    low = groups.amin(2, keepdim=True)
    step = ((groups.amax(2, keepdim=True) - low) / 15).clamp_min(1e-8)
    rounded = ((groups - low) / step).round() * step + low
    return rounded.flatten(1)[:, : rows.shape[1]].view_as(weight)


@contextmanager
def rounded_weights(model: nn.Module, bits: int) -> Iterator[None]:
    """Every matrix in 4 bits, or everything in bfloat16 (bits 16), and the exact weights again afterwards."""
    kept = {name: value.data for name, value in model.named_parameters()}
    for value in model.parameters():
        is_matrix = value.ndim >= 2 and value.shape[0] > 1
        value.data = four_bits(value.data) if bits == 4 and is_matrix else value.data.bfloat16().float()
    try:
        yield
    finally:
        for name, value in model.named_parameters():
            value.data = kept[name]


def initialize(model: vision.GLM4V) -> None:
    for name, value in model.named_parameters():
        if value.ndim >= 2 and value.shape[0] > 1:
            fan_in = value[0].numel()
            nn.init.normal_(value, std=0.02 if "embedding" in name and "proj" not in name else fan_in**-0.5)
        elif "boi" in name or "eoi" in name or "cls" in name:
            nn.init.normal_(value, std=0.1)


def train(model: vision.GLM4V, batches: Batches, steps: int, rate: float, test: Pictures) -> None:
    matrices = [value for value in model.parameters() if value.ndim >= 2]
    vectors = [value for value in model.parameters() if value.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    start, mean = time.monotonic(), 0.0
    for step in range(steps):
        pixels, ids, targets = batches.draw()
        with rounded_weights(model, 4 if step > steps // 3 and step % 2 else 16):
            logits = conversation_logits(model, batches.renderer, pixels, ids)
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean = loss.item() if step == 0 else 0.99 * mean + 0.01 * loss.item()
        if step % 500 == 499:
            seconds, right = time.monotonic() - start, accuracy(model, batches.renderer, test)
            print(f"  step {step + 1}: loss {mean:.4f}, {seconds:.0f} s, {right}", flush=True)


def accuracy(model: vision.GLM4V, renderer: Renderer, pictures: Pictures, shift: int = 0) -> dict[str, float]:
    """Part of the questions in both languages answered rightly, by kind.

    Args:
        shift: ask about the picture that comes so much later among those with the same questions.
    """
    right: dict[str, list[bool]] = {}
    for kind in vp.QUESTIONS:
        where = [index for index, answers in enumerate(pictures.answers) if kind in answers]
        shown = torch.from_numpy(pictures.pixels[np.roll(where, -shift)])
        for language, question in enumerate(vp.QUESTIONS[kind]):
            ids = torch.tensor([*renderer.encode(question), renderer.ids["<|assistant|>"], *renderer.encode("\n")])
            with torch.no_grad():
                logits = conversation_logits(model, renderer, shown, ids.expand(len(where), -1))
            found = logits[:, -1].argmax(-1).tolist()
            expected = [renderer.encode(pictures.answers[index][kind][language])[0] for index in where]
            right.setdefault(kind, []).extend(a == b for a, b in zip(found, expected, strict=True))
    all_answers = [one for answers in right.values() for one in answers]
    return {kind: float(np.mean(answers).round(4)) for kind, answers in {**right, "all": all_answers}.items()}


def save(folder: Path, model: vision.GLM4V, tiny: vm.TinyVision) -> None:
    settings = vm.vision_config_json(tiny) | {"torch_dtype": "bfloat16"}
    names = ("<|endoftext|>", "<|user|>", "<|observation|>")
    added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    settings["eos_token_id"] = [int(token) for token, entry in added.items() if entry["content"] in names]
    write_json(folder / "config.json", settings)
    state = {name: value.detach().bfloat16().contiguous() for name, value in sorted(model.state_dict().items())}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=gm.GOLDEN / "vision" / "trained", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ids = write_tokenizer(args.out)
    tiny, renderer = shape(ids), Renderer(args.out, ids)
    known, held_out = split_digits()
    images, labels = (np.stack(column) for column in zip(*held_out, strict=True))
    write_npz(vp.DIGITS_FILE, {"images": images, "labels": labels.astype(np.uint8)})
    rng = np.random.RandomState(1)
    scenes = Pictures.of([vp.draw_scene(rng) for _ in range(SCENES)], tiny.image_size)
    drawn = [vp.draw_digit(rng, *row) for row in known for _ in range(DIGIT_DRAWINGS)]
    digits = Pictures.of(drawn, tiny.image_size)
    model = vision.GLM4V(tiny)
    initialize(model)
    size = sum(value.numel() for value in model.parameters())
    print(f"{size:,} parameters, {len(scenes.answers):,} scenes, {len(digits.answers):,} digits", flush=True)
    test = Pictures.of(vp.held_out(300, HELD_OUT_DIGITS), tiny.image_size)
    train(model, Batches(renderer, scenes, digits, 2), args.steps, args.rate, test)
    save(args.out, model, tiny)
    for bits in (16, 4):
        with rounded_weights(model, bits):
            print(f"{bits} bits", accuracy(model, renderer, test), "others", accuracy(model, renderer, test, 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
