"""Markdown of models as HTML: what the page relies on."""

from __future__ import annotations

import pytest
from html_rules import text_of

from glm4.markup import render, render_code, rendering
from glm4.markup.code import COLORED_CHARACTERS
from glm4.markup.languages import ALIASES, LANGUAGES, lexer_class

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
    [
        "$5 and $6",
        "costs $5, or $6.",
        "US$5-$10",
        "从$5到$10之间",
        "a $ b $ c",
        r"\$x\$",
        "`$x$`",
        "echo $HOME:$PATH",
        "$ x$",
        "$x $",
    ],
)
def test_money_and_code_are_not_formulas(text: str) -> None:
    assert "data-tex" not in "".join(render(text))


@pytest.mark.parametrize("text", ["$x$", "(see $x$)", r"\(x\)", "由$x$得", "$5 and $x$", "$6; $x$-axis", "the $x$th"])
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


@pytest.mark.parametrize(
    ("text", "address", "rest"),
    [
        ("see https://e.org/a_b?c=1.", "https://e.org/a_b?c=1", "."),
        ("(https://e.org)", "https://e.org", ")"),
        ("见https://e.org/a，或", "https://e.org/a", "，或"),
    ],
)
def test_an_address_in_text_is_a_link(text: str, address: str, rest: str) -> None:
    assert f'<a href="{address}" target="_blank" {LINK}>{address}</a>{rest}' in render(text)[0]


def test_an_address_in_code_is_text() -> None:
    assert "<a" not in render("`https://e.org` and\n\n    https://e.org")[0]


@pytest.mark.parametrize(
    ("tex", "html"),
    [
        (r"\boxed{x}", '<menclose notation="box" class="m-box">'),
        (r"\begin{aligned}a&=b\end{aligned}", '<mtd class="m-right m-pr0">'),
        (r"\begin{split}a&=b\end{split}", '<mtd class="m-left m-pl0">'),
        (r"\begin{array}{c|c}a&b\\\hline c&d\end{array}", "m-border-top"),
        (r"a = b \tag{1}", "<mtext>(1)</mtext>"),
        (r"\mbox{如果} x", "<mtext>如果</mtext>"),
    ],
)
def test_formulas_have_classes_and_no_styles(tex: str, html: str) -> None:
    block = render(f"$${tex}$$")[0]
    assert html in block
    assert " style=" not in block


def test_code_that_is_long_is_colored_at_its_start_only() -> None:
    source = "x = 1\n" * 10_000
    block = render_code(source, "python")
    colored, plain = block.rsplit("</span>", 1)
    assert text_of(block) == source
    assert plain.count("x = 1") == 10_000 - COLORED_CHARACTERS // 6
    assert colored.count("x ") == COLORED_CHARACTERS // 6


def test_each_language_of_the_list_is_colored() -> None:
    assert [language for language in sorted({*LANGUAGES, *ALIASES}) if lexer_class(language) is None] == []


def test_a_paragraph_that_would_be_costly_is_plain() -> None:
    (block,) = render("**a** [" * 5_000)
    assert text_of(block) == "**a** [" * 5_000
    (block,) = render("**a** " * 100)
    assert block.count("<strong>") == 100


def test_what_is_kept_of_whole_texts_is_bounded() -> None:
    texts = [f"{number} " + "word " * 6_000 for number in range(400)]
    for text in texts:
        assert render(text)[0].startswith('<p dir="auto">')
    assert rendering._kept._bytes <= rendering._KEPT_BYTES
    assert rendering._kept._bytes == sum(map(rendering._size, rendering._kept._entries.values()))
    blocks = render(texts[-1])
    blocks.clear()
    assert len(render(texts[-1])) == 1
