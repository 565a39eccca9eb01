"""The classes that code in colors uses: Pygments' short names, fewer of them. The page's style sheet colors these."""

from __future__ import annotations

from pygments.token import STANDARD_TYPES, Token, _TokenType


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


# Keywords k, their constants kc and types kt; names of attributes na, built-ins nb, classes nc, decorators nd,
# functions nf, tags nt, variables nv, exceptions ne; strings s, their escapes se, interpolation si, regular expressions
# sr; numbers m; operators o, as words ow; comments c, preprocessor lines cp; in diffs and sessions: deleted gd,
# inserted gi, headings gh, prompts gp, output go, emphasis ge, strong gs, errors gr. All else is plain.
CODE_CLASSES = words(
    """
    k kc kt na nb nc nd nf nt nv ne s se si sr m o ow c cp gd gi gh gp go ge gs gr
    """
)
_SAME_AS = {"bp": "nb", "fm": "nf", "no": "kc", "gu": "gh", "gt": "gr", "nl": "na", "py": "na", "ni": "se"}


def code_class(kind: _TokenType) -> str:
    """The class of a token, of its nearest ancestor that has one, or an empty string."""
    while kind is not Token:
        short: str = STANDARD_TYPES.get(kind, "")
        short = _SAME_AS.get(short, short)
        if short in CODE_CLASSES:
            return short
        kind = kind.parent
    return ""
