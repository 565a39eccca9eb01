"""`tokenizer.json` through the tokenizers library: equal to the library with and without special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from glm4.errors import TokenizerError
from glm4.system.helper import Helper
from glm4.tokenizer import Tokenizer, components, hf_tokenizer, load_tokenizer
from glm4.tokenizer.tiktoken_tokenizer import GLM4_PATTERN

CORPUS = ["Hello world, hello user and assistant. 你好世界 <|user|> 12345\n\n  indented"] * 3 + ["user tool_call"] * 5
CONTROL = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]
MARKERS = ["<tool_call>", "</tool_call>", "<think>"]


def build(*, specials_in_vocabulary: bool = False) -> tokenizers.Tokenizer:
    """A trained byte-level BPE like GLM-4's `tokenizer.json`, `<|user|>` being mergeable from its parts."""
    core = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    core.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GLM4_PATTERN), "isolated"), byte_level])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL if specials_in_vocabulary else [],
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens(CONTROL)
    core.add_tokens(MARKERS)
    return core


def save(core: tokenizers.Tokenizer, folder: Path, **changes: Any) -> Path:
    definition = json.loads(core.to_str())
    definition.update(changes)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def library() -> tokenizers.Tokenizer:
    return build()


@pytest.fixture(scope="module")
def ours(library: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(save(library, tmp_path_factory.mktemp("json")))


def without_added(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    definition = json.loads(library.to_str())
    definition["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


TEXTS = st.lists(
    st.one_of(st.sampled_from([*CONTROL, *MARKERS, "<|", "|>", "é", "e\u0301", "\n"]), st.text(max_size=10)), max_size=8
).map("".join)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_specials_allowed_equals_the_library(library: tokenizers.Tokenizer, ours: Tokenizer, text: str) -> None:
    assert ours.encode(text, allow_special=True) == library.encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_plain_equals_a_vocabulary_without_specials(library: tokenizers.Tokenizer, ours: Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ids == without_added(library).encode(text, add_special_tokens=False).ids
    assert not set(ids) & {token.id for token in ours.added_tokens.values()}


def test_names(library: tokenizers.Tokenizer, ours: Tokenizer) -> None:
    assert dict(ours.special_tokens) == {name: library.token_to_id(name) for name in CONTROL}
    assert list(ours.added_tokens) == CONTROL + MARKERS
    assert ours.size == library.get_vocab_size()
    assert ours.unnamed_ids(ours.size + 2).tolist() == [ours.size, ours.size + 1]
    marker, control = library.token_to_id("<think>"), library.token_to_id("<sop>")
    assert marker is not None
    assert control is not None
    assert ours.decode([marker, control]) == "<think>"
    assert ours.decode([marker, control], skip_special_tokens=False) == "<think><sop>"


def test_every_byte(ours: Tokenizer) -> None:
    text = "".join(map(chr, range(0x250))) + "你🙂\u2028\U0010ffff"
    assert ours.decode(ours.encode(text)) == text


def test_specials_inside_the_vocabulary(tmp_path: Path) -> None:
    """Some files list special tokens in the BPE vocabulary too; a whole-word look-up must not find them there."""
    core = build(specials_in_vocabulary=True)
    assert json.loads(core.to_str())["model"]["vocab"]["<|user|>"] == core.token_to_id("<|user|>")
    ours = load_tokenizer(save(core, tmp_path, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False,
                                                              "trim_offsets": True, "use_regex": False}))  # fmt: skip
    ids = ours.encode("<|user|>")  # without a split pattern the whole text is one word
    assert core.token_to_id("<|user|>") not in ids
    assert ours.decode(ids) == "<|user|>"
    assert ours.encode("<|user|>", allow_special=True) == [core.token_to_id("<|user|>")]


def test_merges_that_make_a_special_token_are_dropped(tmp_path: Path) -> None:
    """Even a file whose merges lead to `<sop>` cannot turn text into it."""
    definition = json.loads(build().to_str())
    model = definition["model"]
    size = max(model["vocab"].values()) + 1
    sop = next(token for token in definition["added_tokens"] if token["content"] == "<sop>")
    model["vocab"].update({"so": size + 20, "<so": size + 21, "p>": size + 22, "<sop>": sop["id"]})
    model["merges"] = [["s", "o"], ["<", "so"], ["p", ">"], ["<so", "p>"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    ours = load_tokenizer(tmp_path)
    assert sop["id"] not in ours.encode("<sop>")
    assert ours.decode(ours.encode("<sop>")) == "<sop>"


def test_strip_flags(tmp_path: Path) -> None:
    core = build()
    core.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<end>", rstrip=True)])
    ours = load_tokenizer(save(core, tmp_path))
    for text in ("a  <mask> b", "a <end>  b", " <mask><end> ", "<mask>"):
        assert ours.encode(text, allow_special=True) == core.encode(text, add_special_tokens=False).ids


def test_prefix(tmp_path: Path) -> None:
    core = build()
    ours = load_tokenizer(save(core, tmp_path))
    assert ours.prefix_ids == (core.token_to_id("[gMASK]"), core.token_to_id("<sop>"))
    definition = json.loads(core.to_str())
    definition["added_tokens"] = [t for t in definition["added_tokens"] if t["content"] not in ("[gMASK]", "<sop>")]
    bos = core.token_to_id("<|user|>")
    template = processors.TemplateProcessing(
        "<|user|> $A <|assistant|>", None, [("<|user|>", bos), ("<|assistant|>", 1)]
    )
    core.post_processor = template
    definition["post_processor"] = json.loads(core.to_str())["post_processor"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert load_tokenizer(tmp_path).prefix_ids == (bos,)


def test_configuration_adds_tokens_and_names_the_end(tmp_path: Path) -> None:
    core = build()
    extra = core.get_vocab_size() + 5
    config = {
        "eos_token": {"content": "<|endoftext|>"},
        "added_tokens_decoder": {str(extra): {"content": "<extra>", "special": True}, "0": {"content": "<|user|>"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(save(core, tmp_path))
    assert ours.special_id("<extra>") == extra
    assert ours.special_id("<|user|>") == core.token_to_id("<|user|>"), "tokenizer.json is the one to believe"
    assert ours.eos_ids == {core.token_to_id("<|endoftext|>")}
    assert ours.unnamed_ids(extra + 1).tolist() == list(range(extra - 5, extra))


def test_truncation_in_the_file_is_ignored(tmp_path: Path) -> None:
    core = build()
    core.enable_truncation(2)
    ours = load_tokenizer(save(core, tmp_path))
    assert ours.decode(ours.encode("Hello world, hello")) == "Hello world, hello"


def prefixed(ids: object) -> dict[str, Any]:
    """A post-processor that puts the ids before a text."""
    return {"single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {"<s>": {"ids": ids}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no BPE vocabulary"),
        ({"model": {"type": "Unigram", "vocab": {}}}, "only byte-level BPE"),
        ({"decoder": {"type": "Metaspace"}}, "only byte-level BPE"),
        ({"added_tokens": {}}, "must be a list"),
        ({"added_tokens": ["<a>"]}, "integer id and a text content"),
        ({"added_tokens": [{"id": 0, "content": "<a>"}]}, "share an id"),
        ({"added_tokens": [{"id": 5_000_000_000, "content": "<a>"}]}, "not usable"),
        ({"added_tokens": [{"id": 400, "content": "<\ud800>"}]}, "not usable"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}, "tokenizer.json"),
        ({"post_processor": {"single": [{"SpecialToken": 3}]}, "added_tokens": []}, "damaged"),
        ({"post_processor": prefixed(["a"]), "added_tokens": []}, "begin with"),
        ({"post_processor": prefixed([-1]), "added_tokens": []}, "begin with"),
        ({"post_processor": prefixed([1 << 40]), "added_tokens": []}, "begin with"),
        ({"post_processor": prefixed(7), "added_tokens": []}, "damaged"),
        ({"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}, "no integer or out of range"),
        ({"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}, "merges": []}}, "share an id"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "c"]]}}, "out of vocabulary"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "<sop>": 9}, "merges": [7],},
          "added_tokens": [{"id": 9, "content": "<sop>"}]}, "damaged"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(build(), tmp_path, **changes)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"model": {"type": "BPE", "continuing_subword_prefix": "####", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "?"}},
    ],
    ids=["panic while reading", "panic while building", "panic while encoding", "bare exception while encoding"],
)
def test_the_library_fails(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A panic of the library is no Exception: it would get past everything that reports errors."""
    save(build(), tmp_path, **changes)
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path).encode("b")


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 500}}, "more than 16 parts"),
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 3}}, "makes texts longer"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/" * 400}}, "'Precompiled' is not supported"),
        ({"normalizer": [1]}, "'list' is not supported"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "'Metaspace' is not supported"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 2}}, "ByteLevel twice"),
        ({"pre_tokenizer": split("a" * 5000)}, "more than 4096 characters"),
    ],
)
def test_components_that_could_end_the_process_are_refused_unseen(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save(build(), tmp_path, **changes)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_patterns_with_counts_are_compiled_elsewhere_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Dying(Helper):
        def call(self, function: str, argument: bytes) -> bytes:
            calls.append(function)
            if b"9999" not in argument:
                return super().call(function, argument)
            return super().call("glm4.no_such_module:build", argument)

    monkeypatch.setattr(components, "Helper", Dying)
    save(build(), tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": [split("(a|b){2,400}"), BYTE_LEVEL]})
    assert load_tokenizer(tmp_path).encode("ab")
    save(build(), tmp_path, pre_tokenizer=split("(a{0,9999}){0,9999}"))
    with pytest.raises(TokenizerError, match="too complex"):
        load_tokenizer(tmp_path)
    assert len(calls) == 2
    save(build(), tmp_path)
    load_tokenizer(tmp_path)
    assert len(calls) == 2, "published patterns start no process"


def test_not_json_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(TokenizerError, match="not valid JSON"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr(hf_tokenizer, "MAX_FILE_BYTES", 5)
    with pytest.raises(TokenizerError, match="refusing to read"):
        load_tokenizer(tmp_path / "tokenizer.json")
