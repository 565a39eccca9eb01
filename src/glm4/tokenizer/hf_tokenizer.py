"""Byte-level BPE through the `tokenizers` library: `tokenizer.json`, and what `gguf_vocab` builds from GGUF metadata.

The library always matches added tokens in the text it encodes. We therefore build it without any and split text at
special tokens ourselves where that is wanted, so user text can never become one.

Not covered: an untrusted `tokenizer.json` can have a split pattern on which the regular expression engine is slow.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4.errors import TokenizerError
from glm4.system.gc_pause import collection_paused
from glm4.system.text_encoding import read_text
from glm4.tokenizer.base import LONG_TEXT, MAX_TOKEN_ID, AddedToken, Tokenizer, glm_prefix_ids
from glm4.tokenizer.components import check_components
from glm4.tokenizer.library_errors import library_errors
from glm4.tokenizer.table import VocabularyTable

if TYPE_CHECKING:
    import tokenizers

    from glm4.tokenizer.short_texts import ShortTexts

MAX_FILE_BYTES = 128 << 20

_ASCII = bytes(range(128))
# Normalizers and pre-tokenizers that remove nothing.
_KEEPING = {"Sequence", "NFC", "NFD", "ByteLevel", "Split", "Digits"}


class ByteLevelBPE(Tokenizer):
    """A `tokenizers.Tokenizer` without added tokens, with the added tokens kept separately.

    A character whose bytes are not in the vocabulary yields no token (SmolLM2 lacks 21 rare bytes), as in the original.

    Args:
        core: returns (and caches) the tokenizer for plain text, which must not know any added token.
        pieces: id → token in the byte-level alphabet (one printable character per byte).
        short_texts: encodes the first short texts, so `core` is built only when there is more to encode.
    """

    def __init__(
        self,
        core: Callable[[], tokenizers.Tokenizer],
        pieces: Mapping[int, str],
        added_tokens: Iterable[AddedToken],
        prefix_ids: tuple[int, ...] = (),
        eos_ids: frozenset[int] = frozenset(),
        short_texts: ShortTexts | None = None,
    ) -> None:
        named = pieces.ids if isinstance(pieces, VocabularyTable) else pieces
        super().__init__(named_ids=named, added_tokens=added_tokens, prefix_ids=prefix_ids, eos_ids=eos_ids)
        self._core = core
        self._pieces = pieces
        self._short_texts = short_texts

    def definition(self) -> dict[str, Any]:
        """This tokenizer as the library knows it, as a `tokenizer.json` object without added tokens."""
        value: dict[str, Any] = json.loads(self._core().to_str())
        return value

    def core(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, which encodes plain text."""
        return self._core()

    def build(self) -> None:
        """See `Tokenizer.build`."""
        self._core()

    def _encode_plain(self, text: str) -> list[int]:
        if self._short_texts is not None and self._short_texts.takes(text):
            return self._short_texts.encode(text)
        core = self._core()
        with library_errors("the tokenizer cannot encode this text"):
            if len(text) < LONG_TEXT:
                ids: list[int] = core.encode(text, add_special_tokens=False).ids
            else:  # without offsets, which take most of the time and memory; and other threads run meanwhile
                ids = core.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _kept_bytes(self, text: str) -> int:
        if not self._keeps_text:
            return 0
        # Canonical composition makes text shorter. What is not ASCII keeps a third (Hangul), or a quarter if what is
        # ASCII counts in full: u, diaeresis and macron become one character of two bytes.
        data = text.encode().translate(None, self._dropped_bytes)
        others = len(data.translate(None, _ASCII))
        return len(data) - others + others // 4

    @cached_property
    def _dropped_bytes(self) -> bytes:
        """Bytes that the vocabulary lacks, so that they yield no token."""
        pieces = self._pieces
        known = pieces.alphabet() if isinstance(pieces, VocabularyTable) else set(pieces.values())
        return bytes(byte for character, byte in byte_alphabet().items() if character not in known)

    @cached_property
    def _keeps_text(self) -> bool:
        """Whether normalizer and pre-tokenizer are known to leave all of a text there."""
        core = self._core()
        steps = [json.loads(one.__getstate__()) for one in (core.normalizer, core.pre_tokenizer) if one is not None]
        kinds = set().union(*map(_types, steps))
        return kinds <= _KEEPING and "Removed" not in json.dumps(steps)

    def _piece(self, token_id: int) -> bytes | None:
        piece = self._pieces.get(token_id)
        if piece is None:
            return None
        table = byte_alphabet()
        try:
            return bytes([table[character] for character in piece])
        except KeyError:
            return piece.encode()  # a token outside the byte alphabet stands for itself


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Character → byte of the GPT-2 byte-level alphabet: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = (b for b in range(256) if b not in set(printable))
    table.update({chr(0x100 + n): b for n, b in enumerate(others)})
    return table


# Fields of a BPE model that `tokenizers.models.BPE` accepts under the same name.
BPE_OPTIONS = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "ignore_merges")


def shell_of(definition: Mapping[str, Any], path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer for a `tokenizer.json` minus vocabulary, added tokens, truncation and so on.

    Raises:
        TokenizerError: the library refuses it, or must not see it.
    """
    from tokenizers import Tokenizer

    shell = {
        "version": "1.0",
        "normalizer": definition.get("normalizer"),
        "pre_tokenizer": definition.get("pre_tokenizer"),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    check_components(shell, path)
    with library_errors(str(path)):
        return Tokenizer.from_str(json.dumps(shell))


def _build_core(shell: tokenizers.Tokenizer, model: Mapping[str, Any], path: Path) -> tokenizers.Tokenizer:
    """Give the shell its vocabulary and merges.

    The vocabulary is passed as is: serializing 150,000 tokens to JSON again would take a second.

    Raises:
        TokenizerError: the library refuses it.
    """
    from tokenizers import models

    options = {name: model[name] for name in BPE_OPTIONS if model.get(name)}
    listed = model.get("merges") or ()
    if set(map(type, listed)) == {str}:
        merges = [tuple(merge.split(" ", 1)) for merge in listed]
    else:
        merges = [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in listed]
    with library_errors(str(path)):
        shell.model = models.BPE(dict(model["vocab"]), merges, **options)
    return shell


def once(make: Callable[[], tokenizers.Tokenizer]) -> Callable[[], tokenizers.Tokenizer]:
    """`make` with its result cached. Concurrent callers wait: a shell accepts its tables only once."""
    lock, kept = threading.Lock(), list[Any]()

    def get() -> tokenizers.Tokenizer:
        if not kept:
            with lock:
                if not kept:
                    kept.append(make())
        made: tokenizers.Tokenizer = kept[0]
        return made

    return get


def read_tokenizer_json(
    path: Path, config_tokens: Sequence[AddedToken] = (), eos_names: Sequence[str] = ()
) -> ByteLevelBPE:
    """Read a `tokenizer.json`.

    Args:
        path: the file.
        config_tokens: added tokens named by `tokenizer_config.json`; those missing from `tokenizer.json` are added.
        eos_names: spellings of the end-of-text tokens.

    Raises:
        TokenizerError: not a byte-level BPE, damaged, or too large.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise TokenizerError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; refusing to read it")
    with collection_paused():
        return _read_tokenizer_json(path, config_tokens, eos_names)


def _read_tokenizer_json(path: Path, config_tokens: Sequence[AddedToken], eos_names: Sequence[str]) -> ByteLevelBPE:
    try:
        definition = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); download it again") from None
    model = definition.get("model") if isinstance(definition, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"{path}: no BPE vocabulary inside")
    kind = model.get("type", "BPE")
    if kind != "BPE" or "ByteLevel" not in _types(definition.get("decoder")):
        raise TokenizerError(f"{path}: only byte-level BPE is supported; this is {kind} with another decoder")
    try:
        return _from_definition(definition, model, path, config_tokens, eos_names)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{path} is damaged ({type(error).__name__}: {error}); download it again") from None


def _from_definition(
    definition: Mapping[str, Any],
    model: dict[str, Any],
    path: Path,
    config_tokens: Sequence[AddedToken],
    eos_names: Sequence[str],
) -> ByteLevelBPE:
    added = _json_added_tokens(definition.get("added_tokens"), path)
    known = {token.content for token in added} | {token.id for token in added}
    added += [token for token in config_tokens if token.content not in known and token.id not in known]
    pieces = _without_added(model, added, path)
    prefix = glm_prefix_ids(added) or _prefix_of(definition.get("post_processor"))
    stops = frozenset(t.id for t in added if t.content in eos_names)
    shell = shell_of(definition, path)
    core = _build_core(shell, model, path)
    return ByteLevelBPE(lambda: core, pieces, added, prefix, stops)


def _types(node: object) -> set[str]:
    """Type names of a pre-tokenizer, decoder, etc., and of everything inside a Sequence."""
    if isinstance(node, dict):
        inner = [v for v in node.values() if isinstance(v, list)]
        return {str(node.get("type"))}.union(*(_types(item) for items in inner for item in items))
    return set()


def _json_added_tokens(raw: object, path: Path) -> list[AddedToken]:
    if not isinstance(raw, list | None):
        raise TokenizerError(f"{path}: added_tokens must be a list")
    return [added_token_from(entry, entry.get("id") if isinstance(entry, dict) else None, path) for entry in raw or ()]


def added_token_from(entry: object, token_id: object, path: Path) -> AddedToken:
    """Parse one added token in the format of `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        TokenizerError: wrong types, or an unsupported kind of matching.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not isinstance(token_id, int):
        raise TokenizerError(f"{path}: an added token needs an integer id and a text content")
    if entry.get("single_word"):
        raise TokenizerError(f"{path}: added token {entry['content']!r} is single_word, which is not supported")
    return AddedToken(
        entry["content"],
        token_id,
        special=bool(entry.get("special", True)),
        lstrip=bool(entry.get("lstrip")),
        rstrip=bool(entry.get("rstrip")),
    )


def _without_added(model: dict[str, Any], added: Sequence[AddedToken], path: Path) -> dict[int, str]:
    """Remove the added tokens from a BPE model (some files list them twice) and return id → piece of the rest."""
    vocab: dict[str, int] = model["vocab"]
    if set(map(type, vocab.values())) - {int} or (
        vocab and not 0 <= min(vocab.values()) <= max(vocab.values()) < MAX_TOKEN_ID
    ):
        raise TokenizerError(f"{path}: a token id is no integer or out of range")
    names = {token.content for token in added}
    if names & vocab.keys():
        model["vocab"] = vocab = {piece: i for piece, i in vocab.items() if piece not in names}
        model["merges"] = drop_merges(model.get("merges") or (), names)
    pieces = {i: piece for piece, i in vocab.items()}
    if len(pieces) != len(vocab) or not pieces.keys().isdisjoint(token.id for token in added):
        raise TokenizerError(f"{path}: two tokens share an id; the file is damaged")
    return pieces


def drop_merges(merges: Iterable[Any], names: set[str]) -> list[Any]:
    """Merges that neither use nor produce one of the given tokens. A merge is "a b" or ["a", "b"]."""
    kept = []
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        if left not in names and right not in names and left + right not in names:
            kept.append(merge)
    return kept


def _prefix_of(post_processor: object) -> tuple[int, ...]:
    """Ids that a TemplateProcessing prepends to a single text."""
    if not isinstance(post_processor, dict):
        return ()
    if post_processor.get("type") == "Sequence":
        for part in post_processor.get("processors") or ():
            if prefix := _prefix_of(part):
                return prefix
    ids: list[int] = []
    table = post_processor.get("special_tokens") or {}
    for step in post_processor.get("single") or ():
        name = step.get("SpecialToken", {}).get("id") if isinstance(step, dict) else None
        if name is None or name not in table:
            break
        ids += table[name]["ids"]
    return tuple(ids)
