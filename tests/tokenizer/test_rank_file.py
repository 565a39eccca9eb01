"""Damaged `tokenizer.model` files are refused with an error that says where."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from glm4.errors import TokenizerError
from glm4.tokenizer import load_tokenizer, tiktoken_tokenizer

BYTES = [bytes([b]) for b in range(256)]


def rank_lines(tokens: list[bytes]) -> list[bytes]:
    return [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]


def write(folder: Path, lines: list[bytes]) -> Path:
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def test_a_small_vocabulary_loads(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, rank_lines([*BYTES, b"he", b"hel", b"lo", b"hello"])))
    assert tokenizer.encode("hello hex") == [259, 32, 256, 120]
    assert tokenizer.special_id("<|endoftext|>") == 260
    assert tokenizer.size == 274


def test_a_byte_order_mark_is_not_a_piece(tmp_path: Path) -> None:
    first, *others = rank_lines(BYTES)
    assert load_tokenizer(write(tmp_path, [b"\xef\xbb\xbf" + first, *others])).encode("hi") == [104, 105]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "ranks must be"),
        ([b"AA== 0", b"AQ== 2"], "ranks must be"),
        ([b"AA== 1", b"AQ== 2"], "ranks must be"),
        ([b"AA== 0", b"AQ== 0"], "ranks must be"),
        ([b"AA== 0", b"AA== 1"], "ranks must be"),
        (rank_lines(BYTES[:-1]), "single byte 0xff has no rank"),
        ([b"AA== 0", b"AQ==", b"Ag== 2"], "line 2: not `base64 rank`"),
        ([b"AA== 0", b"A!== 1"], "line 2: not `base64 rank`"),
        ([b"AA== zero"], "line 1"),
        ([b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00"], "line 2: not `base64 rank`"),  # a SentencePiece model
    ],
)
def test_damaged_files(tmp_path: Path, lines: list[bytes], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(write(tmp_path, lines))


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_tokenizer, "MAX_FILE_BYTES", 100)
    with pytest.raises(TokenizerError, match="no tiktoken vocabulary"):
        load_tokenizer(write(tmp_path, rank_lines(BYTES)))


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="holds no vocabulary"):
        load_tokenizer(None, gguf_metadata={"general.architecture": "chatglm"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "an object with an `added_tokens_decoder`"),
        ('{"added_tokens_decoder": []}', "an object with an `added_tokens_decoder`"),
        ('{"added_tokens_decoder": {"x": {"content": "<a>"}}}', "integer keys"),
        ('{"added_tokens_decoder": {"300": {"content": 7}}}', "integer id and a text content"),
        ('{"added_tokens_decoder": {"300": "<a>"}}', "integer id and a text content"),
        ('{"added_tokens_decoder": {"300": {"content": ""}}}', "not usable"),
        ('{"added_tokens_decoder": {"99999999999": {"content": "<a>"}}}', "not usable"),
        ('{"added_tokens_decoder": {"300": {"content": "<a>"}, "301": {"content": "<a>"}}}', "defined twice"),
        ('{"added_tokens_decoder": {"300": {"content": "<a>", "single_word": true}}}', "single_word"),
        ('{"added', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_damaged_configuration(tmp_path: Path, config: str, message: str) -> None:
    write(tmp_path, rank_lines(BYTES))
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)
