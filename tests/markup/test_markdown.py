"""Markdown of models as HTML: what the page relies on."""

from __future__ import annotations

import pytest

from glm4.markup import render, render_code

LINK = 'rel="noopener noreferrer nofollow"'


def formula(tex: str) -> str:
    """How a formula within text begins."""
    return f'<span class="tex" data-tex="{tex}"><math>'


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("# 标题", '<h1 dir="auto">标题</h1>'),
        ("**a** *b* ~~c~~ `d<`", '<p dir="auto"><strong>a</strong> <em>b</em> <s>c</s> <code>d&lt;</code></p>'),
        ("<b>x</b> & y", '<p dir="auto">&lt;b&gt;x&lt;/b&gt; &amp; y</p>'),
        ("见【3†来源】。", f'<p dir="auto">见<a class="cite" data-n="3" href="#cite-3" {LINK}>3</a>。</p>'),
        ("[x](https://e.org/a)", f'<p dir="auto"><a href="https://e.org/a" target="_blank" {LINK}>x</a></p>'),
        (
            "![plot](https://e.org/a.png)",
            f'<p dir="auto"><a href="https://e.org/a.png" target="_blank" {LINK}>plot</a></p>',
        ),
        ("![plot](sandbox:/mnt/data/a.png)", '<p dir="auto">plot</p>'),
        ("- [x] done", '<ul dir="auto">\n<li dir="auto" class="task"><span class="tick">☑</span> done</li>\n</ul>'),
    ],
)
def test_a_block_is_written_as_the_page_expects(markdown: str, html: str) -> None:
    assert render(markdown) == [html]


@pytest.mark.parametrize(
    "text",
    ["$5 and $6", "costs $5, or $6.", "US$5-$10", "从$5到$10之间", "a $ b $ c", r"\$x\$", "`$x$`", "$ x$", "$x $"],
)
def test_money_and_code_are_not_formulas(text: str) -> None:
    assert "data-tex" not in "".join(render(text))


@pytest.mark.parametrize("text", ["$x$", "(see $x$)", r"\(x\)", "由$x$得", "$5 and $x$", "$6; $x$-axis"])
def test_formulas_within_text(text: str) -> None:
    assert formula("x") in "".join(render(text))


@pytest.mark.parametrize(
    "text",
    [
        "\\[\nx\n\\]",
        "\\[ x \\]",
        "$$x$$",
        "$$\nx\n$$",
        "a\n\\[\n- x\n\\]",
        "```math\nx\n```",
        "- a\n\n  \\[\n  x\n  \\]",
    ],
)
def test_formulas_of_their_own(text: str) -> None:
    assert '<div class="formula" data-tex="' in "".join(render(text))


def test_a_formula_in_a_table_may_hold_bars() -> None:
    (block,) = render("| a | b |\n|--|--:|\n| $|x|$ | \\(\\|y\\|\\) |")
    assert formula("|x|") in block
    assert formula("\\|y\\|") in block
    assert block.startswith('<div class="table" tabindex="0" role="region"><table>')
    assert '<td dir="auto" class="right">' in block


def test_a_formula_that_fails_shows_its_source() -> None:
    assert '<code class="formula-error">\\foo{&lt;b&gt;}</code>' in render(r"$\foo{<b>}$")[0]


def test_code_is_colored_by_classes() -> None:
    expected = (
        '<pre class="code" data-lang="py" tabindex="0"><code><span class="k">def </span><span class="nf">f</span>'
    )
    assert render_code("def f(): pass", "py").startswith(expected)
    assert render("```py\ndef f(): pass\n```")[0].startswith(expected)
    assert (
        render_code("a < b", "no-such")
        == '<pre class="code" data-lang="no-such" tabindex="0"><code>a &lt; b</code></pre>'
    )
