"""Formulas: LaTeX to MathML. What cannot be translated is shown as its source.

A style attribute would be refused by the page's policy, so math-core's few styles become classes (`MATH_CLASSES`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from threading import Lock

from math_core import LatexError, LatexToMathML

from glm4.markup.open_delimiters import is_hard
from glm4.markup.sanitizer import escape, escape_attribute

LONGEST_FORMULA = 5_000
_LONGEST_MATHML = 400_000  # macros can make much out of little

_CONVERTER = LatexToMathML(fancy_error=False, max_expansions=200)
_CONVERTING = Lock()
_STYLE = re.compile(r' style="([^"]*)"')
_BOX = '<menclose notation="box"'
# What models write and the library does not know, as what it knows.
_SYNONYMS = [
    (re.compile(r"\\mbox(?![A-Za-z])"), r"\\text"),
    (re.compile(r"\\(begin|end)\{split\}"), r"\\\1{aligned}"),
    (re.compile(r"\\(begin|end)\{smallmatrix\}"), r"\\\1{matrix}"),
]
_CLASS_OF_STYLE = {
    "text-align:left": "m-left",
    "text-align:right": "m-right",
    "text-align:center": "m-center",
    "padding-left:0": "m-pl0",
    "padding-right:0": "m-pr0",
    "padding-left:1em": "m-pl1",
    "width:100%": "m-full",
    "width:50%": "m-half",
    **{f"border-{side}": f"m-border-{side}" for side in ("left", "right", "top", "bottom")},
}


def _classes(style: re.Match[str]) -> str:
    names: list[str] = []
    for declaration in style[1].split(";"):
        key, _, value = (piece.strip() for piece in declaration.partition(":"))
        name = _CLASS_OF_STYLE.get(key if key.startswith("border-") else f"{key}:{value}")
        if name and name not in names:
            names.append(name)
    return f' class="{" ".join(names)}"' if names else ""


@lru_cache(maxsize=4096)
def _mathml(tex: str, display: bool) -> str | None:
    if len(tex) > LONGEST_FORMULA or is_hard(tex):
        return None
    for pattern, known in _SYNONYMS:
        tex = pattern.sub(known, tex)
    for source in (tex, f"\\begin{{equation}}{tex}\\end{{equation}}") if "\\tag" in tex else (tex,):
        try:
            with _CONVERTING:
                html = _CONVERTER.convert_with_local_state(source, displaystyle=display)
        except LatexError:
            continue
        if len(html) > _LONGEST_MATHML:
            return None
        return _STYLE.sub(_classes, html).replace(_BOX, f'{_BOX} class="m-box"')
    return None


def render_formula(tex: str, *, display: bool, block: bool) -> str:
    """A formula with its source in `data-tex`: a `div` for one that is a block, else a `span`.

    One that cannot be translated is `<code class="formula-error">` with its source in the same place.
    """
    mathml = _mathml(tex.strip(), display)
    inner = mathml if mathml is not None else f'<code class="formula-error">{escape(tex)}</code>'
    tag, name = ("div" if block else "span"), ("formula" if display else "tex")
    return f'<{tag} class="{name}" data-tex="{escape_attribute(tex.strip())}">{inner}</{tag}>'
