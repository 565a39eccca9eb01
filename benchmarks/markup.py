"""What the web page's Markdown costs the server per token: an answer of 10,000 tokens through `IncrementalRenderer`.

    python benchmarks/markup.py [--tokens 10000] [--json FILE]

The answer has headings, English and Chinese text, code, tables, lists and formulas, in pieces of one token (two to five
characters). Printed: milliseconds per token (median, 99th percentile), the last thousand tokens against the first, and
how much HTML a page receives. The peer renders the whole text so far at every token, on a tenth of the tokens: what a
server does that has no incremental renderer. Times are processor time of the one thread that renders, so that a busy
machine changes little.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from glm4.markup import CodeAdded, IncrementalRenderer
from glm4.markup.rendering import normalize, render_normalized

_SECTION = r"""## {n}. Attention and memory 注意力与显存

The **key-value cache** grows with the context: each token adds `2 * layers * heads * dim` values, so a context of
{n},000 tokens costs $2 L H d$ numbers per layer.
每一层都要读取全部缓存，因此长上下文的速度取决于内存带宽【{n}†source】。

1. First, the *prefill* reads the prompt in one pass.
2. Then each step appends one row to the cache:
   - 读取权重；
   - attend to all rows before it, \(O(n)\) per token;
   - write the new row.
3. See [the documentation](https://example.org/{n}) for details.

\[
\begin{{aligned}}
\mathrm{{softmax}}\left(\frac{{QK^\top}}{{\sqrt{{d}}}}\right) V &= \sum_i a_i v_i \\
a_i &= \frac{{e^{{s_i}}}}{{\sum_j e^{{s_j}}}}
\end{{aligned}}
\]

```python
def attend(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    scores = keys @ query / math.sqrt(query.shape[-1])  # 每个键一个分数
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()
```

| precision | bytes per token | 说明 |
|:----------|----------------:|------|
| float32   | {n}4,096 | $4 \times d$ |
| int8      | {n}1,024 | 默认 |
| int4      | {n}512 | 实验性的 |

> Note: the figures above depend on the machine，请以实测为准。

"""


def answer(tokens: int, seed: int = 7) -> list[str]:
    """An answer as the pieces in which a server gets it, one per token."""
    chance = random.Random(seed)
    pieces: list[str] = []
    text, number = "", 0
    while len(pieces) < tokens:
        if len(text) < 8:
            number += 1
            text += _SECTION.format(n=number)
        size = chance.randint(2, 5)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def timed(pieces: list[str], step: Callable[[str], int]) -> tuple[list[float], int]:
    """Milliseconds of processor time of each step, and the sum of what the steps return: characters that are sent."""
    times: list[float] = []
    sent = 0
    for piece in pieces:
        start = time.thread_time()
        sent += step(piece)
        times.append((time.thread_time() - start) * 1e3)
    return times, sent


def incremental() -> Callable[[str], int]:
    """A step of the incremental renderer."""
    renderer = IncrementalRenderer()

    def step(piece: str) -> int:
        updates = renderer.feed(piece)
        return sum(len(u.add) if isinstance(u, CodeAdded) else sum(map(len, u.blocks)) for u in updates)

    return step


def whole() -> Callable[[str], int]:
    """A step of a server that renders all of the text every time, and sends it."""
    text = ""

    def step(piece: str) -> int:
        nonlocal text
        text += piece
        return sum(map(len, render_normalized(normalize(text))))

    return step


def summary(name: str, times: list[float], sent: int) -> dict[str, object]:
    """One row: times in milliseconds, `sent` in thousands of characters."""
    part = min(1000, len(times) // 3)
    first, last = statistics.median(times[:part]), statistics.median(times[-part:])
    return {
        "method": name,
        "tokens": len(times),
        "median_ms": round(statistics.median(times), 3),
        "mean_ms": round(statistics.fmean(times), 3),
        "p99_ms": round(statistics.quantiles(times, n=100)[98], 2),
        "first_ms": round(first, 3),
        "last_ms": round(last, 3),
        "last_to_first": round(last / first, 2),
        "last_to_first_mean": round(statistics.fmean(times[-part:]) / statistics.fmean(times[:part]), 2),
        "sent_thousand_characters": round(sent / 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    arguments = parser.parse_args()
    pieces = answer(arguments.tokens)
    timed(pieces[:500], incremental())  # lexers and tables are loaded once
    rows = [summary("incremental", *timed(pieces, incremental()))]
    rows.append(summary("whole text every time", *timed(pieces[: max(30, arguments.tokens // 10)], whole())))
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
