"""Files as browsers get them: audio plays in place and piece by piece; what is asked for is saved."""

from __future__ import annotations

import io
import math
import struct
import wave
from pathlib import Path

import httpx
import pytest
from test_agent_edges import upload
from test_agent_http import running


def tone(seconds: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(n / 4))) for n in range(int(8000 * seconds))))
    return buffer.getvalue()


def test_audio_is_played_in_place_and_by_ranges(tmp_path: Path) -> None:
    data = tone()
    with running(tmp_path, lambda prompt: "\nx") as live, live.client() as client:
        file = upload(client, "tone.wav", data)
        assert file["media_type"] == "audio/wav"
        path = f"/v1/agent/files/{file['file']}"
        whole = client.get(path)
        assert (whole.status_code, whole.content) == (200, data)
        assert whole.headers["content-type"] == "audio/wav"
        assert "content-disposition" not in whole.headers
        assert whole.headers["accept-ranges"] == "bytes"
        assert whole.headers["x-content-type-options"] == "nosniff"
        assert whole.headers["content-security-policy"] == "default-src 'none'; media-src 'self'"
        last = len(data)
        for asked, start, end in (("bytes=0-3", 0, 4), ("bytes=100-", 100, last), ("bytes=-10", last - 10, last),
                                  (f"bytes=5-{last * 2}", 5, last)):  # fmt: skip
            part = client.get(path, headers={"Range": asked})
            assert (part.status_code, part.content) == (206, data[start:end])
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(data)}"
        assert client.get(path, headers={"Range": f"bytes={len(data)}-"}).status_code == 416
        changed = client.get(path, headers={"Range": "bytes=0-3", "If-Range": '"other"'})
        assert (changed.status_code, changed.content) == (200, data)
        same = client.get(path, headers={"Range": "bytes=0-3", "If-Range": whole.headers["etag"]})
        assert same.status_code == 206
        saved = client.get(path, params={"download": "1"})
        assert saved.content == data
        assert saved.headers["content-disposition"] == "attachment; filename*=UTF-8''tone.wav"


@pytest.mark.parametrize("name", ["a.txt", "x.svg", "page.html", "film.webm"])
def test_other_files_are_saved(name: str, tmp_path: Path) -> None:
    data = b"\x1a\x45\xdf\xa3webm V_VP9" if name == "film.webm" else b"<svg onload='alert(1)'/>"
    with running(tmp_path, lambda prompt: "\nx") as live, live.client() as client:
        file = upload(client, name, data)["file"]
        for query in ("", "?download=0", "?download=1"):
            answer = client.get(f"/v1/agent/files/{file}{query}")
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"
            assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_ranges_of_anothers_file_do_not_exist_nor_those_of_a_deleted_one(tmp_path: Path) -> None:
    keys = ("first-secret-key", "second-secret-key")
    with running(tmp_path, lambda prompt: "\nx", api_keys=keys, sessions=tmp_path / "saved") as live:
        mine, yours = (
            httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) for key in keys
        )
        with mine, yours:
            file = upload(mine, "tone.wav", tone())["file"]
            path, ranged = f"/v1/agent/files/{file}", {"Range": "bytes=0-3"}
            assert yours.get(path, headers=ranged).status_code == 404
            assert yours.get(path, params={"download": "1"}).status_code == 404
            assert mine.get(path, headers=ranged).status_code == 206
            (stored,) = (tmp_path / "saved" / "files").glob("??/*")
            stored.unlink()
            gone = mine.get(path, headers=ranged)
            assert gone.status_code == 400
            assert "send it again" in gone.json()["error"]["message"]
