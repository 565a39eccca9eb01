"""The documentation is run: Python blocks on tiny checkpoints, command lines through the real parsers.

Both languages are checked: the Chinese pages have the same code as the English ones, comments aside.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.routing import Route

from adapter_files import factors, settings, write_adapter
from glm4 import LLM
from glm4.agent.toolbox import TOOLS
from glm4.agent.tools.browser.search import ENGINES
from glm4.api.fields import OPTIONS
from glm4.api.schemas import components
from glm4.backends.local import LocalOptions
from glm4.batch.job import BatchJob
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.gguf_quants import BLOCK_FORMATS
from glm4.cli import main
from glm4.cli.commands import COMMANDS
from glm4.cli.console import human_bytes
from glm4.cli.conversation import repl
from glm4.cli.parameters import declared
from glm4.cli.parser import read
from glm4.documents.reading import STRATEGIES
from glm4.model.shapes import SHAPES
from glm4.multimodal.image import encode_picture
from glm4.planner import plan
from glm4.sandbox.launch import unavailable
from glm4.server.app import create_app
from glm4.server.config import ModelSpec, ServerConfig
from glm4.variants import VARIANTS, get_variant
from live import serve
from tiny import gguf_model, write_folder, write_gguf
from vision_folder import write_vision_folder

ROOT = Path(__file__).resolve().parents[1]
GUIDES = (
    "models",
    "batch",
    "python",
    "backends",
    "serving",
    "operating",
    "scale",
    "structured",
    "pictures",
    "page",
    "assistant",
    "documents",
    "agent_api",
    "finetune",
    "adapters",
    "export",
    "troubleshooting",
)
PAIRS = [("README.md", "README_zh.md"), *((f"docs/{name}.md", f"docs/zh/{name}.md") for name in GUIDES)]
ENGLISH = [english for english, _ in PAIRS]
DEVELOPER_PAGES = ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/decisions.md"]  # in English only
PAGES = [page for pair in PAIRS for page in pair]
RECORDS = ["CHANGELOG.md", "benchmarks/README.md", "benchmarks/RESULTS.md", "benchmarks/NOTES.md"]
MAX_GUIDE_LINES, MAX_ARCHITECTURE_LINES = 150, 110
SERVER = "http://localhost:8000"  # where pages say that the server is

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "python", "json", "jsonl", "yaml", "text"}
# Programs a reader has beside ours; a command line that begins with anything else is a slip.
OTHER_PROGRAMS = {"accelerate", "cp", "curl", "docker", "kubectl", "eval", "export", "grep", "mv", "pip", "ray", "vllm"}


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is the number of its first line of code."""

    language: str
    info: str
    line: int
    code: str


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str | None = None) -> list[Block]:
    text = text_of(page)
    found = [
        Block(match[1], match[2].strip(), text.count("\n", 0, match.start(3)) + 1, match[3])
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def prose(page: str) -> str:
    return FENCE.sub("", text_of(page))


# Command lines


def command_lines(page: str) -> list[str]:
    """Every line of the page's shell blocks, and the commands of ours in running text (a bare name: its help)."""
    lines = [line for block in blocks(page, "sh") for line in block.code.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`((?:glm4|make) [^`]+)`", prose(page))
    spans = [f"{span} --help" if re.fullmatch(r"glm4 \w+", span) else span for span in spans]
    return [line for line in [*lines, *spans] if line.strip() and not line.lstrip().startswith("#")]


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a shell line, as words: pipes and lists taken apart, redirections and variables left out."""
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from commands(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if token in ("<", ">", ">>"):
            next(tokens)
        elif set(token) <= set("|&;"):
            yield words
            words = []
        elif words or not re.match(r"\w+=", token):
            words.append(token)
    yield words


def check_command(words: list[str]) -> None:
    """Fails on a command, target, option or model that does not exist."""
    if words[0] == "glm4":
        check_glm4([word for word in words[1:] if word != "--debug"])
    elif words[0] == "make":
        check_make(words[1:])
    else:
        assert words[0] in OTHER_PROGRAMS, f"unknown program {words[0]!r}"


def check_glm4(args: list[str]) -> None:
    if not args or args[0].startswith("-"):
        assert main(args) == 0  # --help and --version print and leave
        return
    assert args[0] in COMMANDS, f"no command {args[0]!r}"
    _, function = COMMANDS[args[0]].load(args[0])
    arguments = read(function, [arg for arg in args[1:] if arg != "--help"]) if args[1:] != ["--help"] else {}
    for name in ("model", "first", "remove"):
        value = arguments.get(name)
        for one in value if isinstance(value, (list, tuple)) else [value]:  # `serve` takes several, NAME=MODEL
            check_model(one and one.rpartition("=")[2])


def check_model(name: str | None) -> None:
    """A bare name must be one we know; paths, repositories and placeholders in capitals are the reader's own."""
    if name is not None and re.fullmatch(r"[a-z0-9][\w.-]*", name) and not name.endswith(".gguf"):
        assert get_variant(name) is not None, f"no model {name!r}"


def check_make(args: list[str]) -> None:
    makefile = text_of("Makefile")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    variables = set(re.findall(r"^(\w+)\s*\?=", makefile, re.MULTILINE))
    for arg in args:
        name, is_variable, value = arg.partition("=")
        assert name in (variables if is_variable else targets), f"the Makefile has no {name!r}"
        if name == "ARGS" and "chat" in args:
            check_glm4(["chat", *shlex.split(value)])


@pytest.mark.parametrize("page", [*PAGES, *DEVELOPER_PAGES])
def test_command_lines_exist(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLM4_MODEL", raising=False)
    for line in command_lines(page):
        for words in commands(line.split(" #")[0]):
            try:
                check_command(words)
            except Exception as error:
                pytest.fail(f"{page}: {line}: {error}")


@pytest.mark.parametrize(
    "line",
    [
        "glm4 chatt",
        "glm4 chat --no-such-option",
        "glm4 chat hi | glm4 plan starter --contxt 3",
        "glm4 plan",
        "glm4 plan glm-5-9b",
        "GLM4_ISA=generic glm4 batch only-one-file.jsonl",
        'cp "$(glm4 pul starter)" here',
        "make chatt",
        "make test ARG=x",
        'make chat ARGS="--max-token 3"',
        "gml4 chat",
    ],
)
def test_a_wrong_command_line_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:  # noqa: PT012 - the generator is part of it
        for words in commands(line):
            check_command(words)
    assert not isinstance(caught.value, (AttributeError, TypeError, KeyError))


def test_every_command_and_every_chat_command_is_shown() -> None:
    documented = {words[1] for line in command_lines("README.md") for words in commands(line) if words[0] == "glm4"}
    assert documented >= set(COMMANDS)
    for page in PAGES:
        if page.endswith(("page.md", "serving.md", "operating.md", "scale.md", "agent_api.md")):
            continue  # its slashes are paths, see below
        slashed = set(re.findall(r"`/([a-z]+)\b", prose(page)))
        assert slashed <= {*repl.COMMANDS, *repl.ALIASES}, page
        if page.startswith("README"):
            assert slashed == set(repl.COMMANDS), page


def test_paths_of_the_server_exist() -> None:
    app = create_app(ServerConfig((ModelSpec("starter", ("starter",)),)))
    known = {route.path for route in app.routes if isinstance(route, Route)}
    for page in (f"docs/{folder}{name}.md" for folder in ("", "zh/") for name in ("serving", "agent_api")):
        named = set(re.findall(r"`(/[\w/{}]+)`", prose(page)))
        assert named, page
        assert named <= known, page


def test_options_in_running_text_exist() -> None:
    functions = [row.load(name)[1] for name, row in COMMANDS.items()]
    known = {option for function in functions for parameter in declared(function) for option in parameter.spellings}
    for page in [*PAGES, *DEVELOPER_PAGES]:
        assert set(re.findall(r"`(--[a-z-]+)", prose(page))) - {"--debug", "--help"} <= known, page


def test_environment_variables_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    for page in [*PAGES, *DEVELOPER_PAGES]:
        for name in re.findall(r"GLM4_[A-Z_]+", text_of(page)):
            assert re.search(rf"\b{name}\b", sources), f"{page}: nothing reads {name}"


# Python blocks


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Stand-ins for the starter (a qwen2 GGUF file), GLM-4 and GLM-4V (folders), with their dialects' own templates."""
    folder = tmp_path_factory.mktemp("models")
    # No unnamed rows: random weights would put them among the likeliest tokens, where the page decodes them.
    model = gguf_model("qwen2", max_position_embeddings=32768, vocab_size=260)
    metadata = {"tokenizer.chat_template": None}
    starter = write_gguf(folder / "m.gguf", "qwen2", model, metadata=metadata)
    return starter, write_folder(folder / "m", chat_template=None), write_vision_folder(folder / "sees")


@pytest.fixture
def tiny_models(checkpoints: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names load tiny checkpoints; everything else of `LLM`, the name's row in `variants.py` included, is real."""

    def resolve(name: str, **_: object) -> Path:
        variant = get_variant(name)
        assert variant is not None, f"no model {name!r}"
        if variant.dialect == "chatml":
            return checkpoints[0]
        return checkpoints[2 if variant.sees else 1]

    monkeypatch.setattr("glm4.open_model.resolve", resolve)


def write_poems_adapter(folder: Path, model: Path) -> None:
    """The adapter that pages load, for the starter's stand-in."""
    targets = ("q_proj", "v_proj")
    with open_checkpoint(model) as checkpoint:
        write_adapter(folder / "poems-adapter", factors(checkpoint.config, 1, targets), settings(targets))


def close_models(session: dict[str, Any]) -> None:
    for value in session.values():
        if isinstance(value, LLM):
            value.close()


@pytest.mark.parametrize("page", [page for page in ENGLISH if blocks(page, "python")])
@pytest.mark.usefixtures("tiny_models")
def test_python_blocks_run(
    page: str, tmp_path: Path, checkpoints: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom in one session, as a reader would."""
    if page == "docs/documents.md" and (missing := unavailable()) is not None:
        pytest.skip(missing)
    monkeypatch.chdir(tmp_path)
    write_poems_adapter(tmp_path, checkpoints[0])
    (tmp_path / "cat.png").write_bytes(encode_picture(np.zeros((30, 40, 3), np.uint8)))
    session: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.ExitStack() as stack:
        stack.callback(close_models, session)
        address = ""
        for block in blocks(page, "python"):
            assert not block.info, f"{page}:{block.line}: every Python block runs"
            code = "\n" * (block.line - 1) + block.code  # line numbers in a traceback are the page's
            if SERVER in code and not address:
                options = {"max_num_seqs": 4}
                config = ServerConfig((ModelSpec("starter", ("starter",), options),))
                address = stack.enter_context(serve(config)).url
            exec(compile(code.replace(SERVER, address), str(ROOT / page), "exec"), session)


def test_names_of_python_options_exist() -> None:
    """Options that `docs/python.md` lists are the keywords of `LLM` and the options of its own backend."""
    listed = re.search(r"`LLM`: (.*?)\.\n", prose("docs/python.md"), re.DOTALL)
    assert listed is not None
    names = set(re.findall(r"`(\w+)`", listed[1]))
    assert names == {*(LLM.__init__.__kwdefaults__ or ()), *(field.name for field in fields(LocalOptions))}


# Batch files


@pytest.mark.usefixtures("tiny_models")
def test_the_batch_example_gives_the_documented_answers(tmp_path: Path) -> None:
    (requests,) = blocks("docs/batch.md", "jsonl")
    (documented,) = blocks("docs/batch.md", "json")
    (tmp_path / "in.jsonl").write_text(requests.code, encoding="utf-8")
    with LLM("starter", max_num_seqs=4) as llm, BatchJob(tmp_path / "in.jsonl", tmp_path / "out.jsonl") as job:
        assert job.run(llm, model="starter").failed == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = json.loads(documented.code)
    (row,) = [row for row in rows if row["custom_id"] == expected["custom_id"]]
    assert shape(row) == shape(expected)


def shape(value: object) -> object:
    """Keys all the way down, without values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else None


def test_batch_options_are_complete() -> None:
    for page in ("docs/batch.md", "docs/zh/batch.md"):
        assert set(OPTIONS) <= set(re.findall(r"`(\w+)`", prose(page))), page


# Facts


def test_memory_figures_are_what_plan_says() -> None:
    for page, model, count in (
        ("README.md", "glm-4-9b-chat", 4),
        ("README_zh.md", "glm-4-9b-chat", 4),
        ("docs/pictures.md", "glm-4v-9b", 3),
        ("docs/zh/pictures.md", "glm-4v-9b", 3),
    ):
        rows = re.findall(r"^\| `(\w+)` +\| ([\d.]+ GB) +\|", text_of(page), re.MULTILINE)
        shown = {dtype: human_bytes(plan(SHAPES[model], dtype=dtype, context=8192).total) for dtype, _ in rows}
        assert dict(rows) == shown, page
        assert len(rows) == count


def test_sizes_for_several_conversations_are_what_plan_says() -> None:
    for page in ("docs/scale.md", "docs/zh/scale.md"):
        rows = re.findall(r"^\| `([\w.-]+)` +\| (\d+) +\| (\d+) +\| ([\d.]+ GB) +\|", text_of(page), re.MULTILINE)
        for model, batch, context, shown in rows:
            found = plan(SHAPES[model], dtype="int4", context=int(context), batch=int(batch))
            assert human_bytes(found.total) == shown, (page, model)
        assert len(rows) == 5


def test_model_tables_are_what_the_code_says() -> None:
    for page in ("docs/models.md", "docs/zh/models.md"):
        text = text_of(page)
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        named = {name: row for row in rows for name in re.findall(r"`([\w.-]+)`", row.split("|")[1])}
        assert set(VARIANTS) <= set(named), page
        for name, variant in VARIANTS.items():
            if variant.dialect == "chatml":
                assert human_bytes(variant.size_bytes) in named[name]
            else:
                cells = [cell.strip() for cell in named[name].split("|")]
                context = "1M" if variant.context == 1 << 20 else f"{variant.context >> 10}K"
                assert cells[3:5] == [context, variant.license], (page, name)
        for alias in re.findall(r"(?:short name|简称) `([\w.-]+)`", text):
            assert get_variant(alias) is not None, alias
        missing = {row.name for row in BLOCK_FORMATS.values()} - set(re.findall(r"\w+", text))
        assert not missing, f"{page} leaves out GGUF types {missing}"


def test_the_assistant_pages_name_what_there_is() -> None:
    for folder in ("docs/", "docs/zh/"):
        listed = set(re.findall(r"^\| `([a-z]+)", text_of(f"{folder}assistant.md"), re.MULTILINE))
        assert listed == {*TOOLS, "mcp", "my_tools.py".partition("_")[0]}, folder
        engines = set(re.findall(r"`([a-z]+)", text_of(f"{folder}assistant.md")))
        assert engines >= set(ENGINES), folder
        events = components("agent")["AgentEvent"]["properties"]["type"]["enum"]
        rows = re.findall(r"^\| `(\w+)` +\| `", text_of(f"{folder}agent_api.md"), re.MULTILINE)
        assert set(events) <= set(rows), folder
        strategies = re.findall(r"^\| `(\w+)` +\|", text_of(f"{folder}documents.md"), re.MULTILINE)
        assert strategies == list(STRATEGIES), folder


def test_download_sizes() -> None:
    for page in ("README.md", "README_zh.md"):
        for name in ("starter", "glm-4-9b-chat"):
            assert human_bytes(VARIANTS[name].size_bytes) in text_of(page), (page, name)


# Pages


def without_comments(block: Block) -> str:
    lines = [re.sub(r"(^|\s+)#.*$", "", line).rstrip() for line in block.code.splitlines()]
    return "\n".join([block.language, block.info, *(line for line in lines if line)])


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_code(english: str, chinese: str) -> None:
    assert [without_comments(block) for block in blocks(english)] == [without_comments(b) for b in blocks(chinese)]
    headings = [re.findall(r"^(#+) ", prose(page), re.MULTILINE) for page in (english, chinese)]
    assert headings[0] == headings[1]


@pytest.mark.parametrize("page", [*PAGES, *DEVELOPER_PAGES])
def test_fences_are_closed_and_named(page: str) -> None:
    assert "```" not in prose(page)
    assert {block.language for block in blocks(page)} <= LANGUAGES
    if page.startswith("docs/"):
        assert len(text_of(page).splitlines()) < MAX_GUIDE_LINES


def test_every_page_is_checked() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]}
    assert found == {*PAGES, "docs/decisions.md"}


def anchors(page: Path) -> set[str]:
    """Names that headings get on a repository's web page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *DEVELOPER_PAGES, *RECORDS])
def test_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file
        assert path.is_file(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page} links to {target}"


def test_the_architecture_is_one_page() -> None:
    assert len(text_of("ARCHITECTURE.md").splitlines()) <= MAX_ARCHITECTURE_LINES


@pytest.mark.parametrize("page", DEVELOPER_PAGES)
def test_named_files_and_folders_exist(page: str) -> None:
    """From the repository's root, from the package's, or somewhere in it; `<name>` is any name."""
    package = ROOT / "src/glm4"
    for name in re.findall(r"`([\w.<>/-]+(?:\.(?:py|md|cpp|h)|/))`", prose(page)):
        pattern = re.sub(r"<\w+>", "*", name.rstrip("/"))
        found = [*ROOT.glob(pattern), *package.glob(pattern)]
        if "/" not in pattern:
            found += [*package.rglob(pattern), *(ROOT / "csrc").glob(pattern)]
        assert found, f"{page} names {name}"


def test_the_file_map_names_what_there_is() -> None:
    (block,) = blocks("README.md", "text")
    for line in block.code.splitlines():
        base = ROOT / "src/glm4" if line.startswith("  ") else ROOT
        for name in line.split("#")[0].split():
            assert (base / name).exists(), f"the file map names {name}"


@pytest.mark.parametrize("page", [*PAGES, *DEVELOPER_PAGES])
def test_no_path_of_one_machine(page: str) -> None:
    text = text_of(page)
    assert str(ROOT) not in text
    absolute = re.findall(r"(?<![\w.~:/<$-])/[a-z]+/[\w./-]+", text)
    known = ("/v1/", "/inference/v1/", "/api/", "/dev/null", "/data/", "/mnt/data", "/models/")
    assert [path for path in absolute if not path.startswith(known)] == []
