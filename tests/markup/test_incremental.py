"""Text that grows gives what the whole text gives, and what it costs grows with it and no faster."""

from __future__ import annotations

import pytest
from applied import applied
from documents_in_markdown import documents, pieces, sizes
from html_rules import faults, text_of
from hypothesis import given, settings

from glm4.markup import CodeAdded, IncrementalRenderer, Update, render
from glm4.markup.rendering import LONGEST_PART, render_normalized


def written(renderer: IncrementalRenderer, parts: list[str]) -> list[str]:
    """The blocks that a page has after these parts, checked after each."""
    blocks: list[str] = []
    for part in parts:
        blocks = applied(blocks, renderer.feed(part))
        assert blocks == renderer.blocks
    return blocks


@settings(max_examples=150, deadline=None)
@given(documents, sizes)
def test_a_text_in_pieces_ends_as_the_whole(document: str, sizes: list[int]) -> None:
    renderer = IncrementalRenderer()
    blocks = written(renderer, pieces(document, sizes))
    assert applied(blocks, renderer.finish()) == renderer.blocks == render(document)
    assert renderer.finish() == []


@settings(max_examples=60, deadline=None)
@given(documents, sizes)
def test_what_a_reader_sees_on_the_way_is_safe_and_never_goes_back(document: str, sizes: list[int]) -> None:
    renderer = IncrementalRenderer()
    final: list[str] = []
    for part in pieces(document, sizes):
        for update in renderer.feed(part):
            changed = update.first if isinstance(update, Update) else update.block
            assert changed >= len(final)
        for block in renderer.blocks[len(final) :]:
            assert faults(block) == []
        assert renderer.blocks[: len(final)] == final
        final = list(renderer._final)


@settings(max_examples=60, deadline=None)
@given(documents)
def test_no_text_is_missing_while_it_is_written(document: str) -> None:
    """After each line, all that the whole gives for these lines is there."""
    renderer = IncrementalRenderer()
    lines = document.replace("\r\n", "\n").splitlines(keepends=True)
    for count, line in enumerate(lines, 1):
        renderer.feed(line)
        whole = "".join(text_of(block) for block in render_normalized("".join(lines[:count])))
        shown = "".join(map(text_of, renderer.blocks))
        assert sum(map(str.isalpha, shown)) >= 0.5 * sum(map(str.isalpha, whole)) - 40


@pytest.mark.parametrize(
    ("document", "changes"),
    [
        ("# a\n\nb\n\n- c\n- d\n\n```py\nx = 1\n```\n\n| a |\n|---|\n| b |\n\n\\[\n- x\n\\]\n\ne", 0),
        ("[a]: https://e.org\n\nb\n\nsee [a]\n\nc", 0),
        ("half a line is not a heading\n#tag\n\nnor a rule\n---x\n\nnor code\n```x``` y\n\nnor a list\n1.x\n\nb", 0),
        ("- a\n-b\n\n| a |\n|---|\n| b |\n#c\n\n> d\n>e\n#f\n\ng", 0),
        ("text before\n\\[ no formula\n- x\n\nb\n\nc", 0),
        ("see [a]\n\nb\n\nc\n\n[a]: https://e.org", 1),
    ],
)
def test_only_what_is_defined_later_changes_at_the_end(document: str, changes: int) -> None:
    renderer = IncrementalRenderer()
    written(renderer, list(document))
    assert len(renderer.finish()) == changes


@pytest.mark.parametrize("opening", ["```py\n", "  ~~~~ py\n", "a\n\n```py\n"])
def test_open_code_is_appended_and_colored_when_it_is_closed(opening: str) -> None:
    renderer = IncrementalRenderer()
    written(renderer, list(opening))
    first = len(renderer.blocks) - 1
    for character in "x = 1":
        assert renderer.feed(character) == [CodeAdded(first, character)]
    assert "<span" not in renderer.blocks[-1]
    marker = opening.split("\n")[-2].split()[0].removesuffix("py")
    (closed,) = renderer.feed(f"\n{marker}\n")
    assert isinstance(closed, Update)
    assert closed.first == first
    assert '<span class="m">1</span>' in closed.blocks[0]
    assert renderer.finish() == []


def test_a_line_that_could_end_code_is_held_back() -> None:
    renderer = IncrementalRenderer()
    written(renderer, list("```py\nx\n"))
    assert renderer.feed("``") == []
    assert renderer.feed("` y") == [CodeAdded(0, "``` y")]


def test_line_ends_of_other_systems_may_be_split() -> None:
    document = "a\r\n\r\n```\r\nb\r\n```\r\nc\rd\r"
    renderer = IncrementalRenderer()
    blocks = written(renderer, list(document))
    assert applied(blocks, renderer.finish()) == render(document)
    assert render(document) == render(document.replace("\r\n", "\n").replace("\r", "\n"))


def test_text_after_the_limit_is_one_plain_block() -> None:
    paragraphs = "".join(f"**a** {number}\n\n" for number in range(LONGEST_PART // 8))
    document = f"{paragraphs[: LONGEST_PART - 10]}0123456789\n\n**b** & <b>\n\n# c\n"
    renderer = IncrementalRenderer()
    blocks = written_coarsely(renderer, document, 19_001)
    assert applied(blocks, renderer.finish()) == render(document)
    rest = "\n\n**b** &amp; &lt;b&gt;\n\n# c\n"
    assert blocks[-1] == f'<pre class="code" data-lang="" tabindex="0"><code>{rest}</code></pre>'


def written_coarsely(renderer: IncrementalRenderer, document: str, size: int) -> list[str]:
    """As `written`, compared at the end only: for long texts."""
    blocks: list[str] = []
    for start in range(0, len(document), size):
        blocks = applied(blocks, renderer.feed(document[start : start + size]))
    assert blocks == renderer.blocks
    return blocks


@pytest.mark.parametrize("shape", ["Some **text** and $x$.\n\n", "- an item of **one** list\n", "```py\nx\n```\n\n"])
def test_a_long_text_at_once_is_shown_at_once(shape: str) -> None:
    """As when a page comes back to an answer that is being written."""
    text = shape * (60_000 // len(shape))
    renderer = IncrementalRenderer()
    assert applied([], renderer.feed(text)) == renderer.blocks == render(text)


_ROW = "| 模型 | $x^2$ | `code` and text |\n"
SHAPES = {
    "paragraphs": "Some **text** of an answer with $x$ in it, two lines of it,\nand more.\n\n",
    "one list": "- an item of **one** list\n",
    "one table": _ROW,
    "one code block": "x = compute(1)  # and so on\n",
    "one list with code": "- a\n\n  ```py\n  x = 1\n  ```\n\n",
    "one paragraph": "words and more words\n",
    "fences that stay open": "```\na\n\n",
    "formulas that stay open": "\\[ a\n\n",
    "definitions": "[a]: https://e.org\n",
    "columns without text": "a|\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_work_grows_with_the_text_and_no_faster(shape: str) -> None:
    """Counted in characters that were parsed or rendered, so that a slow machine changes nothing."""
    start = {"one table": "| a | b | c |\n|---|---|---|\n", "one code block": "```py\n"}.get(shape, "")
    if shape == "columns without text":
        start = f"{'|a' * 20}|\n{'|-' * 20}|\n"
    work: list[float] = []
    for length in (1_500, 6_000):
        text = start + SHAPES[shape] * (length // len(SHAPES[shape]))
        renderer = IncrementalRenderer()
        for position in range(0, len(text), 4):
            renderer.feed(text[position : position + 4])
        work.append(renderer.rendered_characters / len(text))
    assert work[1] <= max(1.3 * work[0], 8)
    assert work[1] <= 140
