"""`glm4 data`: check training data before it is trained on, and convert it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.parameters import Argument, AsJson, Exit, Option, UsageError

if TYPE_CHECKING:
    from glm4.requests.processor import Processor
    from glm4.training.config import DataConfig
    from glm4.training.data.formats.columns import Columns

EXAMPLES = """
glm4 data check train.jsonl -m glm-4-9b-chat
glm4 data check train.jsonl --max-length 1024 --loss last --row 17
glm4 data check table.csv --column instruction=question --column output=answer
glm4 data check train.jsonl --json
glm4 data convert sharegpt.json -o train.jsonl
"""

ACTIONS = ("check", "convert")
_LOSS, _LONG = ("all", "last", "text"), ("cut", "drop", "error")


def data(
    action: Annotated[
        str,
        Argument(metavar="ACTION", help="check FILE …: what training would read; convert FILE … -o OUT: our JSONL."),
    ],
    files: Annotated[
        list[str],
        Argument(
            metavar="FILE", help="jsonl, json, csv, tsv, parquet or txt, a folder, or owner/name of a hub data set."
        ),
    ],
    model: options.Model = "starter",
    format: Annotated[
        str,
        Option(
            metavar="FORMAT",
            help="auto, messages (original, openai), sharegpt, alpaca, text or preference.",
        ),
    ] = "auto",
    column: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=FIELD", help="The row's field for messages, tools, instruction, output …; may be repeated."
        ),
    ] = None,
    max_length: Annotated[int, Option(min=8, metavar="TOKENS", help="Tokens of a sample.")] = 2048,
    long_samples: Annotated[
        str, Option(metavar="WHAT", help="What becomes of longer ones: cut, drop or error.")
    ] = "cut",
    loss: Annotated[
        str, Option(metavar="TURNS", help="Which of the assistant's turns are learned: all, last, or text.")
    ] = "all",
    dataset_info: Annotated[
        str, Option(metavar="FILE", help="A dataset_info.json of LLaMA-Factory; FILE then names its entries.")
    ] = "",
    image_folder: Annotated[
        str, Option(metavar="FOLDER", help="Where relative paths of pictures begin; otherwise beside the file.")
    ] = "",
    row: Annotated[int | None, Option(min=1, metavar="LINE", help="Show this row, not the first.")] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="OUT", help="Of convert: the file to write.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check training data: every row, how long samples are, what is cut, and what carries loss.

    check lists each row that cannot be used with its line, the reason and what to do, and exits with 1 if there is one.
    The model need only be on this machine with its vocabulary; no weights are loaded. convert needs no model.
    """
    if action not in ACTIONS:
        raise UsageError(f"the action is check or convert, not {action!r}")
    if loss not in _LOSS:
        raise UsageError(f"--loss is {', '.join(_LOSS)}, not {loss!r}")
    if long_samples not in _LONG:
        raise UsageError(f"--long-samples is {', '.join(_LONG)}, not {long_samples!r}")
    if (output is None) == (action == "convert"):
        raise UsageError("convert needs -o OUT" if output is None else "-o is for convert")
    from glm4.training.config import DataConfig

    config = DataConfig(
        train=tuple(files),
        format=format,
        columns=_columns(column or []),
        loss=loss,  # type: ignore[arg-type]
        max_length=max_length,
        long_samples=long_samples,  # type: ignore[arg-type]
        image_folder=image_folder,
        dataset_info=dataset_info,
    )
    if output is not None:
        _convert(config, output, as_json=as_json)
    else:
        _check(config, model, row, as_json=as_json)


def _columns(given: list[str]) -> Columns:
    from difflib import get_close_matches

    from glm4.training.data.formats.columns import Columns

    known = [field.name for field in fields(Columns)]
    values = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not value:
            raise UsageError(f"--column is NAME=FIELD, not {one!r}")
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise UsageError(
                f"--column {name!r} is not known; {f'perhaps {near[0]}? ' * bool(near)}known are {', '.join(known)}"
            )
        values[name] = value
    return Columns(**values)


def _processor(model: str) -> Processor:
    from glm4 import hub
    from glm4.requests.processor import Processor
    from glm4.variants import get_variant

    return Processor.open(hub.resolve(model, allow_download=False), variant=get_variant(model))


def _check(config: DataConfig, model: str, row: int | None, *, as_json: bool) -> None:
    from glm4.cli import console
    from glm4.cli.data_report import as_dict, show
    from glm4.training.data.check import check_data

    processor = _processor(model)
    shown = "" if row is None else f"{config.train[0]}:{row}"
    with console.progress() as report:
        found = check_data(config, processor, shown=shown, progress=report)
    if as_json:
        console.print_json(as_dict(found, processor))
    else:
        show(found, processor, config)
    if row is not None and found.example is None:
        console.warning(f"there is no sample of {shown}; give the line at which a row begins")
    if found.bad or not found.samples:
        raise Exit(1)


def _convert(config: DataConfig, output: Path, *, as_json: bool) -> None:
    from glm4.cli import console
    from glm4.errors import TrainingDataError
    from glm4.system.atomic_file import atomic_file
    from glm4.system.text_encoding import well_formed
    from glm4.training.data.convert import as_row, whole_texts
    from glm4.training.data.dataset import data_sources

    if output.exists():
        raise UsageError(f"{output} exists; give another -o, or delete it")
    written, bad = 0, []
    train, validation = data_sources(config)
    with atomic_file(output) as file:
        for source in (*train, *validation):
            for example in whole_texts(example for _, example in source.open()[1]):
                if isinstance(example, TrainingDataError):
                    bad.append({"place": example.place, "reason": example.reason})
                    continue
                file.write(well_formed(json.dumps(as_row(example), ensure_ascii=False)).encode() + b"\n")
                written += 1
    if as_json:
        summary: dict[str, Any] = {"path": str(output), "rows": written, "bad": len(bad), "problems": bad[:100]}
        console.print_json(summary)
    else:
        for problem in bad[:20]:
            console.warning(f"{problem['place']}: {problem['reason']}")
        console.notice(f"{written:,} rows written to {output}" + (f"; {len(bad):,} left out" if bad else ""))
    if bad:
        raise Exit(1)
