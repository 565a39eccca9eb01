"""What `glm4 data check` shows: counts, lengths, bad rows, and a sample whose learned tokens stand out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from glm4.requests.processor import Processor
    from glm4.training.config import DataConfig
    from glm4.training.data.check import DataCheck
    from glm4.training.data.examples import TokenizedExample

_SHOWN_PROBLEMS = 20
_SHOWN_TOKENS = 1500
_BAR_WIDTH = 40


def as_dict(found: DataCheck, processor: Processor) -> dict[str, Any]:
    """Everything, for programs. The example is tokens with what each is as text."""
    counts = ("max_length", "rows", "bad", "samples", "dropped", "too_long", "tokens", "targets", "cut_tokens",
              "cut_targets", "repeated")  # fmt: skip
    return {
        "files": [asdict(file) for file in found.files],
        **{name: getattr(found, name) for name in counts},
        "problems": [asdict(problem) for problem in found.problems],
        "notes": [
            {"note": note, "rows": count, "first": found.note_places[note]} for note, count in found.notes.items()
        ],
        "lengths": _lengths(found),
        "histogram": [{"from": low, "to": high, "samples": count} for low, high, count in found.histogram()],
        "examples": [_example(one, processor) for one in _shown_examples(found)],
    }


def _lengths(found: DataCheck) -> dict[str, int]:
    if not len(found.lengths):
        return {}
    levels = {"shortest": 0, "median": 50, "p90": 90, "p99": 99, "longest": 100}
    return {name: int(np.percentile(found.lengths, level, method="lower")) for name, level in levels.items()}


def _shown_examples(found: DataCheck) -> list[TokenizedExample]:
    from glm4.training.data.examples import TokenizedPreference

    if found.example is None:
        return []
    one = found.example
    return [one.chosen, one.rejected] if isinstance(one, TokenizedPreference) else [one]


def _example(one: TokenizedExample, processor: Processor) -> dict[str, Any]:
    decode = processor.tokenizer.decode
    tokens = [decode([token], skip_special_tokens=False) for token in one.ids.tolist()]
    return {"place": one.place, "ids": one.ids.tolist(), "tokens": tokens, "learned": one.mask.tolist()}


def show(found: DataCheck, processor: Processor, config: DataConfig) -> None:
    """Print everything on standard output."""
    from glm4.cli import console

    out = console.stdout()
    for file in found.files:
        out.print(console.printable(f"{file.name}: {file.rows:,} rows, format {file.format}"), soft_wrap=True)
    out.print(_summary(found, config))
    for (low, high, count), line in zip(found.histogram(), _histogram(found), strict=True):
        style = "yellow" if low > found.max_length else "blue"
        out.print(f"{low:>7,} to {high:>7,}  ", end="")
        out.print(line, style=style, end=" ")
        out.print(f"{count:,}", soft_wrap=True)
    for note, count in found.notes.items():
        where = console.printable(found.note_places[note])
        out.print(f"note: {note} ({count:,} rows, the first is {where})", style="yellow", soft_wrap=True)
    for problem in found.problems[:_SHOWN_PROBLEMS]:
        out.print(console.printable(f"{problem.place}: {problem.reason}"), style="red", soft_wrap=True)
    if found.bad > _SHOWN_PROBLEMS:
        out.print(f"… and {found.bad - _SHOWN_PROBLEMS:,} more bad rows (--json lists them)", style="red")
    colored = out.color_system is not None
    learned = "green" if colored else "⟦between brackets⟧"
    for one in _shown_examples(found):
        out.print(f"\n{console.printable(one.place)}: what is learned is {learned}", style="bold", soft_wrap=True)
        out.print(rendered(one, processor, colored=colored), soft_wrap=True)


def _summary(found: DataCheck, config: DataConfig) -> Table:
    from rich.table import Table

    from glm4.cli.console import printable

    lengths = _lengths(found)
    rows = [("rows", f"{found.rows:,}" + (f", {found.bad:,} of them bad" if found.bad else ", all good"))]
    rows.append(("samples", f"{found.samples:,}" + (f"; {found.dropped:,} dropped" if found.dropped else "")))
    if found.repeated:
        rows.append(("repeated", f"{found.repeated:,}, each the same as an earlier sample"))
    share = f" ({found.targets / found.tokens:.0%})" if found.tokens else ""
    rows.append(("tokens", f"{found.tokens:,}, {found.targets:,} learned{share}, loss {config.loss}"))
    if lengths:
        rows.append(("tokens per sample", ", ".join(f"{name} {value:,}" for name, value in lengths.items())))
    what = {"cut": "cut", "drop": "dropped", "error": "refused"}[config.long_samples]
    cut = f"; {found.cut_tokens:,} tokens lost, {found.cut_targets:,} of them to be learned" if found.cut_tokens else ""
    rows.append(
        (f"above {found.max_length:,}", f"{found.too_long:,} samples are {what}{cut}" if found.too_long else "none")
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(printable(label), printable(value))
    return table


def _histogram(found: DataCheck) -> list[str]:
    bins = found.histogram()
    most = max((count for _, _, count in bins), default=0)
    return ["█" * round(_BAR_WIDTH * count / most) or ("▏" if count else "") for _, _, count in bins]


def rendered(one: TokenizedExample, processor: Processor, *, colored: bool) -> Text:
    """The sample as text: special tokens visible; what carries loss is green, or between brackets, and its line breaks
    are seen. Rows of a picture are shown as their number.
    """
    from rich.text import Text

    from glm4.cli.console import printable

    text = Text()
    special = frozenset(processor.tokenizer.special_tokens.values())
    layout = processor.image
    starts = frozenset(one.image_starts)
    ids, mask = one.ids.tolist(), one.mask.tolist()
    at = 0
    before = False
    while at < min(len(ids), _SHOWN_TOKENS):
        if layout is not None and at in starts:
            text.append(f"[picture: {layout.num_rows} rows]", "cyan")
            at += layout.num_rows
            continue
        end = at + 1
        # Characters may consist of several tokens.
        while end < len(ids) and mask[end] == mask[at] and not {ids[end - 1], ids[end]} & special:
            end += 1
        if not colored and mask[at] != before:
            text.append("⟦" if mask[at] else "⟧")
        before = mask[at]
        style = "bold green" if mask[at] else "dim"
        if ids[at] in special:
            style = "bold green reverse" if mask[at] else "magenta"
        piece = printable(processor.tokenizer.decode(ids[at:end], skip_special_tokens=False))
        text.append(piece.replace("\n", "↵\n") if mask[at] else piece, style)
        at = end
    if not colored and before:
        text.append("⟧")
    if len(ids) > at:
        text.append(f"\n… and {len(ids) - at:,} more tokens", "dim")
    return text
