"""What `--to hf` writes, opened by transformers without code from the checkpoint: ids, text and prompts equal ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import SOURCES, export

from glm4 import LLM, SamplingParams
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message, ToolCall
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.requests.processor import Processor
from glm4.tokenizer import load_tokenizer
from tiny import tiny_model, write_folder
from vocabularies import glm4_rank_file

pytestmark = pytest.mark.backends

CORPUS = (
    "The quick brown fox's 12,345 jumps — don't you see?  \n\n\tdef f(x):\n    return x**2\r\n",
    "北京是中华人民共和国的首都。　全角空格，标点「」；1234567890年。\n而 且",
    "こんにちは世界、カタカナ。 안녕하세요 세계! Ünïcödé ﬁ ﬂ Å",
    "שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก Привет, мир! Γειά σου",
    "👩‍👩‍👧‍👦 🇨🇳 🏳️‍🌈 e\u0301 \u00a0\u2003\u200b\ufeff x" + " " * 40 + "y" + "\n" * 9,
    "<|user|> <|endoftext|> [gMASK]<sop> <|assistant|>\n",
    "",
    " ",
)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}},
}
CALL = '{"city": "北京"}'
FOREIGN: list[dict[str, Any]] = [
    {"role": "system", "content": "简短。"},
    {"role": "user", "content": "北京?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": CALL}}]},
    {"role": "tool", "content": "21 °C"},
    {"role": "assistant", "content": "Warm."},
    {"role": "user", "content": "上海?"},
]  # fmt: skip
MESSAGES = (
    Message("system", "简短。"),
    Message("user", "北京?"),
    Message("assistant", "", tool_calls=(ToolCall("1", "weather", CALL),)),
    Message("tool", "21 °C", tool_call_id="1"),
    Message("assistant", "Warm."),
    Message("user", "上海?"),
)


@pytest.mark.parametrize("name", SOURCES)
def test_greedy_ids_are_ours_in_float32(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    source, out = SOURCES[name](tmp_path / "source"), tmp_path / "out"
    report = export(source, out, "fp32", to="hf", shard_bytes=100_000)
    prompts = [np.random.default_rng(seed).integers(0, 250, length).tolist() for seed, length in ((1, 7), (2, 300))]
    with LLM(str(source), dtype="fp32") as llm:
        params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, repetition_penalty=1.0)
        ours = [
            list(one.outputs[0].token_ids) for one in llm.generate([{"prompt_token_ids": p} for p in prompts], params)
        ]
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__name__ == report.architecture
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    unnamed = Processor.open(source).tokenizer.unnamed_ids(model.config.vocab_size).tolist()
    for prompt, wanted in zip(prompts, ours, strict=True):
        options = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None, "repetition_penalty": 1.0}
        ids = torch.tensor([prompt])
        # our engine never samples rows without a token
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options, suppress_tokens=unnamed or None)
        assert made[0, len(prompt) :].tolist() == wanted


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """GLM-4's own vocabulary, from the original layout; the model is tiny."""
    folder = tmp_path_factory.mktemp("vocabulary")
    model = tiny_model("chatglm", vocab_size=151552, hidden_size=32, head_dim=8)
    settings = {"eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329, "seq_length": 131072}
    source = write_folder(folder / "m", model, tokenizer=False, chat_template=None, config=settings)
    (source / "tokenizer.model").write_bytes(glm4_rank_file())
    export(source, folder / "hf", "bf16", to="hf")
    return source, folder / "hf"


def test_the_tokenizer_gives_our_ids(exported: tuple[Path, Path]) -> None:
    import transformers

    source, folder = exported
    ours, theirs = load_tokenizer(source), transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.is_fast
    for text in CORPUS:
        assert theirs(text)["input_ids"] == ours.encode_prompt(text, allow_special=True)
        ids = ours.encode(text, allow_special=True)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    rows = np.random.default_rng(0).integers(0, 151329, 2000)
    for at in range(0, 2000, 20):
        text = ours.decode(rows[at : at + 20].tolist())
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.padding_side) == (151329, 151329, "left")
    assert theirs.model_max_length == 131072
    assert set(ours.special_tokens.values()) == set(theirs.all_special_ids)


@pytest.mark.parametrize("tools", [(), (TOOL,)])
@pytest.mark.parametrize("count", [2, 6])
def test_the_chat_template_writes_our_prompt(tools: tuple[Any, ...], count: int, exported: tuple[Path, Path]) -> None:
    import transformers

    source, folder = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    made = theirs.apply_chat_template(
        FOREIGN[:count], tools=list(tools) or None, add_generation_prompt=True, return_dict=False
    )
    with open_checkpoint(source) as checkpoint:
        prompt = Processor.load(checkpoint).render(ChatRequest(messages=MESSAGES[:count], tools=tools))
    assert list(made) == list(prompt.ids)


def test_the_generation_config_stops_where_we_stop(exported: tuple[Path, Path]) -> None:
    import transformers

    config = transformers.GenerationConfig.from_pretrained(exported[1])
    assert config.eos_token_id == [151329, 151336, 151338]
    assert config.pad_token_id == 151329


def test_a_starter_keeps_its_vocabulary(tmp_path: Path) -> None:
    """ChatML, with digits and normalization of its own."""
    import transformers

    source = SOURCES["qwen2"](tmp_path / "m")
    export(source, tmp_path / "out", "bf16", to="hf")
    ours = Processor.open(source).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (*CORPUS, "<|im_start|>user\n1 2<|im_end|>"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text, allow_special=True)
