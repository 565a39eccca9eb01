"""`is_hard`: formulas with brackets that have no other end.

math-core looks for the end of each opening bracket, and where there is none, reads what follows twice: the time doubles
with every one. Thirty would keep the whole process busy for good, so formulas with more than a few are not translated.
"""

from __future__ import annotations

import re
import unicodedata

MOST_UNMATCHED = 8

_COMMANDS = (
    "brace|brack|angle|floor|ceil|[vV]ert|group|moustache|lbracket|lcorner|Angle|langle|lparenthesis|Brace|ang|paren"
)
_DELIMITER = r"\s*(?:\\[A-Za-z]+|\\?[^A-Za-z])?"


def _of_categories(*names: str) -> str:
    found = [chr(code) for code in range(128, 0x3100) if unicodedata.category(chr(code)) in names]
    return re.escape("".join(found))


_TOKEN = re.compile(
    rf"(?P<begin>\{{|\\begin(?![A-Za-z])|\\left(?![A-Za-z]){_DELIMITER})"
    rf"|(?P<end>\}}|\\end(?![A-Za-z])|\\right(?![A-Za-z]){_DELIMITER})"
    rf"|(?P<cut>&|\\\\|\\(?:middle(?![A-Za-z]){_DELIMITER}|(?:over|atop|above|choose|brace|brack|cr)(?![A-Za-z])))"
    rf"|(?P<open>[(\[⩅{_of_categories('Ps', 'Pi')}]|\\\{{|\\(?:l(?:{_COMMANDS})|ulcorner)(?![A-Za-z])"
    rf"|\\(?:[bB]igg?l|mathopen)(?![A-Za-z]){_DELIMITER})"
    rf"|(?P<close>[)\]{_of_categories('Pe', 'Pf')}]|\\\}}|\\(?:r(?:{_COMMANDS})|urcorner|lrcorner)(?![A-Za-z])"
    rf"|\\(?:[bB]igg?r|mathclose)(?![A-Za-z]){_DELIMITER})"
    r"|\\[A-Za-z]+|\\.|.",
    re.DOTALL,
)


_DEFINES = re.compile(r"\\(?:new|renew|provide)command(?![A-Za-z])|\\(?:[gex]?def|let)(?![A-Za-z])")


def is_hard(tex: str) -> bool:
    """Whether reading a formula may take very long."""
    count = unmatched(tex)
    if count <= MOST_UNMATCHED and _DEFINES.search(tex):  # brackets that a macro writes again and again
        return any(token.lastgroup == "open" for token in _TOKEN.finditer(tex))
    return count > MOST_UNMATCHED


def unmatched(tex: str) -> int:
    """Opening brackets without a closing one in the same group, row and cell, as math-core reads them."""
    count, open_here = 0, [0]
    for token in _TOKEN.finditer(tex):
        kind = token.lastgroup
        if kind == "open":
            open_here[-1] += 1
        elif kind == "close":
            open_here[-1] = max(0, open_here[-1] - 1)
        elif kind == "begin":
            open_here.append(0)
        elif kind == "end":
            count += open_here.pop() if len(open_here) > 1 else open_here[-1]
        elif kind == "cut":
            count += open_here[-1]
            open_here[-1] = 0
    return count + sum(open_here)
