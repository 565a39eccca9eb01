"""`SavedFiles`: files that tools make in `glm4 chat`, kept for the tools and saved where the user finds them."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from glm4.agent.file_store import FolderFileStore
from glm4.agent.files import StoredFile
from glm4.hub.store import home

# Names come from models and web pages: nothing that a shell or another program would take for more than a name.
_UNUSUAL = re.compile(r"[^\w.()+ -]", re.ASCII)


class SavedFiles(FolderFileStore):
    """A store whose files `save` copies into a folder, under their names.

    Args:
        folder: None: one of this run in `chat_files` of the glm4 home folder; made for the first file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="glm4-chat-")
        super().__init__(Path(self._kept.name))
        self._target = folder or home() / "chat_files" / time.strftime("%Y-%m-%d_%H%M%S")
        self._saved: dict[tuple[str, str], Path] = {}

    def save(self, file: StoredFile) -> Path:
        """Save a file; the same one of the same name is saved once. No file is overwritten.

        Raises:
            OSError: it cannot be written.
        """
        key = (file.sha256, file.name)
        if key not in self._saved:
            self._target.mkdir(parents=True, exist_ok=True)
            name = _UNUSUAL.sub("_", file.name).strip(" .-") or "file"
            stem, dot, ending = name.rpartition(".")
            number = 1
            while True:
                numbered = name if number == 1 else f"{stem or ending} ({number}){dot}{ending if stem else ''}"
                try:
                    with (self._target / numbered).open("xb") as out:
                        out.write(self.read(file.sha256))
                    break
                except FileExistsError:
                    number += 1
            self._saved[key] = self._target / numbered
        return self._saved[key]

    def close(self) -> None:
        """Forget what was kept; what was saved stays. Idempotent."""
        self._kept.cleanup()
