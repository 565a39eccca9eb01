"""`open_archive`: zip files (docx, pptx, xlsx, ods, epub), checked before a library reads them.

Refused: bombs (by what the directory declares; a member that holds more than it declares fails when it is read),
members that share bytes, names that leave the archive, encrypted members. Archives in archives are never opened.

Not covered: XML that is slow for the library that reads it; the limits of the process end that.
"""

from __future__ import annotations

import io
import re
import zipfile

from glm4.documents.formats.parsed import RefusedError
from glm4.documents.limits import MAX_MEMBERS, MAX_RATIO, MAX_UNPACKED_NBYTES

_PROLOG_NBYTES = 1 << 16
_PROLOG = re.compile(rb"(?:\s+|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)
_ALLOWED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def open_archive(data: bytes) -> zipfile.ZipFile:
    """A zip file whose members can be read.

    Raises:
        RefusedError: it is damaged, encrypted or hostile.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, UnicodeError) as error:
        raise RefusedError(f"is a damaged or truncated archive ({error}); save it again") from None
    if len(members) > MAX_MEMBERS:
        raise RefusedError(f"has {len(members):,} files inside; at most {MAX_MEMBERS:,} are read")
    total = 0
    for member in members:
        _check_member(member)
        total += member.file_size
    if total > MAX_UNPACKED_NBYTES:
        raise RefusedError(f"unpacks to {total >> 20:,} MB; at most {MAX_UNPACKED_NBYTES >> 20} MB are read")
    if len({member.filename for member in members}) < len(members):
        raise RefusedError("has two files of the same name inside, so that programs would disagree about its content")
    _check_overlap(members, len(data))
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's content.

    Raises:
        RefusedError: there is none, or it is damaged.
    """
    try:
        return archive.read(name)
    except KeyError:
        raise RefusedError(f"is damaged: {name} is missing") from None
    except Exception as error:  # zlib, CRC, what the header promises; zipfile documents no set
        raise RefusedError(f"is damaged: {name} cannot be unpacked ({error})") from None


def check_office_xml(archive: zipfile.ZipFile) -> None:
    """Refuse Office files with a document type declaration: no program writes one, and entities need it."""
    for member in archive.infolist():
        if not member.filename.lower().endswith((".xml", ".rels", ".vml")):
            continue
        try:
            with archive.open(member) as file:
                head = file.read(_PROLOG_NBYTES)
        except Exception as error:  # as above
            raise RefusedError(f"is damaged: {member.filename} cannot be unpacked ({error})") from None
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:4]:
            head = head.decode(
                "utf-16-be" if head.startswith((b"\xfe\xff", b"\0")) else "utf-16-le", "replace"
            ).encode()
        head = head.removeprefix(b"\xef\xbb\xbf")
        start = _PROLOG.match(head)
        rest = head[start.end() :] if start else head
        if rest.startswith(b"<!") or (len(head) == _PROLOG_NBYTES and not rest.startswith(b"<")):
            raise RefusedError(
                f"declares XML entities in {member.filename}, which documents do not have; it is not read"
            )


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise RefusedError("has a file inside whose name leads out of the archive; it is not read")
    if member.flag_bits & 1:
        raise RefusedError("is encrypted and needs a password; remove the password first")
    if member.compress_type not in _ALLOWED:
        raise RefusedError(
            f"has files inside that are packed by method {member.compress_type}, which documents do not use"
        )
    if member.file_size > 1 << 20 and member.file_size > MAX_RATIO * max(1, member.compress_size):
        times = member.file_size // max(1, member.compress_size)
        raise RefusedError(
            f"has a file inside that unpacks to {times:,} times its size, like a zip bomb; it is not read"
        )


def _check_overlap(members: list[zipfile.ZipInfo], nbytes: int) -> None:
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise RefusedError("has files inside that share bytes, like a zip bomb; it is not read")
        end = member.header_offset + member.compress_size
    if end > nbytes:
        raise RefusedError("is a damaged or truncated archive; save it again")
