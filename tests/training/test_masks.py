"""Golden conversations: exactly the tokens that carry loss, in each dialect; and how other tools' masks differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from foreign_masks import ASSISTANT as ASSISTANT_ID
from foreign_masks import OBSERVATION, combined, efficient_eos, marked
from foreign_masks import USER as USER_ID
from training_rows import ASSISTANT, USER, chat, chatml, example, glm4_tokenizer, pieces, processor, trained

from glm4.chat.chat_request import ChatRequest
from glm4.prompt import ImageLayout
from glm4.requests.image_inputs import ImageInputs, ImageOptions
from glm4.training.data.encoding import Encoder
from glm4.training.data.examples import TokenizedExample, TokenizedPreference
from glm4.training.data.formats.row_values import Setting

SYSTEM: dict[str, Any] = {
    "role": "system",
    "content": "Be kind.",
    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
}
RESULT = {"role": "observation", "content": "21"}
BYE = {"role": "assistant", "content": "bye"}
LOOKING = "I look."


def call(*cities: str, **more: Any) -> dict[str, Any]:
    calls = [{"function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}} for city in cities]
    return {"role": "assistant", "tool_calls": calls, **more}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "two replies": [USER, ASSISTANT, USER, BYE],
    "call, result, reply": [SYSTEM, USER, call("x"), RESULT, ASSISTANT],
    "prose and two calls": [SYSTEM, USER, call("x", "y", content=LOOKING), RESULT, RESULT, ASSISTANT],
    "ends in a call": [SYSTEM, USER, call("x")],
    "reasoning": [USER, {**ASSISTANT, "reasoning_content": "hm"}],
    "reasoning before calls": [SYSTEM, USER, call("x", "y", reasoning_content="hm")],
    "spells a role": [{**USER, "content": "<|assistant|>\nno"}, {**ASSISTANT, "content": "<|user|> hello"}],
}

REPLY = ["\n", "hello", "<|user|>"]
SPELLED = ["<", "|", "user", "|", ">", " hello"]


def called(city: str, *end: str, after_name: str = "\n") -> list[str]:
    return ["get", "_weather", after_name, '{"', "city", '":', ' "', city, '"}', *end]


def calls(after_name: str) -> list[str]:
    return [
        *called("x", "<|assistant|>", after_name=after_name),
        *called("y", "<|observation|>", after_name=after_name),
    ]


def glm(after_name: str) -> dict[str, list[list[str]]]:
    looking = ["\n", "I", " look", ".", "<|assistant|>"]
    return {
        "two replies": [REPLY, ["\n", "bye", "<|user|>"]],
        "call, result, reply": [called("x", "<|observation|>", after_name=after_name), REPLY],
        "prose and two calls": [[*looking, *calls(after_name)], REPLY],
        "ends in a call": [called("x", "<|observation|>", after_name=after_name)],
        "reasoning": [REPLY],
        "reasoning before calls": [calls(after_name)],
        "spells a role": [["\n", *SPELLED, "<|user|>"]],
    }


THOUGHT = ["\n", "</", "think", ">\n\n"]
Z1 = {
    "two replies": [[*THOUGHT, "bye", "<|user|>"]],
    "call, result, reply": [[*THOUGHT, "hello", "<|user|>"]],
    "prose and two calls": [[*THOUGHT, "hello", "<|user|>"]],
    "ends in a call": [[*THOUGHT, *called("x", "<|observation|>")]],
    "reasoning": [["\n", "hm", *THOUGHT, "hello", "<|user|>"]],
    "reasoning before calls": [["\n", "hm", *THOUGHT, *calls("\n")]],
    "spells a role": [[*THOUGHT, *SPELLED, "<|user|>"]],
}


def tagged(city: str) -> list[str]:
    return [
        "<tool_call>", *'\n{"name": "get_weat', "he", *f'r", "arguments": {{"city": "{city}"}}}}\n', "</tool_call>",
    ]  # fmt: skip


HELLO = ["hel", "lo", "<|im_end|>"]
CHATML = {
    "two replies": [HELLO, [*"bye", "<|im_end|>"]],
    "call, result, reply": [[*tagged("x"), "<|im_end|>"], HELLO],
    "prose and two calls": [["I", " ", "lo", *"ok.\n", *tagged("x"), "\n", *tagged("y"), "<|im_end|>"], HELLO],
    "ends in a call": [[*tagged("x"), "<|im_end|>"]],
    "reasoning": [HELLO],
    "reasoning before calls": [[*tagged("x"), "\n", *tagged("y"), "<|im_end|>"]],
    "spells a role": [[*"<|user|> ", *HELLO]],
}
GOLDEN = {"glm4": glm("\n"), "glm4_0414": glm(" \n"), "glm_z1": Z1, "chatml": CHATML}


def encode(messages: list[dict[str, Any]], dialect: str = "glm4", **options: Any) -> TokenizedExample:
    model = chatml() if dialect == "chatml" else processor(dialect, glm4_tokenizer())
    sample = Encoder(model, **options).encode(chat({"messages": messages}))
    assert isinstance(sample, TokenizedExample)
    return sample


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("dialect", GOLDEN)
def test_golden(dialect: str, name: str) -> None:
    model = chatml() if dialect == "chatml" else processor(dialect, glm4_tokenizer())
    sample = encode(CONVERSATIONS[name], dialect)
    assert trained(sample, model.tokenizer) == GOLDEN[dialect][name]
    assert not sample.mask[0]
    # Up to the first trained token it is what the model is asked with; `[gMASK]<sop>` stands there once.
    first = int(sample.mask.argmax())
    last = len(CONVERSATIONS[name]) - 1 if dialect == "glm_z1" else 1 + (CONVERSATIONS[name][0] is SYSTEM)
    asked = ChatRequest.of(CONVERSATIONS[name][:last])
    assert sample.ids[:first].tolist() == list(model.render(asked).ids)
    if dialect != "chatml":
        assert sample.ids.tolist().count(151331) == sample.ids.tolist().count(151333) == 1


TURNS: list[dict[str, Any]] = [SYSTEM, USER, call("x"), RESULT, ASSISTANT, {**USER, "content": "and"}, BYE]
EACH = [called("x", "<|observation|>"), REPLY, ["\n", "bye", "<|user|>"]]


@pytest.mark.parametrize(
    ("loss", "weights", "expected"),
    [
        ("all", [1, 1, 1], EACH),
        ("last", [1, 1, 1], EACH[2:]),
        ("text", [1, 1, 1], EACH[1:]),
        ("all", [0, 1, 0], [EACH[1]]),
        ("text", [1, 0, 1], [EACH[2]]),
    ],
)
def test_loss_and_weights(loss: Any, weights: list[int], expected: list[list[str]]) -> None:
    left = iter(weights)
    messages = [{**turn, "weight": next(left)} if turn["role"] == "assistant" else turn for turn in TURNS]
    sample = encode(messages, loss=loss)
    assert trained(sample, glm4_tokenizer()) == expected
    assert sample.ids.tolist() == encode(TURNS).ids.tolist()


def test_nothing_to_learn() -> None:
    encoder = Encoder(chatml())
    assert encoder.encode(chat({"messages": [USER, {**ASSISTANT, "weight": 0}]})) is None
    assert encoder.counts.dropped_without_target == 1


def test_preferences_learn_their_answers_alone() -> None:
    row = {"prompt": [USER, ASSISTANT, USER], "chosen": [call("x")], "rejected": [BYE], "tools": SYSTEM["tools"]}
    pair = Encoder(processor("glm4", glm4_tokenizer())).encode(example(row))
    assert isinstance(pair, TokenizedPreference)
    assert trained(pair.chosen, glm4_tokenizer()) == [called("x", "<|observation|>")]
    assert trained(pair.rejected, glm4_tokenizer()) == [["\n", "bye", "<|user|>"]]
    first = int(pair.chosen.mask.argmax())
    assert pair.chosen.ids[:first].tolist() == pair.rejected.ids[:first].tolist()


def test_a_picture(tmp_path: Path) -> None:
    tokenizer = glm4_tokenizer()
    begin, end = tokenizer.special_id("<|begin_of_image|>"), tokenizer.special_id("<|end_of_image|>")
    layout = ImageLayout(size=28, num_rows=6, begin_id=begin, end_id=end)
    model = replace(processor("glm4", tokenizer), images=ImageInputs.of(layout, ImageOptions()))
    (tmp_path / "a.png").write_bytes(b"data")
    asked = {"role": "user", "content": "What? <|begin_of_image|>", "image": "a.png"}
    found = chat({"messages": [asked, ASSISTANT, USER, BYE]}, setting=Setting(image_folder=tmp_path))
    sample = Encoder(model).encode(found)
    assert isinstance(sample, TokenizedExample)
    assert trained(sample, tokenizer) == [REPLY, ["\n", "bye", "<|user|>"]]
    assert (sample.images, sample.image_starts) == ((b"data",), (4,))
    assert sample.ids[:10].tolist() == [151331, 151333, USER_ID, 198, begin, *[151329] * 4, end]
    cut = Encoder(model, max_length=9)
    assert cut.encode(found) is None
    assert cut.counts.cut_tokens == len(sample) - 4  # not a part of a picture
    with_text = Encoder(model, max_length=len(sample) - 1).encode(found)
    assert isinstance(with_text, TokenizedExample)
    assert with_text.image_starts == (4,)


# What is wrong elsewhere. A model that does not learn the tokens that end its turns does not stop after a reply, or
# does not wait for the result of a call.


def glm_ids(name: str) -> tuple[list[int], list[bool]]:
    sample = encode(CONVERSATIONS[name])
    return sample.ids.tolist(), sample.mask.tolist()


def differing(ids: list[int], ours: list[bool], theirs: list[bool]) -> tuple[list[str], list[str]]:
    """The tokens that only we train, and those that only the other mask trains."""
    pairs = list(zip(ids, ours, theirs, strict=True))
    missing = [token for token, mine, other in pairs if mine and not other]
    extra = [token for token, mine, other in pairs if other and not mine]
    return pieces(missing, glm4_tokenizer()), pieces(extra, glm4_tokenizer())


def test_combined_masks_lose_turns_and_first_tokens() -> None:
    ids, mask = glm_ids("two replies")
    assert differing(ids, mask, combined(ids)) == ([*REPLY, "\n"], [])
    ids, mask = glm_ids("call, result, reply")
    assert differing(ids, mask, combined(ids)) == ([*called("x", "<|observation|>"), "\n"], [])


def test_combined_masks_end_calls_like_replies() -> None:
    ids, mask = glm_ids("ends in a call")
    assert ids[-1] == OBSERVATION
    theirs = [*ids[:-1], USER_ID]
    assert combined(theirs)[-1]  # they learn to speak on, as the user
    # The first token of the function's name is not learned either.
    assert differing(ids, mask, combined(theirs)) == (["get"], [])


def test_marked_masks_lose_what_ends_a_turn() -> None:
    ids, mask = glm_ids("two replies")
    assert differing(ids, mask, marked(ids)) == (["<|user|>", "<|user|>"], [])
    ids, mask = glm_ids("call, result, reply")
    assert differing(ids, mask, marked(ids)) == (["<|observation|>", "<|user|>"], [])
    ids, mask = glm_ids("prose and two calls")
    assert differing(ids, mask, marked(ids)) == (["<|assistant|>", "<|assistant|>", "<|observation|>", "<|user|>"], [])


def test_no_mask_trains_what_users_and_tools_say() -> None:
    ids, mask = glm_ids("call, result, reply")
    _, extra = differing(ids, mask, [True] * len(ids))
    assert extra[:2] == ["[gMASK]", "<sop>"]
    assert extra[-7:] == ["<|user|>", "\n", "hi", "<|assistant|>", "\n", "21", "<|assistant|>"]


def test_efficient_eos_teaches_another_token() -> None:
    """Where ours has `<|observation|>` and `<|user|>`, which the model must produce, the label is `<|endoftext|>`."""
    ids, mask = glm_ids("call, result, reply")
    labels = efficient_eos(ids)
    assert [carries for _, carries in labels] == mask
    changed = [(ours, label) for ours, (label, carries) in zip(ids, labels, strict=True) if carries and ours != label]
    assert changed == [(OBSERVATION, 151329), (USER_ID, 151329)]
    assert ASSISTANT_ID not in [ours for ours, _ in changed]
