"""What `glm4 serve` makes of its command line before it serves."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import pytest

from glm4 import LLM
from glm4.chat.parts import MAX_MEDIA_NBYTES
from glm4.cli import main
from glm4.cli.parameters import Exit
from glm4.cli.serve import _preloaded
from glm4.errors import InvalidRequestError
from glm4.server.config import ModelSpec, ServerConfig
from tiny import write_folder


def test_a_preloaded_model_has_the_options_of_one_loaded_later(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "dtype": "fp32",
        "kv_cache_dtype": "auto",
        "kv_cache_memory": 300_000,
        "max_model_len": 64,
        "num_threads": 1,
        "max_num_seqs": 64,
    }
    spec = ModelSpec(str(write_folder(tmp_path / "m")), ("m",), options)
    with _preloaded(ServerConfig((spec,)))(spec, lambda stage, done, total: None) as llm:
        assert llm.info.execution is not None
        pages = llm.info.execution.kv_cache_tokens
    with LLM(spec.source, **options) as later:
        assert later.info.execution is not None
        assert later.info.execution.kv_cache_tokens == pages < 64 * 64


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key", ","], "--api-key is empty"),
        (["--kv-memory", "inf"], "invalid value for '--kv-memory'"),
        (["--shutdown-timeout", "inf"], "invalid value for '--shutdown-timeout'"),
        (["--dtype", "int5"], "--dtype must be one of"),
        (["--kv-dtype", "int5"], "--kv-dtype must be one of"),
        (["--threads", "5000"], "invalid value for '--threads'"),
        (["--metrics-prefix", "a b"], "--metrics-prefix"),
        (["--media-domains", "https://a.example/"], "is not a host"),
        (["--picture-memory", "-1"], "invalid value for '--picture-memory'"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm4.server.run.bind", lambda config: pytest.fail("it serves"))
    assert main(["serve", "-m", "nothing", "--port", "0", *args]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, 5000])
def test_a_number_of_threads_that_cannot_be_is_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="num_threads must be at"):
        LLM(str(write_folder(tmp_path / "m")), num_threads=count)


@pytest.mark.parametrize(("host", "says"), [("192.0.2.1", "--host must be"), ("127.0.0.1", "another --port")])
def test_an_address_that_cannot_be_used_comes_with_fitting_advice(
    host: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "-m", "nothing", "--host", host, "--insecure", "--port", port]) == 2
    assert says in capsys.readouterr().err


def test_the_variable_names_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for every other command; a folder's name may have spaces."""
    configs: list[ServerConfig] = []

    def bind(config: ServerConfig) -> None:
        configs.append(config)
        raise Exit

    monkeypatch.setattr("glm4.server.run.bind", bind)
    for value, source in (("some folder/my model", "some folder/my model"), ("", "starter")):
        monkeypatch.setenv("GLM4_MODEL", value)
        assert main(["serve"]) == 0
        assert [spec.source for spec in configs.pop().models] == [source]


def test_options_of_pictures_reach_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[ServerConfig] = []

    def bind(config: ServerConfig) -> None:
        configs.append(config)
        raise Exit

    monkeypatch.setattr("glm4.server.run.bind", bind)
    assert main(["serve", "-m", "a=smoke", "-m", "b=smoke"]) == 0
    hosts = ["--media-domains", "example.com", "--media-domains", ".example.org"]
    given = [*hosts, "--allow-many-images", "--picture-memory", "0.5", "--max-body-mb", "64"]
    assert main(["serve", "-m", "a=smoke", "-m", "b=smoke", *given]) == 0
    plain, chosen = configs
    for spec in plain.models:
        assert (spec.options["allow_many_images"], spec.options["media_domains"]) == (False, None)
        assert "picture_cache_memory" not in spec.options, "other backends have none"
    for spec in chosen.models:
        assert spec.options["allow_many_images"] is True
        assert spec.options["media_domains"] == ["example.com", ".example.org"]
        assert spec.options["picture_cache_memory"] == 500_000_000
    assert chosen.max_body_bytes == 64 << 20
    assert plain.max_body_bytes >= 4 * MAX_MEDIA_NBYTES // 3 + (1 << 20), "the largest picture, and what is around it"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_key_file_may_be_as_windows_editors_write_it(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[ServerConfig] = []

    def bind(config: ServerConfig) -> None:
        configs.append(config)
        raise Exit

    monkeypatch.setattr("glm4.server.run.bind", bind)
    content = "# für uns\r\nkey-number-one\r\n\r\nkey-number-two\r\n".encode(encoding)
    (tmp_path / "keys.txt").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    for file in (str(tmp_path / "keys.txt"), "-"):
        assert main(["serve", "--api-key-file", file]) == 0
        assert configs.pop().api_keys == ("key-number-one", "key-number-two")
