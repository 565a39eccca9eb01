"""Tokens to HTML: what of ours differs from CommonMark's usual HTML. Each method writes the token of its name."""

from __future__ import annotations

from collections.abc import Sequence

from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from glm4.markup.code import language_name, plain_code, render_code
from glm4.markup.formula_rules import show_bars
from glm4.markup.formulas import render_formula
from glm4.markup.sanitizer import escape


class HtmlWriter(RendererHTML):
    """Writes code in colors, formulas, tables in a frame that scrolls, citations and footnotes."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A code block; one that is still being written has no colors yet. ```` ```math ```` is a formula."""
        token = tokens[idx]
        language, source = language_name(token.info), show_bars(token.content)
        if env.get("growing") and token.meta.get("open"):
            return plain_code(source, language)
        if language in ("math", "latex-math"):
            return render_formula(source, display=True, block=True)
        return render_code(source, language)

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Code by indentation."""
        return plain_code(show_bars(tokens[idx].content), "")

    def formula_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A formula on lines of its own, and the punctuation that follows it."""
        html = render_formula(show_bars(tokens[idx].content), display=True, block=True)
        mark = tokens[idx].info
        return f"{html.removesuffix('</div>')}{mark}</div>" if mark else html

    def formula_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The source of a formula that is still being written."""
        return f'<p class="formula-open" dir="auto">{escape(show_bars(tokens[idx].content))}</p>'

    def formula_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A formula within text; with double dollars or brackets it is displayed on a line of its own all the same."""
        token = tokens[idx]
        return render_formula(show_bars(token.content), display=token.markup in ("$$", "\\["), block=False)

    def citation(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The number of a source, as a link to it."""
        number = tokens[idx].content
        return f'<a class="cite" data-n="{number}" href="#cite-{number}">{number}</a>'

    def host(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The host behind a link, where its text could mislead."""
        return f' <span class="host">({escape(tokens[idx].content)})</span>'

    def tick(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The box of a task."""
        return f'<span class="tick">{tokens[idx].content}</span> '

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A frame that the keyboard can scroll, around each table."""
        return '<div class="table" tabindex="0" role="region"><table>'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The end of a table and its frame."""
        return "</table></div>"

    def footnote_ref(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The number of a footnote. No link: the ids of one answer would meet those of the next on the page."""
        return f'<sup class="footnote">{int(tokens[idx].meta["id"]) + 1}</sup>'

    def footnote_block_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The footnotes, after all else."""
        return '<section class="footnotes"><ol>'

    def footnote_block_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The end of the footnotes."""
        return "</ol></section>"

    def footnote_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """One footnote."""
        return '<li dir="auto">'

    def footnote_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The end of one footnote."""
        return "</li>"

    def footnote_anchor(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Nothing: there is no link back."""
        return ""


# The plugin of footnotes sets its own for these.
FOOTNOTE_RULES = (
    "footnote_ref",
    "footnote_block_open",
    "footnote_block_close",
    "footnote_open",
    "footnote_close",
    "footnote_anchor",
)
