"""`FolderFileStore`: files of conversations in a folder, by the sha256 of their content.

What a file is, is found by its content. Pictures are not decoded: their size is read from their header. Nothing on disk
is named after what a stranger called it.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
from contextlib import suppress
from pathlib import Path

from glm4.agent.files import StoredFile
from glm4.errors import DiskFullError, InvalidRequestError, StoreError
from glm4.system.atomic_file import atomic_file
from glm4.system.text_encoding import well_formed

MAX_NAME = 200
_BLOCK = 4096
_SHA256 = re.compile("[0-9a-f]{64}")
# Control characters, and those that change the direction in which a name is read ("gpj.exe" for "exe.jpg").
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (8, b"WAVE", "audio/wav"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"OggS", "audio/ogg"),
    (0, b"fLaC", "audio/flac"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftypM4B", "audio/mp4"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"\x1f\x8b", "application/gzip"),
)
_MP3_FRAMES = (0xE2, 0xE3, 0xF2, 0xF3, 0xFA, 0xFB)  # behind 0xFF: layer III; 0xFE would be UTF-16
_AAC_FRAMES = (0xF0, 0xF1, 0xF8, 0xF9)
_EBML = b"\x1a\x45\xdf\xa3"
_OFFICE = {
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "epub": "application/epub+zip",
}
_TEXTS = {
    "csv": "text/csv", "tsv": "text/tab-separated-values", "json": "application/json", "html": "text/html",
    "htm": "text/html", "svg": "image/svg+xml", "md": "text/markdown", "py": "text/x-python",
}  # fmt: skip


class FolderFileStore:
    """Files in a folder, which is made for the first one. Thread-safe; several processes may share it.

    Args:
        max_file_bytes: of one file.
        quota: bytes of all files together.
    """

    def __init__(self, folder: Path, *, max_file_bytes: int = 64 << 20, quota: int = 4 << 30) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._quota = quota
        self._lock = threading.Lock()
        self._nbytes = sum(_taken(file) for file in folder.glob("??/*") if _SHA256.fullmatch(file.name))

    def put(self, name: str, data: bytes, *, alt: str | None = None) -> StoredFile:
        """See `FileStore`."""
        if len(data) > self._max_file_bytes:
            raise InvalidRequestError(
                f"{clean_name(name)} has {len(data):,} bytes; files may have {self._max_file_bytes:,}", param="files"
            )
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        with self._lock:
            if not path.exists():
                if self._nbytes + _cost(len(data)) > self._quota:
                    raise InvalidRequestError("there is no room left for files; delete conversations", param="files")
                self._write(path, data)
                self._nbytes += _cost(len(data))
        name = clean_name(name)
        kind = media_type(data, name)
        width, height = picture_size(data, kind) or (None, None)
        return StoredFile(digest, name, kind, len(data), width, height, alt)

    def read(self, sha256: str) -> bytes:
        """See `FileStore`."""
        try:
            if _SHA256.fullmatch(sha256):
                return self._path(sha256).read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"a file in {self._folder} cannot be read: {error.strerror}") from None
        raise InvalidRequestError(f"there is no file {sha256[:100]!r}; send it again", param="files")

    def path(self, sha256: str) -> Path:
        """Where a file is, to be read piece by piece; see `FileStore.read` for the error."""
        path = self._path(sha256)
        if not _SHA256.fullmatch(sha256) or not path.is_file():
            raise InvalidRequestError(f"there is no file {sha256[:100]!r}; send it again", param="files")
        return path

    def delete(self, sha256: str) -> None:
        """Forget a file; unknown ones are ignored."""
        if _SHA256.fullmatch(sha256):
            with self._lock, suppress(FileNotFoundError):
                path = self._path(sha256)
                nbytes = _taken(path)
                path.unlink()
                self._nbytes -= nbytes

    def _write(self, path: Path, data: bytes) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with atomic_file(path) as file:
                file.write(data)
            path.chmod(0o600)
        except (OSError, DiskFullError, InvalidRequestError) as error:  # a matter of the operator's, not of a request
            raise StoreError(f"files cannot be kept in {self._folder}: {error}") from error

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest


def _cost(nbytes: int) -> int:
    """What a file counts: whole blocks, so that a great many small ones are bounded, too."""
    return -(-nbytes // _BLOCK) * _BLOCK or _BLOCK


def _taken(path: Path) -> int:
    try:
        return _cost(path.stat().st_size)
    except FileNotFoundError:  # another process has deleted it
        return 0


def clean_name(name: str) -> str:
    """A name for people: without folders and invisible characters, not empty, not too long."""
    name = _UNSEEN.sub("", well_formed(name).replace("\\", "/").rpartition("/")[2]).strip().strip(".") or "file"
    if len(name) <= MAX_NAME:
        return name
    stem, dot, ending = name.rpartition(".")
    return name[:MAX_NAME] if not dot or len(ending) > 16 else stem[: MAX_NAME - len(ending) - 1] + "." + ending


def media_type(data: bytes, name: str) -> str:
    """What a file is, by its first bytes; its name tells texts and office files apart."""
    ending = name.rpartition(".")[2].lower()
    for at, magic, kind in _MAGIC:
        if data[at : at + len(magic)] == magic:
            return _OFFICE.get(ending, kind) if kind == "application/zip" else kind
    head = data[:4096]
    stream = _stream_type(head)
    if stream is not None:
        return stream
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "application/octet-stream"
    return _TEXTS.get(ending, "text/plain")


def _stream_type(head: bytes) -> str | None:
    """What is told by more than one mark: MP3 and AAC without a header, and WebM, which may also be a film."""
    if head[:1] == b"\xff" and len(head) > 4:
        if head[1] in _MP3_FRAMES and head[2] >> 4 != 15:
            return "audio/mpeg"
        if head[1] in _AAC_FRAMES:
            return "audio/aac"
    if head.startswith(_EBML) and b"webm" in head[:64]:
        return "video/webm" if b"V_" in head else "audio/webm"
    return None


def picture_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Width and height of a picture by its header, which may lie; None if it does not say."""
    try:
        if kind == "image/png" and data[12:16] == b"IHDR":
            width, height = struct.unpack(">II", data[16:24])
        elif kind == "image/gif":
            width, height = struct.unpack("<HH", data[6:10])
        elif kind == "image/jpeg":
            return _jpeg_size(data)
        elif kind == "image/webp":
            return _webp_size(data)
        else:
            return None
    except struct.error:
        return None
    return (width, height) if 0 < width < 1 << 20 and 0 < height < 1 << 20 else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return (width, height) if width and height else None
        else:
            at += 2 + max(2, struct.unpack(">H", data[at + 2 : at + 4])[0])
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None
