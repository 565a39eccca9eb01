"""A small SVG: KL divergence (logarithmic) over bits per weight.

    python benchmarks/quality_picture.py RUN/quality.json [RUN/quality.json ...] > picture.svg

Runs of `quality.py` over the same tokens go into one picture; a format that is in several is taken from the last.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 860, 560, 80, 30, 30, 60
RADIUS, LINE, CHARACTER = 5, 15, 7.2  # of a dot, and of the text


def picture(points: list[tuple[str, float, float]]) -> str:
    """One dot and label per (name, bits per weight, KLD); our own formats are filled. Labels do not overlap."""
    bits, klds = [b for _, b, _ in points], [max(k, 1e-9) for _, _, k in points]
    first, last = math.floor(min(bits)), math.ceil(max(bits) + 0.2)
    low, high = math.floor(math.log10(min(klds))), math.ceil(math.log10(max(klds)))

    def x(value: float) -> float:
        return LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - math.log10(max(value, 1e-9))) / max(1, high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in range(first, last + 1):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{tick}</text>')
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 12}" text-anchor="middle">bits per weight, all in</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">mean KL divergence</text>'
    )
    dots = [(x(bit), y(kld)) for _, bit, kld in points]
    for (name, _, _), dot, word in zip(points, dots, label_places([name for name, _, _ in points], dots), strict=True):
        fill = "#c0392b" if name.startswith("int") else "white"
        line = f'x1="{dot[0]:.1f}" y1="{dot[1]:.1f}" x2="{word[0]:.1f}" y2="{word[1] - 4:.1f}"'
        parts.append(f'<line {line} stroke="#aaa"/>')
        parts.append(f'<circle cx="{dot[0]:.1f}" cy="{dot[1]:.1f}" r="{RADIUS}" fill="{fill}" stroke="#c0392b"/>')
        parts.append(f'<text x="{word[0]:.1f}" y="{word[1]:.1f}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def label_places(names: list[str], dots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each text begins: beside its dot, or the nearest place that is free of dots and of other texts."""
    taken = [(px - RADIUS, py - RADIUS, px + RADIUS, py + RADIUS) for px, py in dots]
    places = []
    steps = sorted(((dx, dy) for dx in range(-3, 4) for dy in range(-12, 13)), key=lambda s: abs(s[0]) * 3 + abs(s[1]))
    for name, (px, py) in zip(names, dots, strict=True):
        width = CHARACTER * len(name)
        for dx, dy in steps:
            left = px + 9 + dx * 40 if dx >= 0 else px - 9 - width + (dx + 1) * 40
            base = py + 4 + dy * LINE / 2
            box = (left, base - LINE + 3, left + width, base + 3)
            inside = left >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        places.append((left, base))
    return places


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def points_of(paths: list[Path]) -> list[tuple[str, float, float]]:
    """Name, bits and KLD of every format of some runs.

    Raises:
        SystemExit: they are not over the same tokens.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if len({run["ids_sha256"] for run in runs}) != 1:
        raise SystemExit("these runs are over different tokens: their figures do not belong into one picture")
    scores = {score["format"]: score for run in runs for score in run["scores"]}
    return [(name, score["bits_per_weight"], score["kld"]) for name, score in scores.items()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A picture of what `quality.py` found.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="JSON")
    sys.stdout.write(picture(points_of(parser.parse_args(argv).runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
