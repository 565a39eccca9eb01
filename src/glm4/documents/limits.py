"""What one document may cost; beyond these limits a file is refused, or read in part with a warning that says so."""

from __future__ import annotations

MAX_NBYTES = 100 << 20
"""Of a file."""
MAX_CHARACTERS = 4_000_000
"""Of a document's text, which is some 2,000 printed pages; the rest is left out with a warning."""
MAX_BLOCKS = 200_000
MAX_PAGES = 5_000
"""Pages, slides or sheets that are read; the rest is left out with a warning."""
MAX_WARNINGS = 50
MAX_WARNING_CHARACTERS = 400
MAX_TITLE_CHARACTERS = 400
MAX_NAME_CHARACTERS = 255

MAX_MEMBERS = 20_000
"""Files in a zip archive."""
MAX_UNPACKED_NBYTES = 400 << 20
"""Of a zip archive's files together."""
MAX_RATIO = 200
"""Bytes that a byte of an archive may become, for files of more than 1 MB. Text in XML reaches 50."""

MAX_RESULT_NBYTES = 64 << 20
"""Of what the process that reads gives back."""
MEMORY_NBYTES = 1536 << 20
SECONDS = 60
"""Of processor time; a document that takes longer is refused."""
SOFT_SECONDS = 40
"""After so many seconds, what is left of a document is left out with a warning."""
