"""`FolderFileStore`: files by content, whatever they are called."""

import io
from pathlib import Path

import pytest
from PIL import Image

from glm4.agent.file_store import FolderFileStore, clean_name, media_type
from glm4.errors import InvalidRequestError, StoreError


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    store = FolderFileStore(tmp_path / "deep" / "files")
    first, second = store.put("a.txt", b"text"), store.put("b.txt", b"text", alt="said")
    assert first.sha256 == second.sha256
    assert (first.name, second.name, second.alt, second.nbytes) == ("a.txt", "b.txt", "said", 4)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == [first.sha256]
    assert files[0].stat().st_mode & 0o077 == 0
    assert FolderFileStore(tmp_path / "deep" / "files").read(first.sha256) == b"text"


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("../../etc/passwd", "passwd"), ("C:\\x\\y.txt", "y.txt"), ("a\x1b[31m\n.txt", "a[31m.txt"), ("", "file"),
        ("..", "file"), ("\u202egpj.exe", "gpj.exe"), ("报告.pdf", "报告.pdf"), (".hidden", "hidden"),
        ("x" * 500 + ".pdf", "x" * 196 + ".pdf"), ("y" * 500, "y" * 200), ("/", "file"),
    ],
)  # fmt: skip
def test_names(name: str, cleaned: str, tmp_path: Path) -> None:
    assert clean_name(name) == cleaned
    assert FolderFileStore(tmp_path).put(name, b"x").name == cleaned


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (640, 17), (16000, 3)])
def test_sizes_of_pictures(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    stored = FolderFileStore(tmp_path).put("picture.txt", file.getvalue())
    assert stored.media_type == f"image/{kind.lower()}"
    assert (stored.width, stored.height) == size
    for cut in range(0, 40, 3):  # half a header is no error
        FolderFileStore(tmp_path).put("cut", file.getvalue()[:cut])


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (b"%PDF-1.7", "x.txt", "application/pdf"), (b"PK\x03\x04", "x.docx",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document"), (b"PK\x03\x04", "x.png",
        "application/zip"), (b"a,b", "x.csv", "text/csv"), (b"<svg/>", "x.svg", "image/svg+xml"),
        (b"\x7fELF\0\0", "x.png", "application/octet-stream"), (b"hello", "x.png", "text/plain"),
        ("你好".encode("utf-16"), "x", "text/plain"), (b"", "x", "text/plain"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "x", "audio/wav"), (b"ID3\x04\0\0", "x.txt", "audio/mpeg"),
        (b"\xff\xfb\x90\x64\0", "x", "audio/mpeg"), (b"\xff\xf3\x84\xc4\0", "x", "audio/mpeg"),
        (b"\xff\xf1\x50\x80\0", "x", "audio/aac"), (b"OggS\0\x02" + bytes(22) + b"OpusHead", "x", "audio/ogg"),
        (b"fLaC\0\0\0\x22", "x", "audio/flac"), (b"\0\0\0\x20ftypM4A \0", "x", "audio/mp4"),
        (b"\0\0\0\x20ftypisom\0", "x.m4a", "application/octet-stream"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + b"A_OPUS", "x", "audio/webm"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + b"V_VP9", "x", "video/webm"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x88matroska\0", "x", "application/octet-stream"),
        ("\ufeff纯文本".encode("utf-16-le"), "x.txt", "text/plain"), (b"\xff\xfb", "x", "text/plain"),
    ],
)  # fmt: skip
def test_the_content_says_what_a_file_is(data: bytes, name: str, kind: str) -> None:
    assert media_type(data, name) == kind


def test_limits(tmp_path: Path) -> None:
    store = FolderFileStore(tmp_path, max_file_bytes=10, quota=2 * 4096 + 25)
    with pytest.raises(InvalidRequestError, match="may have 10"):
        store.put("a", b"x" * 11)
    first = store.put("a", b"a" * 10)
    store.put("b", b"b" * 10)
    with pytest.raises(InvalidRequestError, match="no room"):
        store.put("c", b"c" * 10)
    store.put("again", b"a" * 10)
    with pytest.raises(InvalidRequestError, match="no room"):  # the quota counts what was there before
        FolderFileStore(tmp_path, quota=2 * 4096 + 25).put("c", b"c" * 10)
    store.delete(first.sha256)
    store.put("c", b"c" * 10)


def test_a_folder_that_cannot_be_written_is_the_operators_matter(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be kept"):
        FolderFileStore(tmp_path / "files").put("a", b"x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    kept = FolderFileStore(link).put("a\ud800.txt", b"x")
    assert kept.name == "a\ufffd.txt"
    assert FolderFileStore(tmp_path / "elsewhere").read(kept.sha256) == b"x"
    assert (tmp_path / "elsewhere" / kept.sha256[:2]).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("wanted", ["", "../../etc/passwd", "a" * 64, "A" * 64, "/etc/passwd"])
def test_only_known_files_are_read(wanted: str, tmp_path: Path) -> None:
    store = FolderFileStore(tmp_path)
    with pytest.raises(InvalidRequestError, match="no file"):
        store.read(wanted)
    store.delete(wanted)
