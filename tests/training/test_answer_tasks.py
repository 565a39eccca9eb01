"""Prompts of validation data end where the model answers, and answers are measured as the dialect reads them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from training_rows import ASSISTANT, USER, WEATHER, chat, chatml, example

from glm4.requests.processor import Processor
from glm4.training.answer_tasks import AnswerScores, AnswerTask, answer_tasks
from glm4.training.data.encoding import Encoder
from glm4.training.data.examples import TextExample, TokenizedExample
from glm4.training.data.samples import SampleSet, SampleStore
from tiny import special_id, tiny_model, write_folder

USER_ID, ASSISTANT_ID, OBSERVATION_ID = (special_id(f"<|{name}|>") for name in ("user", "assistant", "observation"))
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}],
}
CALLING: dict[str, Any] = {"messages": [USER, CALL], "tools": [{"type": "function", "function": WEATHER}]}


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    """GLM-4's dialect with single bytes as tokens."""
    folder = tmp_path_factory.mktemp("model")
    return Processor.open(write_folder(folder, tiny_model("chatglm"), chat_template=None))


def encoded(processor: Processor, *rows: dict[str, Any], max_length: int = 4096) -> list[TokenizedExample]:
    encoder = Encoder(processor, max_length=max_length)
    found = [encoder.encode(chat(row)) for row in rows]
    assert all(isinstance(sample, TokenizedExample) for sample in found)
    return found  # type: ignore[return-value]  # just checked


def task_of(processor: Processor, row: dict[str, Any]) -> AnswerTask:
    (task,) = answer_tasks(encoded(processor, row), processor, 1)
    return task


def score(processor: Processor, row: dict[str, Any], answer: list[int]) -> dict[str, float]:
    return AnswerScores(processor, [task_of(processor, row)]).metrics([answer])


def test_a_prompt_ends_where_the_model_answers(glm: Processor) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [USER, ASSISTANT]},
        {
            "messages": [
                USER,
                ASSISTANT,
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": "secret"},
            ]
        },
        CALLING,
        {
            **CALLING,
            "messages": [USER, CALL, {"role": "tool", "content": "rain"}, {"role": "assistant", "content": "secret"}],
        },
    ]
    for row in rows:
        task = task_of(glm, row)
        (sample,) = encoded(glm, row)
        request = chat({**row, "messages": row["messages"]}).request
        prompt = request.messages[:-1]
        rendered = glm.render(type(request).of(prompt, tools=request.tools))
        assert task.prompt.ids.tolist() == rendered.ids
        assert task.prompt.ids[-1] == ASSISTANT_ID
        assert [*task.prompt.ids, *task.reference] == sample.ids.tolist()[: len(task.prompt) + len(task.reference)]
        assert sample.mask[len(task.prompt) :][: len(task.reference)].all()
        assert "secret" not in glm.tokenizer.decode(task.prompt.ids.tolist())
        assert task.reference[-1] == (OBSERVATION_ID if row is CALLING else USER_ID)


def test_an_answer_with_text_and_a_call_is_one_task(glm: Processor) -> None:
    row = {**CALLING, "messages": [USER, {**CALL, "content": "Let me see."}]}
    task = task_of(glm, row)
    assert task.prompt.ids[-1] == ASSISTANT_ID
    assert ASSISTANT_ID in task.reference
    message = AnswerScores(glm, [task]).read(task, task.reference)
    assert (message.text, [call.name for call in message.tool_calls]) == ("Let me see.", ["get_weather"])
    assert score(glm, row, list(task.reference)) == dict.fromkeys(
        ("exact_match", "rouge_l", "chrf", "right_stop", "valid_calls", "right_calls"), 1.0
    )


def test_the_reference_itself_has_full_marks(glm: Processor) -> None:
    for processor in (glm, chatml()):
        for row in ({"messages": [USER, ASSISTANT]}, CALLING):
            task = task_of(processor, row)
            found = score(processor, row, list(task.reference))
            assert set(found.values()) == {1.0}
            assert ("valid_calls" in found) == ("right_calls" in found) == (row is CALLING)


def test_the_token_that_ends_an_answer_must_fit(glm: Processor) -> None:
    def ids(text: str, *end: int) -> list[int]:
        return [*glm.tokenizer.encode(text), *end]

    call, reply = 'get_weather\n{"city": "Paris"}', "\nhello"
    end_of_text = special_id("<|endoftext|>")
    rows: dict[str, dict[str, Any]] = {call: CALLING, reply: {"messages": [USER, ASSISTANT]}}
    for text, row in rows.items():
        right, wrong = (OBSERVATION_ID, USER_ID) if row is CALLING else (USER_ID, OBSERVATION_ID)
        assert score(glm, row, ids(text, right))["right_stop"] == 1
        for end in ([wrong], [end_of_text], []):  # the last one: it went on until it was cut off
            assert score(glm, row, ids(text, *end))["right_stop"] == 0
    assert score(glm, rows[reply], [])["right_stop"] == 0


def test_calls_are_compared_by_what_they_ask(glm: Processor) -> None:
    def ids(text: str) -> list[int]:
        return [*glm.tokenizer.encode(text), OBSERVATION_ID]

    assert score(glm, CALLING, ids('get_weather\n{"city":\n"Paris" }'))["exact_match"] == 1  # written otherwise
    other = score(glm, CALLING, ids('get_weather\n{"city": "Rome"}'))
    assert (other["exact_match"], other["valid_calls"], other["right_calls"]) == (0, 1, 0)
    assert 0 < other["chrf"] < 1
    for text in ('get_weather\n{"city": "Par', "get_weather\n[1]", 'get_whether\n{"city": "Paris"}'):
        broken = score(glm, CALLING, ids(text))
        assert broken.get("valid_calls", 0) == broken["right_calls"] == broken["exact_match"] == 0
    said = score(glm, CALLING, [*glm.tokenizer.encode("\nParis?"), USER_ID])
    assert "valid_calls" not in said
    assert (said["right_calls"], said["right_stop"]) == (0, 1)


def test_means_are_over_the_answers_that_a_metric_is_about(glm: Processor) -> None:
    tasks = answer_tasks(encoded(glm, {"messages": [USER, ASSISTANT]}, CALLING), glm, 2)
    reply, call = list(tasks[0].reference), list(tasks[1].reference)
    found = AnswerScores(glm, tasks).metrics([reply, reply])
    assert (found["exact_match"], found["right_calls"]) == (0.5, 0.0)
    assert "valid_calls" not in found
    found = AnswerScores(glm, tasks).metrics([call, call])
    assert found["valid_calls"] == 1  # the first was offered no tools, so what it wrote is text
    assert found["right_stop"] == 0.5


def test_which_samples_are_asked(glm: Processor) -> None:
    rows = [{"messages": [USER, {"role": "assistant", "content": f"answer {number:02}"}]} for number in range(20)]
    samples = encoded(glm, *rows)
    tasks = answer_tasks(samples, glm, 4)
    assert [task.reference for task in tasks] == [
        tuple(samples[i].ids[samples[i].mask].tolist()) for i in (0, 5, 10, 15)
    ]
    assert len(answer_tasks(samples, glm, 100)) == 20
    cut = encoded(glm, {"messages": [USER, {"role": "assistant", "content": "x" * 99}]}, max_length=40)
    text = Encoder(glm).encode(TextExample("Once upon a time.", "rows.txt:1"))
    assert isinstance(text, TokenizedExample)
    assert answer_tasks([*cut, text], glm, 4) == []
    assert len(answer_tasks([text, *cut, samples[0]], glm, 4)) == 1


def test_of_a_preference_the_better_answer_is_expected(glm: Processor) -> None:
    row = {"prompt": "hi", "chosen": "good", "rejected": "bad"}
    pair: Any = Encoder(glm).encode(example(row))
    (task,) = answer_tasks([pair], glm, 1)
    assert glm.tokenizer.decode(list(task.reference), skip_special_tokens=True).strip() == "good"


def test_the_store_keeps_tools(glm: Processor) -> None:
    store = SampleStore()
    samples = encoded(glm, CALLING, {"messages": [USER, ASSISTANT]}, CALLING)
    for sample in samples:
        store.append(sample)
    kept = SampleSet[TokenizedExample](store, np.arange(3), pairs=False)
    assert [one.tools for one in kept] == [one.tools for one in samples]
    assert json.dumps(kept[0].tools) == json.dumps(CALLING["tools"])
    assert kept[0].tools is kept[2].tools  # one copy of what all rows offer
    tasks = answer_tasks(kept, glm, 3)
    assert AnswerScores(glm, tasks).metrics([task.reference for task in tasks])["right_calls"] == 1
