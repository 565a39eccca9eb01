"""`glm4 models`: what is installed, and what can be installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli.parameters import AsJson, Exit, Option

if TYPE_CHECKING:
    from rich.table import Table

    from glm4.hub import InstalledModel
    from glm4.variants import Variant

EXAMPLES = """
glm4 models
glm4 models --json
glm4 models --remove smoke
glm4 models --clear-cache
"""

_USUAL_NAME = 20


def models(
    as_json: AsJson = False,
    remove: Annotated[
        str | None, Option(metavar="NAME", help="Delete an installed starter model and its downloads.")
    ] = None,
    clear_cache: Annotated[
        bool, Option("--clear-cache", help="Delete the packed copies that make a second start fast.")
    ] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="With --remove: don't ask.")] = False,
) -> None:
    """List installed and known models.

    Installed are starter models and the family's checkpoints in the Hugging Face cache. Any repository, folder or
    GGUF file of the family works too, known or not.
    """
    from glm4 import hub
    from glm4.cli import console
    from glm4.variants import VARIANTS

    if remove is not None:
        _remove(remove, yes)
    if clear_cache:
        _clear_cache()
    if remove is not None or clear_cache:
        return
    installed = [_installed_row(model) for model in hub.installed_models()]
    here = {row["name"] for row in installed}
    known = [_row(variant) for name, variant in VARIANTS.items() if name not in here]
    if as_json:
        console.print_json({"installed": installed, "known": known, "packed_cache": _cache_row()})
        return
    out = console.stdout()
    if installed:
        out.print(_table("Installed", "from", installed))
        for row in installed:
            out.print(f"{row['name']}: {row['model']} by {row['authors']}\n  {row['path']}", soft_wrap=True)
        out.print()
    out.print(_table("Known", "what it is", known))
    _show_cache()
    out.print(
        "glm4 pull NAME fetches one; glm4 plan NAME tells beforehand whether it fits.", style="dim", soft_wrap=True
    )


def _clear_cache() -> None:
    from glm4.cli import console
    from glm4.loading.cache_entries import clear_cache

    freed = clear_cache()
    console.notice(f"{console.human_bytes(freed)} freed" if freed else "the packed cache is empty")


def _cache_row() -> dict[str, Any]:
    from glm4.loading.cache_entries import cache_entries, cache_folder, cache_limit

    entries = cache_entries()
    return {
        "path": str(cache_folder()),
        "bytes": sum(entry.nbytes for entry in entries),
        "limit_bytes": cache_limit(),
        "entries": [
            {"path": str(e.path), "model": e.model, "precision": e.precision, "bytes": e.nbytes} for e in entries
        ],
    }


def _show_cache() -> None:
    from glm4.cli import console

    row = _cache_row()
    if row["entries"]:
        count, size = len(row["entries"]), console.human_bytes(row["bytes"])
        console.stdout().print(
            f"Packed cache: {count} model{'s' if count > 1 else ''}, {size} of at most "
            f"{console.human_bytes(row['limit_bytes'])}; they start faster for it. --clear-cache deletes it.",
            style="dim",
        )


def _remove(name: str, yes: bool) -> None:
    from glm4 import hub
    from glm4.cli import console
    from glm4.errors import ModelNotFoundError
    from glm4.hub.store import model_folder
    from glm4.loading.cache_entries import clear_cache

    starter = hub.starter_of(name)
    if starter is None:
        raise ModelNotFoundError(
            f"{name!r} is no starter model. Checkpoints in the Hugging Face cache are deleted with `hf cache`; "
            "others are files of yours."
        )
    if not yes:
        print(f"Delete {starter.name} ({starter.model})? [y/N]: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            console.notice("nothing was deleted; --yes deletes without asking")
            raise Exit(console.EXIT_INTERRUPTED)
    freed = clear_cache(of=model_folder(starter.name)) + hub.remove(starter.name)
    console.notice(f"{console.human_bytes(freed)} freed" if freed else f"{starter.name} is not installed")


def _installed_row(model: InstalledModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.model,
        "authors": model.authors,
        "license": model.license,
        "bytes": model.nbytes,
        "source": model.source,
        "path": str(model.path),
        "context": model.variant.context if model.variant is not None else None,
        "sees": model.variant is not None and model.variant.sees,
    }


def _row(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "title": variant.title,
        "repository": variant.repo_id,
        "modelscope": variant.modelscope_id,
        "license": variant.license,
        "bytes": variant.size_bytes or None,
        "parameters": variant.parameters or None,
        "context": variant.context or None,
        "sees": variant.sees,
        "notes": variant.notes,
    }


def _table(title: str, last: str, rows: list[dict[str, Any]]) -> Table:
    """Name, size, context, license and `last`; a narrow terminal gets only the first: names must be complete."""
    from rich.table import Table

    from glm4.cli.console import human_bytes, stdout

    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    table.add_column("name", no_wrap=all(len(row["name"]) <= _USUAL_NAME for row in rows), overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for heading, width, justify in (("context", 40, "right"), ("license", 60, "left"), (last, 72, "left")):
        if stdout().width >= width:
            table.add_column(heading, justify=justify, no_wrap=heading != last)  # type: ignore[arg-type]
    for row in rows:
        size = human_bytes(row["bytes"]) if row["bytes"] else "?"
        about = row.get("source") or row["notes"] or row["title"]
        about += "; sees pictures" if row["sees"] and "source" in row else ""
        cells = (row["name"], size, _tokens(row["context"]), row["license"], about)
        table.add_row(*cells[: len(table.columns)])
    return table


def _tokens(count: int | None) -> str:
    """`128K`, `1M`: the units context lengths are quoted in (powers of two)."""
    if not count:
        return "?"
    return f"{count >> 20}M" if count % (1 << 20) == 0 else f"{count >> 10}K"
