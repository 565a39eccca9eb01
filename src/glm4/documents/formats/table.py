"""The table of formats: which function reads what, and which packages it needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from glm4.documents.formats import detection as kinds
from glm4.documents.formats.detection import Content
from glm4.documents.formats.parsed import Parsed
from glm4.system.extras import Package, require_packages

_PDFIUM = Package("pypdfium2", "5")
_DOCX = Package("docx", "1.1", distributions=("python-docx",))
_PPTX = Package("pptx", "1.0", distributions=("python-pptx",))
_CALAMINE = Package("python_calamine", "0.4", distributions=("python-calamine",))
_LXML = Package("lxml")
_TRAFILATURA = Package("trafilatura", "2.0")
_DEFUSED = Package("defusedxml", "0.7")


@dataclass(frozen=True)
class Format:
    """How a kind of file is read.

    Attributes:
        feature: at the start of the error about a package that is missing.
        loader: "module:function" in this folder; the function fills a `Parsed` from a `Content`.
    """

    feature: str
    loader: str
    packages: tuple[Package, ...] = ()

    def load(self, content: Content, parsed: Parsed) -> None:
        """Read a file.

        Raises:
            MissingExtraError: a package is missing.
            RefusedError, FullError: see there.
        """
        self.require()
        module, _, function = self.loader.partition(":")
        load: Callable[[Content, Parsed], None] = getattr(importlib.import_module(f"{__package__}.{module}"), function)
        load(content, parsed)

    def require(self) -> None:
        """Raise MissingExtraError if a package is missing."""
        require_packages(f"reading {self.feature}", "documents", self.packages)


_WORKBOOKS = Format("workbooks", "workbook:load", (_CALAMINE,))
FORMATS = {
    kinds.PDF: Format("PDF documents", "pdf:load", (_PDFIUM,)),
    kinds.DOCX: Format("DOCX documents", "docx:load", (_DOCX, _LXML)),
    kinds.PPTX: Format("PPTX presentations", "pptx:load", (_PPTX, _LXML)),
    kinds.XLSX: _WORKBOOKS,
    kinds.XLSB: _WORKBOOKS,
    kinds.XLS: _WORKBOOKS,
    kinds.ODS: _WORKBOOKS,
    kinds.EPUB: Format("EPUB books", "epub:load", (_LXML, _DEFUSED)),
    kinds.HTML: Format("HTML pages", "html:load", (_LXML, _TRAFILATURA)),
    kinds.MARKDOWN: Format("Markdown", "markdown:load"),
    kinds.PLAIN: Format("text", "plain:load"),
    kinds.CSV: Format("CSV tables", "delimited:load"),
    kinds.TSV: Format("TSV tables", "delimited:load"),
    kinds.JSON: Format("JSON", "plain:load_json"),
    kinds.NOTEBOOK: Format("notebooks", "notebook:load"),
    kinds.CODE: Format("source code", "plain:load_code"),
}
