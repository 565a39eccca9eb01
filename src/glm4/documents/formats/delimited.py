"""CSV and TSV as tables; the delimiter is the one that cuts the first lines into equally many fields."""

from __future__ import annotations

import csv
import io
from itertools import islice

from glm4.documents.formats.detection import TSV, Content
from glm4.documents.formats.parsed import Parsed
from glm4.documents.formats.tables import add_rows

_DELIMITERS = ",\t;|"
_SAMPLE_ROWS = 50
_SAMPLE_CHARACTERS = 1 << 18
_FIELD_CHARACTERS = 1 << 20


def load(content: Content, parsed: Parsed) -> None:
    """Read a CSV or TSV file."""
    csv.field_size_limit(_FIELD_CHARACTERS)
    text = content.text
    if text[:4].lower() == "sep=" and len(text) > 5 and text[5] in "\r\n":  # what Excel writes for itself
        delimiter, text = text[4], text[5:].lstrip("\r\n")
    else:
        delimiter = "\t" if content.media_type == TSV else find_delimiter(text)
    try:
        add_rows(parsed, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), what="the table")
    except csv.Error as error:
        parsed.warn(f"it is no regular table ({error}); what follows was left out")


def find_delimiter(text: str) -> str:
    """The delimiter of a table: its rows have as many fields as the first one, and most of all."""
    best, chosen = (0.0, 0), ","
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(text[:_SAMPLE_CHARACTERS], newline=""), delimiter=delimiter)
        try:
            widths = [len(row) for row in islice(reader, _SAMPLE_ROWS) if row]
        except csv.Error:
            continue
        if not widths or max(widths) < 2:
            continue
        common = max(set(widths), key=widths.count)
        score = (widths.count(common) / len(widths) if common > 1 else 0.0, common)
        if score > best:
            best, chosen = score, delimiter
    return chosen
