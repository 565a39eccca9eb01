"""A tokenizer from GGUF metadata: tokens, merges, token types, and the name of the pre-tokenizer.

The pre-tokenizer is only named there, not described; the table below says what each name means. Sources: llama.cpp's
`llama-vocab.cpp` for the names, the original checkpoints' tokenizer files for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4.errors import TokenizerError
from glm4.tokenizer.base import MAX_TOKEN_ID, AddedToken, glm_prefix_ids
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE, drop_merges
from glm4.tokenizer.library_errors import library_errors
from glm4.tokenizer.tiktoken_tokenizer import GLM4_PATTERN

if TYPE_CHECKING:
    import tokenizers

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_QWEN2_PATTERN = GLM4_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")  # every digit separately
_ROLE_KEYS = {"eos_token": "eos_token_id", "bos_token": "bos_token_id", "pad_token": "padding_token_id"}
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class PreTokenizer:
    """How text is prepared before the merges.

    Attributes:
        split: builds the library's pre-tokenizer.
        nfc: normalize to NFC first (the GGUF metadata does not say so, the original tokenizer does).
        ignore_merges: look up a whole word in the vocabulary before merging.
    """

    split: Callable[[], tokenizers.pre_tokenizers.PreTokenizer]
    nfc: bool = False
    ignore_merges: bool = False


def _pattern(pattern: str) -> Callable[[], tokenizers.pre_tokenizers.PreTokenizer]:
    def build() -> tokenizers.pre_tokenizers.PreTokenizer:
        from tokenizers import Regex, pre_tokenizers

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])

    return build


def _gpt2(*, digits: bool) -> Callable[[], tokenizers.pre_tokenizers.PreTokenizer]:
    def build() -> tokenizers.pre_tokenizers.PreTokenizer:
        from tokenizers import pre_tokenizers

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        steps = [pre_tokenizers.Digits(individual_digits=True), byte_level] if digits else [byte_level]
        return pre_tokenizers.Sequence(steps)

    return build


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> ByteLevelBPE:
    """Build the tokenizer that a GGUF file describes.

    Args:
        metadata: the file's key → value pairs; arrays as any sequence.

    Raises:
        TokenizerError: the vocabulary is missing, of an unsupported kind, or damaged.
    """
    try:
        return _from_metadata(metadata)
    except (TypeError, ValueError, OverflowError) as error:  # a number where an array belongs, for example
        raise TokenizerError(f"the GGUF vocabulary is damaged ({type(error).__name__}: {error})") from None


def _from_metadata(metadata: Mapping[str, Any]) -> ByteLevelBPE:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise TokenizerError(f"GGUF vocabulary of type {kind!r} is not supported; only byte-level BPE ('gpt2') is")
    pre_name = metadata.get("tokenizer.ggml.pre")
    if pre_name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(f"GGUF pre-tokenizer {pre_name!r} is not known; known are {known}")
    pieces, added = _tokens(metadata)
    merges = _merges(metadata, {token.content for token in added})
    core = _build(pieces, merges, PRE_TOKENIZERS[pre_name])
    prefix = glm_prefix_ids(added)
    if not prefix and metadata.get("tokenizer.ggml.add_bos_token"):
        prefix = _ids(metadata, ("bos_token_id",))
    tokenizer = ByteLevelBPE(lambda: core, pieces, added, prefix, frozenset(_ids(metadata, _EOS_KEYS)))
    tokenizer.roles = _roles(metadata, {token.id: token.content for token in added})
    return tokenizer


def _roles(metadata: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, str]:
    """See `Tokenizer.roles`. Converters name a token for the beginning even where the model has none."""
    ids = {role: _ids(metadata, (key,)) for role, key in _ROLE_KEYS.items()}
    begins = metadata.get("tokenizer.ggml.add_bos_token")
    found = {role: names.get(one[0]) for role, one in ids.items() if one and (begins or role != "bos_token")}
    return {role: name for role, name in found.items() if name is not None}


def _tokens(metadata: Mapping[str, Any]) -> tuple[dict[int, str], list[AddedToken]]:
    """Ordinary tokens by id, and the added tokens; unused tokens are in neither."""
    tokens: Sequence[Any] = metadata.get("tokenizer.ggml.tokens", ())
    types: Sequence[Any] = metadata.get("tokenizer.ggml.token_type", ())
    if not 0 < len(tokens) < MAX_TOKEN_ID or len(types) not in (0, len(tokens)):
        raise TokenizerError(f"GGUF vocabulary has {len(tokens)} tokens and {len(types)} token types; it is damaged")
    kinds = [int(kind) for kind in types] or [NORMAL] * len(tokens)
    pieces: dict[int, str] = {}
    added: list[AddedToken] = []
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if not isinstance(token, str):
            raise TokenizerError(f"GGUF token {i} is no text; the vocabulary is damaged")
        if kind in (NORMAL, BYTE):
            pieces[i] = token
        elif kind in (CONTROL, USER_DEFINED):
            added.append(AddedToken(token, i, special=kind == CONTROL))
        elif kind not in (UNUSED, UNKNOWN):
            raise TokenizerError(f"GGUF token {i} has type {kind}, which does not exist; the vocabulary is damaged")
    return pieces, added


def _merges(metadata: Mapping[str, Any], names: set[str]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for i, merge in enumerate(metadata.get("tokenizer.ggml.merges", ())):
        pair = tuple(merge.split(" ")) if isinstance(merge, str) else ()
        if len(pair) != 2:
            raise TokenizerError(f"GGUF merge {i} is not a pair of tokens; the vocabulary is damaged")
        merges.append(pair)
    if not merges:
        raise TokenizerError("the GGUF file has no merges (tokenizer.ggml.merges); its vocabulary cannot be used")
    return drop_merges(merges, names)


def _build(pieces: Mapping[int, str], merges: list[tuple[str, str]], pre: PreTokenizer) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    vocab = {piece: i for i, piece in pieces.items()}
    if len(vocab) != len(pieces):
        raise TokenizerError("the GGUF vocabulary lists a token twice; it is damaged")
    with library_errors("GGUF vocabulary"):
        core = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.ignore_merges))
    return _prepare(core, pre)


def empty_core(pre: PreTokenizer) -> tokenizers.Tokenizer:
    """The library's tokenizer with these preparations and no vocabulary."""
    from tokenizers import Tokenizer, models

    return _prepare(Tokenizer(models.BPE()), pre)


def _prepare(core: tokenizers.Tokenizer, pre: PreTokenizer) -> tokenizers.Tokenizer:
    from tokenizers import normalizers

    if pre.nfc:
        core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre.split()
    return core


def _ids(metadata: Mapping[str, Any], keys: Sequence[str]) -> tuple[int, ...]:
    """The ids under these keys. Some files write 2**32 - 1 for a missing token."""
    values = (metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    ids = (int(value) for value in values if value is not None)
    return tuple(token for token in ids if 0 <= token < len(metadata["tokenizer.ggml.tokens"]))


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "chatglm-bpe": PreTokenizer(_pattern(GLM4_PATTERN), ignore_merges=True),
    "glm4": PreTokenizer(_pattern(GLM4_PATTERN), ignore_merges=True),
    "llama-bpe": PreTokenizer(_pattern(GLM4_PATTERN), ignore_merges=True),  # Llama 3 uses the same pattern
    "qwen2": PreTokenizer(_pattern(_QWEN2_PATTERN), nfc=True),
    "smollm": PreTokenizer(_gpt2(digits=True)),
    "gpt-2": PreTokenizer(_gpt2(digits=False)),
}
