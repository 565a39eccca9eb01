"""Pictures with questions whose answers are known, for the trained tiny GLM-4V of tests/golden/vision.

Drawn in NumPy from a seed, at many sizes and aspect ratios; the model's own preprocessing makes them its size. Scenes
are laid out in the unit square, so that resizing without regard to the aspect ratio gives round circles again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

# English and Chinese name, red, green, blue
COLORS = (
    ("red", "红色", (215, 45, 45)),
    ("green", "绿色", (40, 165, 60)),
    ("blue", "蓝色", (45, 75, 215)),
    ("yellow", "黄色", (230, 210, 45)),
    ("white", "白色", (245, 245, 245)),
    ("black", "黑色", (15, 15, 15)),
)
MAX_SQUARES = 3
DIGITS_FILE = Path(__file__).parent / "golden" / "vision" / "digits.npz"

# kind of question -> English, Chinese
QUESTIONS = {
    "digit": ("Which digit is this?", "这是什么数字？"),
    "color": ("What color is the circle?", "圆形是什么颜色？"),
    "count": ("How many squares are there?", "图中有几个正方形？"),
}


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 [height, width, 3], and per kind of question the answer in English and in Chinese."""

    pixels: Pixels
    answers: dict[str, tuple[str, str]]


def draw_scene(rng: np.random.RandomState) -> Picture:
    """One circle and some squares, apart from each other, on a background of two tones with noise."""
    colors = rng.permutation(len(COLORS))
    count = int(rng.randint(MAX_SQUARES + 1))
    sizes = np.concatenate([rng.uniform(0.16, 0.2, 1), rng.uniform(0.1, 0.13, count)])
    centers = _apart(rng, sizes)
    canvas, x, y = _background(rng, rng.uniform(100, 160) + rng.uniform(-22, 22, 3))
    for index, ((cx, cy), size) in enumerate(zip(centers, sizes, strict=True)):
        color = colors[0] if index == 0 else colors[rng.randint(1, len(colors))]
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        inside = dx**2 + dy**2 < size**2 if index == 0 else np.maximum(dx, dy) < size
        canvas[inside] = COLORS[color][2] + rng.uniform(-15, 15, 3)
    english, chinese, _ = COLORS[colors[0]]
    answers = {"color": (english, chinese), "count": (str(count), str(count))}
    return Picture(_noisy(rng, canvas), answers)


def _apart(rng: np.random.RandomState, sizes: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Centers of shapes with these half sizes, such that no two touch and none leaves the picture."""
    while True:
        centers: list[NDArray[np.float64]] = []
        for size in sizes:
            for _ in range(30):
                center = rng.uniform(size + 0.02, 0.98 - size, 2)
                pairs = zip(centers, sizes, strict=False)
                if all(np.abs(center - other).max() > size + far + 0.03 for other, far in pairs):
                    centers.append(center)
                    break
        if len(centers) == len(sizes):
            return centers


def draw_digit(rng: np.random.RandomState, digit: NDArray[np.uint8], label: int) -> Picture:
    """A handwritten digit (uint8 [8, 8], 0 to 16) in ink on paper, slightly moved, turned and scaled."""
    dark, light = rng.uniform(0, 80, 3), rng.uniform(165, 250, 3)
    paper, ink = (dark, light) if rng.randint(2) else (light, dark)
    canvas, x, y = _background(rng, paper)
    angle, scale = rng.uniform(-0.12, 0.12), rng.uniform(0.8, 0.98)
    moved_x, moved_y = x - 0.5 - rng.uniform(-0.05, 0.05), y - 0.5 - rng.uniform(-0.05, 0.05)
    column = (np.cos(angle) * moved_x + np.sin(angle) * moved_y) / scale * 8 + 4.5
    row = (np.cos(angle) * moved_y - np.sin(angle) * moved_x) / scale * 8 + 4.5
    weight = _bilinear(np.pad(digit.astype(np.float32) / 16, 1), row, column)[..., None]
    canvas = canvas * (1 - weight) + ink.astype(np.float32) * weight
    return Picture(_noisy(rng, canvas), {"digit": (str(label), str(label))})


def _bilinear(values: Floats, row: Floats, column: Floats) -> Floats:
    """`values` between its entries, those at the edge outside."""
    row, column = row.clip(0, values.shape[0] - 1.001), column.clip(0, values.shape[1] - 1.001)
    top, left = row.astype(int), column.astype(int)
    down, right = (row - top).astype(np.float32), (column - left).astype(np.float32)
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


def _background(rng: np.random.RandomState, tone: NDArray[np.float64]) -> tuple[Floats, Floats, Floats]:
    """A canvas of random size whose tone changes from edge to edge, and x and y of its pixels in the unit square."""
    height, width = rng.randint(56, 113, 2)
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    x, y = x.astype(np.float32), y.astype(np.float32)
    slope = rng.uniform(-25, 25, 2)
    shade = slope[0] * (x - 0.5) + slope[1] * (y - 0.5)
    return (tone + shade[..., None]).astype(np.float32), x, y


def _noisy(rng: np.random.RandomState, canvas: Floats) -> Pixels:
    strength = rng.randint(1, 16)
    noise = rng.randint(-strength, strength + 1, canvas.shape)
    return (canvas + noise).clip(0, 255).astype(np.uint8)


def held_out(scenes: int, num_digits: int, seed: int = 900_000) -> list[Picture]:
    """Pictures that training has not seen: scenes, then held-out digits (of which the file has 360), each once."""
    rng = np.random.RandomState(seed)
    with np.load(DIGITS_FILE) as file:
        digits, labels = file["images"][:num_digits], file["labels"][:num_digits]
    drawn = [draw_digit(rng, digit, int(label)) for digit, label in zip(digits, labels, strict=True)]
    return [draw_scene(rng) for _ in range(scenes)] + drawn
