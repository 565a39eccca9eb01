"""What a page does with the updates of a renderer, for tests."""

from __future__ import annotations

from collections.abc import Iterable

from glm4.markup import CodeAdded, Update

_CODE_END = "</code></pre>"


def applied(blocks: list[str], updates: Iterable[Update | CodeAdded]) -> list[str]:
    """The blocks of a page after `updates`. The text of code is escaped as a browser writes it."""
    for update in updates:
        if isinstance(update, Update):
            assert update.first <= len(blocks)
            blocks = [*blocks[: update.first], *update.blocks]
            continue
        assert update.add
        assert update.block == len(blocks) - 1
        assert blocks[-1].endswith(_CODE_END)
        text = update.add.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\xa0", "&nbsp;")
        blocks = [*blocks[:-1], blocks[-1].removesuffix(_CODE_END) + text + _CODE_END]
    return blocks
