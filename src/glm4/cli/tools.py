"""`glm4 tools`: which tools of the assistant are ready here, and the environment of the python tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

from glm4.cli.parameters import Argument, AsJson, UsageError

EXAMPLES = """
glm4 tools
glm4 tools install
glm4 tools --json
"""


class ToolRow(NamedTuple):
    """A tool: what it does, and what it lacks here, each with what to do about it."""

    summary: str
    lacks: Callable[[], list[str]]


def tools(
    action: Annotated[
        str, Argument(metavar="ACTION", help="list (the default), or install: make the python tool's environment.")
    ] = "list",
    as_json: AsJson = False,
) -> None:
    """Show which tools are ready, or install what the python tool needs.

    The python tool runs code in a sandbox with an environment of its own: numpy, pandas, matplotlib and a font with
    Chinese. `install` makes it once with pip and its configuration, about 70 MB to fetch and 250 MB on disk; run it
    again to take newer versions, or after an update of Python. bubblewrap comes from the system.
    """
    from glm4.cli import console

    if action == "install":
        _install(as_json)
    elif action == "list":
        rows = {name: row.lacks() for name, row in TOOLS.items()}
        if as_json:
            console.print_json([_as_json(name, lacks) for name, lacks in rows.items()])
        else:
            _show(rows)
    else:
        raise UsageError(f"the action is list or install, not {action!r}")


def _install(as_json: bool) -> None:
    from glm4.agent.tools.python import environment
    from glm4.cli import console

    with console.progress() as report:
        packages = environment.install(report)
    folder = environment.environment_folder()
    if as_json:
        lacks = TOOLS["python"].lacks()
        console.print_json({"path": str(folder), "packages": packages, "ready": not lacks, "lacks": lacks})
        return
    console.notice(", ".join(f"{name} {version}" for name, version in packages.items()))
    console.stdout().print(str(folder), soft_wrap=True)
    for lack in TOOLS["python"].lacks():
        console.warning(lack)


def _as_json(name: str, lacks: Sequence[str]) -> dict[str, object]:
    return {"name": name, "summary": TOOLS[name].summary, "ready": not lacks, "lacks": list(lacks)}


def _show(rows: dict[str, list[str]]) -> None:
    from glm4.cli import console

    out = console.stdout()
    width = max(map(len, rows))
    for name, lacks in rows.items():
        out.print(f"{name:{width}}  {'not ready' if lacks else 'ready':9}  {TOOLS[name].summary}", soft_wrap=True)
        for lack in lacks:
            out.print(f"{'':{width}}  {lack}", soft_wrap=True, style="yellow")


def _python_lacks() -> list[str]:
    from glm4.agent.tools.python import lacks

    return lacks()


def _extra(feature: str, extra: str, *modules: str) -> Callable[[], list[str]]:
    """What is missing of an extra of this package."""

    def lacks() -> list[str]:
        from importlib.util import find_spec

        missing = [module for module in modules if find_spec(module) is None]
        if not missing:
            return []
        return [f"{feature} needs the packages {', '.join(missing)}; install them with: pip install 'glm4[{extra}]'"]

    return lacks


TOOLS = {
    "python": ToolRow("runs code with numpy, pandas and matplotlib, in a sandbox", _python_lacks),
    "browser": ToolRow("searches and reads web pages", _extra("the browser", "browser", "trafilatura", "ddgs")),
    "documents": ToolRow(
        "reads PDF, Word, PowerPoint, Excel and other files",
        _extra(
            "reading documents", "documents", "pypdfium2", "docx", "pptx", "python_calamine", "defusedxml",
            "charset_normalizer",
        ),
    ),
    "mcp": ToolRow("uses tools of MCP servers", _extra("MCP", "mcp", "mcp")),
}  # fmt: skip
