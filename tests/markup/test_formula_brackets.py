"""Brackets without an end, for each of which the library takes twice the time, do not keep the server busy."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from glm4.markup.formulas import render_formula
from glm4.markup.open_delimiters import MOST_UNMATCHED, is_hard, unmatched

HOSTILE = (
    "(" * 60, "([" * 30, r"\{" * 40, r"\langle " * 40, r"\lfloor " * 40, r"\bigl(" * 40, r"\bigl|" * 40, "(a+" * 40,
    "{(}" * 60, r"\mathrm(" * 40, r"\lvert " * 40, "⟨" * 40, r"\mathopen|" * 40, "(&)" * 40, r"(\\)" * 40,
    r"\left((\right." * 40, r"\sqrt{(}" * 40, r"\begin{matrix}(" * 30 + r"\end{matrix}" * 30,
    r"\newcommand{\a}{(((((}" + r"\a" * 20, r"\def\a#1{#1#1}\a{\a{\a{(((}}}", r"\let\a=(" + r"\a" * 60,
)  # fmt: skip
USUAL = (
    r"f(x) = \left\{ \begin{cases} (a+b)^2 & x \in [0, 1) \\ \sqrt{(c)} & x \in (1, 2] \end{cases} \right.",
    r"\left(\frac{(a)(b)}{[c]}\right)", r"\bigl( (a) \bigr)", r"\langle x, y \rangle", "(" * 30 + "x" + ")" * 30,
    r"\lfloor x \rfloor + \lceil y \rceil", r"\newcommand{\mine}{\mathbb{R}} \mine",
    r"]a, b[", r"P(A \mid B) = \lambda",
)  # fmt: skip
_PIECES = (
    "(", "[", r"\{", r"\langle ", ")", "]", r"\}", r"\rangle ", "{", "}", r"\left(", r"\right)", r"\left.", r"\right.",
    r"\middle|", "&", r"\\", r"\begin{matrix}", r"\end{matrix}", "x", "+", "^", "_", r"\frac{", r"\sqrt{", r"\text{",
    "|", r"\bigl(", r"\bigr)", r"\bigl|", r"\over ", r"\mathopen(", r"\mathrm{", "⟨", "⟩", r"\lvert ", r"\rvert ",
)  # fmt: skip
_RENDER = """
import sys
from glm4.markup.formulas import render_formula
for tex in sys.stdin.read().split("\\0"):
    render_formula(tex, display=False, block=False)
print("through")
"""


def mixed() -> list[str]:
    """Formulas of a few kinds of pieces each, whose groups end, so that they are read as a whole."""
    rng, made = random.Random(0), []
    for _ in range(3000):
        pieces = rng.sample(_PIECES, rng.randrange(2, 7))
        tex = "".join(rng.choice(pieces) for _ in range(rng.choice((10, 40, 200))))
        made.append(tex + "}" * max(0, tex.count("{") - tex.count("}")))
    return made


def test_no_formula_takes_long() -> None:
    """In a process of its own: one that is stuck in the library cannot be interrupted."""
    told = subprocess.run(
        [sys.executable, "-c", _RENDER], input="\0".join([*HOSTILE, *mixed()]), capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert told.stdout == "through\n"


@pytest.mark.parametrize("tex", HOSTILE)
def test_a_hostile_formula_is_shown_as_its_source(tex: str) -> None:
    assert is_hard(tex)
    assert "formula-error" in render_formula(tex, display=False, block=False)


@pytest.mark.parametrize("tex", USUAL)
def test_a_usual_formula_is_translated(tex: str) -> None:
    assert unmatched(tex) <= MOST_UNMATCHED
    assert "<math" in render_formula(tex, display=False, block=False)
