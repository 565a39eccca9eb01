"""Documents as models write them, at random: every construct, in English and Chinese, some cut off or wrong."""

from __future__ import annotations

from hypothesis import strategies as st

_WORDS = """
    the model attention of layer is a value and 模型 的 注意力 机制 在 每一层 $x$ \\(a_i\\) **bold** `code` [a](https://e.org)
    【1†s】 cost $5 _em_ ~~no~~ <b> & * _ ` [ ] ( ) $ $$ \\[ \\] # 1. - > | \\ [ref] [^1] &amp; ![p](x.png) 你好 مرحبا
"""

_line = st.lists(st.sampled_from(_WORDS.split()), min_size=1, max_size=10).map(" ".join)
_lines = st.lists(_line, max_size=4).map("\n".join)
_indent = st.sampled_from(["", "", "", " ", "  ", "   ", "    "])


def _joined(*parts: st.SearchStrategy[str] | str) -> st.SearchStrategy[str]:
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map("".join)


_fence_end = st.sampled_from(["\n```", "\n````  ", "\n  ```", "\n    ```", "\n``", "\n~~~", ""])
_formula_line = st.sampled_from(
    ["a &= b \\\\", "- c", "+ d", "# e", "> f", "1. g", "=", "---", "", "```", "\\frac{1}{2}"]
)
_formula_lines = st.lists(_formula_line, max_size=4).map("\n".join)
_bullet = st.sampled_from(["- ", "* ", "1. ", "2) ", "  - ", "   1. ", "- [ ] ", "- [x] ", "  "])

_block = st.one_of(
    _joined(_indent, st.sampled_from(["# ", "## ", "#", "####### "]), _line),
    _joined(_indent, "```", st.sampled_from(["", "py", "c", "math", "html x", "markdown"]), "\n", _lines, _fence_end),
    _joined("~~~\n", _lines, st.sampled_from(["\n~~~", ""])),
    st.lists(_joined(_bullet, _line), min_size=1, max_size=5).map("\n".join),
    _joined("| a | b |\n|---|:-:|\n", st.lists(_joined("| ", _line, " | $|x|$ |"), max_size=3).map("\n".join)),
    _joined("\\[\n", _formula_lines, st.sampled_from(["\n\\]", "", "\n\\].", "\n\\] x", " \\]"])),
    _joined("$$\n", _formula_lines, st.sampled_from(["\n$$", "", " $$"])),
    _joined("\\begin{align}\n", _formula_lines, st.sampled_from(["\n\\end{align}", ""])),
    _joined("> ", _line, st.sampled_from(["", "\n> - x", "\nlazy", "\n> ```\n> x\n> ```", "\n> \\[\n> x\n> \\]"])),
    st.sampled_from(["---", "***", "===", "- - -", "2024.", "#", "a\n===", "b\n---", "\\\\", "$", "```"]),
    _joined("    ", _line, "\n    ", _line),
    _joined("- a\n\n  ```py\n  x = 1\n", st.sampled_from(["  ```\n\n  b", "  ``", ""])),
    _joined("[^1]: ", _line),
    st.just("[ref]: https://e.org/ref"),
    _line,
    _lines,
)

documents = _joined(
    st.lists(st.tuples(_block, st.sampled_from(["\n", "\n\n", "\n\n", "\r\n", "\n\n\n"])), max_size=10).map(
        lambda blocks: "".join(block + gap for block, gap in blocks)
    ),
    st.sampled_from(["", "\n"]),
    _line,
)
sizes = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def pieces(text: str, sizes: list[int]) -> list[str]:
    """`text` in pieces of these sizes, over and over."""
    found: list[str] = []
    start = 0
    while start < len(text):
        size = sizes[len(found) % len(sizes)]
        found.append(text[start : start + size])
        start += size
    return found
