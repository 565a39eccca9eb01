"""`Document` as JSON for stores, and what is said where a package is missing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from office_files import slides_file
from reading import read

from glm4.documents.formats.parsed import FullError, Parsed, pipe_table
from glm4.documents.limits import MAX_CHARACTERS
from glm4.documents.stored_document import document_from_dict
from pdf_files import PdfFile, lines


def test_a_document_comes_back_from_json() -> None:
    for data, name in ((slides_file(), "a.pptx"), (bytes(PdfFile([lines(["Hello there, world."]), None])), "b.pdf")):
        document = read(data, name)
        assert document_from_dict(json.loads(json.dumps(document.as_dict()))) == document


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(read(b"x", "a.txt"))])
def test_a_stored_document_without_a_field_is_refused(field: str) -> None:
    stored = read(b"Some text", "a.txt").as_dict()
    del stored[field]
    with pytest.raises(ValueError, match="not a document"):
        document_from_dict(stored)


def test_a_missing_package_is_named_with_what_to_install() -> None:
    """In a process in which the package cannot be found, as nothing may be removed here."""
    code = """
import importlib.metadata, importlib.util, json, sys
version, find = importlib.metadata.version, importlib.util.find_spec
def missing(name):
    if "pdfium" in name:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = missing
importlib.util.find_spec = lambda name: None if "pdfium" in name else find(name)
from glm4.documents.formats.parse import parse
data = sys.stdin.buffer.read()
for name in ("a.pdf", "a.md"):
    print(parse(json.dumps({"name": name}).encode() + b"\\n" + (data if name == "a.pdf" else b"# Title")).decode())
"""
    run = subprocess.run([sys.executable, "-c", code], input=bytes(PdfFile([[]])), capture_output=True, check=True)
    first, second = map(json.loads, run.stdout.decode().splitlines())
    assert first.keys() == {"missing"}
    assert "reading PDF documents needs the package pypdfium2" in first["missing"]
    assert "pip install 'glm4[documents]'" in first["missing"]
    assert second["blocks"] == [["Title", "heading", None, 1]]


def test_importing_the_loader_loads_no_library_that_reads_documents() -> None:
    code = "import glm4.documents.loading, sys; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pypdfium2", "docx", "pptx", "python_calamine", "lxml", "trafilatura", "numpy", "PIL"} & set(loaded)


def test_tables_lose_empty_rows_and_columns_and_escape_bars() -> None:
    assert pipe_table([["a", "", "b|c"], ["", "", ""], ["x\ny", ""]]) == "| a | b\\|c |\n| --- | --- |\n| x y |  |"
    assert pipe_table([]) == pipe_table([["", " "]]) == ""


def test_a_loader_cannot_exceed_the_limit() -> None:
    parsed = Parsed()
    for _ in range(MAX_CHARACTERS // 50_008):
        parsed.add("word " * 10_000)
    with pytest.raises(FullError, match="only the first"):
        parsed.add("word " * 10_000)
    assert sum(len(block.text) for block in parsed.blocks) <= MAX_CHARACTERS
