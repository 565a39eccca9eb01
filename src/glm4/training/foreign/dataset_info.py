"""LLaMA-Factory's dataset_info.json: names of data sets, where each is, and what its rows' fields are called."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glm4.errors import TrainingDataError, shown
from glm4.system.strict_json import finite_float, refuse_constant
from glm4.training.data.formats.columns import Columns

_MAX_NBYTES = 16 << 20
_NO_COLUMN = "\0"  # a name that no row has


@dataclass(frozen=True)
class DatasetEntry:
    """One data set.

    Attributes:
        source: a file or folder, or a data set of the hub ("owner/name" or "owner/name/subset", with ":split"); with
            "#N", only its first N rows.
        format: a name of `FORMATS`.
    """

    source: str
    format: str
    columns: Columns


def read_dataset_info(path: Path, names: Sequence[str], *, plain_text: bool) -> list[DatasetEntry]:
    """The data sets with these names.

    Args:
        names: each may end in `#N`, as those of files.
        plain_text: rows are for continued pre-training: the text is what the entry calls the prompt.

    Raises:
        TrainingDataError: the file cannot be read, has no such data set, or describes one that is not read here.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_NBYTES + 1)
        if len(data) > _MAX_NBYTES:
            raise TrainingDataError(f"{path} is larger than {_MAX_NBYTES >> 20} MiB; is it a dataset_info.json?")
        known = json.loads(data, parse_constant=refuse_constant, parse_float=finite_float)
    except (ValueError, RecursionError) as error:
        raise TrainingDataError(f"{path} is not JSON: {error}") from None
    except OSError as error:
        raise TrainingDataError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(known, dict):
        raise TrainingDataError(f"{path} must be an object: name of a data set → what it is")
    return [_entry(path, known, name, plain_text=plain_text) for name in names]


def _entry(path: Path, known: Mapping[str, Any], written: str, *, plain_text: bool) -> DatasetEntry:
    name, _, count = written.partition("#")
    where = f"{path}: {name}"
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise TrainingDataError(
            f"{path} has no data set {shown(name)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    raw = known[name]
    if not isinstance(raw, Mapping):
        raise TrainingDataError(f"{where}: must be an object")
    for key, value in raw.items():
        reason = _REFUSED.get(key)
        if key not in _KNOWN and not reason:
            raise TrainingDataError(f"{where}: {shown(key)} is not known; known are {', '.join(_KNOWN)}")
        if reason and value and not (key.endswith("_url") and "hf_hub_url" in raw):
            raise TrainingDataError(f"{where}: {key}: {reason}")
    counts = [n for n in (_count(count, where), _count(raw.get("num_samples"), where)) if n]
    source = _source(path, raw, where) + (f"#{min(counts)}" if counts else "")
    return DatasetEntry(source, *_format(raw, where, plain_text=plain_text))


def _source(path: Path, raw: Mapping[str, Any], where: str) -> str:
    hub, file = raw.get("hf_hub_url"), raw.get("file_name")
    if isinstance(hub, str) and hub:
        subset, split = raw.get("subset"), raw.get("split")
        return hub + (f"/{subset}" if subset else "") + (f":{split}" if split else "")
    if not isinstance(file, str) or not file:
        raise TrainingDataError(f"{where}: needs a file_name or a hf_hub_url")
    return str(path.parent / file)


def _format(raw: Mapping[str, Any], where: str, *, plain_text: bool) -> tuple[str, Columns]:
    formatting = raw.get("formatting", "alpaca")
    if formatting not in _FORMATS:
        raise TrainingDataError(f"{where}: formatting {shown(formatting)} is not read; {', '.join(_FORMATS)} are")
    columns = _renamed(raw, "columns", _COLUMNS, where)
    # An entry with columns has no others; one without has three.
    usual = {} if raw.get("columns") else {"instruction": "instruction", "input": "input", "output": "output"}
    if plain_text:
        return "text", Columns(text=(usual | columns).get("instruction", _NO_COLUMN))
    names = dict.fromkeys((*_COLUMNS.values(), "prompt"), _NO_COLUMN) | {"messages": "conversations"} | usual | columns
    if formatting == "sharegpt":
        names |= {"role": "from", "content": "value"}
    if formatting != "alpaca":
        names |= _renamed(raw, "tags", _TAGS, where)
    return "preference" if raw.get("ranking") else _FORMATS[formatting], Columns(**names)


def _renamed(raw: Mapping[str, Any], group: str, ours: Mapping[str, str], where: str) -> dict[str, str]:
    given = raw.get(group) or {}
    if not isinstance(given, Mapping):
        raise TrainingDataError(f"{where}: {group} must be an object")
    found = {}
    for key, name in given.items():
        if key in _REFUSED and name:
            raise TrainingDataError(f"{where}: {group}.{key}: {_REFUSED[key]}")
        if name is None:
            continue
        if key not in ours or not isinstance(name, str):
            raise TrainingDataError(f"{where}: {group}.{key}: is not known; known are {', '.join(ours)}")
        found[ours[key]] = name
    return found


def _count(value: object, where: str) -> int:
    if value in (None, ""):
        return 0
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise TrainingDataError(f"{where}: the number of rows must be a whole number above 0, not {shown(value)}")
    return int(str(value))


_FORMATS: Mapping[str, str] = MappingProxyType({"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "openai"})

_KNOWN = (
    "file_name", "hf_hub_url", "formatting", "ranking", "subset", "split", "num_samples", "columns", "tags",
)  # fmt: skip

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "ms_hub_url": "data sets of ModelScope are not fetched; download it and write file_name",
        "om_hub_url": "data sets of Modelers are not fetched; download it and write file_name",
        "script_url": "no code of a data set is run; write its rows to a file",
        "cloud_file_name": "files of clouds are not fetched; download it and write file_name",
        "folder": "folders of hub data sets are not chosen; download it and write file_name",
        "videos": "these models see pictures only",
        "audios": "these models see pictures only",
        "kto_tag": "KTO is not done here; dpo learns from pairs (chosen, rejected)",
    }
)

_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "instruction", "query": "input", "response": "output",
        **{name: name for name in ("history", "messages", "system", "tools", "images", "chosen", "rejected")},
    }
)  # fmt: skip

_TAGS: Mapping[str, str] = MappingProxyType(
    {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "observation",
        "function_tag": "call",
        "system_tag": "system_role",
    }
)
