"""Workbooks (xlsx, xlsm, xlsb, xls, ods): a sheet is a page with a table; formulas show their last results.

Macros, charts and pictures are not looked at, links to other files never followed.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator, Sequence

from glm4.documents.formats.archive import check_office_xml, open_archive
from glm4.documents.formats.detection import XLS, Content
from glm4.documents.formats.parsed import Parsed, RefusedError
from glm4.documents.formats.tables import add_rows

_Cell = int | float | str | bool | datetime.time | datetime.date | datetime.datetime | datetime.timedelta


def load(content: Content, parsed: Parsed) -> None:
    """Read a workbook."""
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError, SheetTypeEnum, SheetVisibleEnum

    if content.media_type != XLS:
        check_office_xml(open_archive(content.data))
    try:
        workbook = CalamineWorkbook.from_filelike(io.BytesIO(content.data))
    except PasswordError:
        raise RefusedError("is encrypted and needs a password; remove the password first") from None
    except CalamineError as error:
        raise RefusedError(f"is a damaged workbook ({str(error)[:100]}); save it again") from None
    sheets = workbook.sheets_metadata
    for page in parsed.pages(len(sheets), "sheets"):
        sheet = sheets[page - 1]
        if sheet.typ != SheetTypeEnum.WorkSheet:
            continue
        if sheet.visible != SheetVisibleEnum.Visible:
            parsed.warn(f"sheet {sheet.name!r} is hidden and was left out")
            continue
        parsed.add(sheet.name, "heading", page=page, level=1)
        try:
            rows = workbook.get_sheet_by_index(page - 1).iter_rows()
        except CalamineError as error:
            parsed.warn(f"sheet {sheet.name!r} cannot be read ({str(error)[:100]})")
            continue
        add_rows(parsed, _shown_rows(rows), what=f"sheet {sheet.name!r}", page=page)


def _shown_rows(rows: Iterator[list[_Cell]]) -> Iterator[Sequence[str]]:
    for row in rows:
        cells = [_shown(cell) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        yield cells


def _shown(cell: _Cell) -> str:
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else f"{cell:.15g}"
    if isinstance(cell, datetime.datetime):
        return cell.isoformat(" ") if cell.time() != datetime.time() else cell.date().isoformat()
    return cell.isoformat() if isinstance(cell, (datetime.date, datetime.time)) else str(cell)
