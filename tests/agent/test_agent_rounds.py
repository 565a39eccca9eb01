"""A turn of an agent: its rounds, what models and tools get wrong, and its limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import TODAY, Answer, PlainTool, Script, ending, outputs, shown_text, states

from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent, CallChanged, ErrorRaised, PartBegan, UsageAdded
from glm4.agent.limits import AgentLimits
from glm4.agent.steps import Decision
from glm4.agent.tool import Approval, Function, Invocation, Observation, Tool, ToolContext, ToolResult
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message, ToolCall
from glm4.errors import Glm4Error, InvalidRequestError
from glm4.sampling_params import SamplingParams

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = {
    "glm4": 'weather\n{"city": "Beijing"}<|observation|>',
    "chatml": '<tool_call>\n{"name": "weather", "arguments": {"city": "Beijing"}}\n</tool_call>',
}
OPENING = {"glm4": "\n", "chatml": ""}
DIALECTS = tuple(CALL)


def calling(dialect: str, name: str, arguments: str) -> str:
    """A call as models of a dialect write it."""
    if dialect == "glm4":
        return f"{name}\n{arguments}<|observation|>"
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def weather(result: str | ToolResult = "sunny", **options: Any) -> PlainTool:
    return PlainTool("weather", lambda invocation, context: result, **{"parameters": CITY, **options})


class Turn:
    """One turn, run to its end."""

    def __init__(
        self,
        folder: Path,
        answers: Sequence[Answer],
        tools: Sequence[Tool],
        *,
        dialect: str = "glm4",
        max_model_len: int = 65536,
        **options: Any,
    ) -> None:
        self.script = Script(folder, answers, dialect=dialect, max_model_len=max_model_len)
        self.conversation = Conversation()
        self.conversation.ask("What is the weather?")
        agent = Agent(self.script.llm, tools, today=TODAY, **options)
        self.events: list[AgentEvent] = list(agent.run(self.conversation))
        self.prompts = self.script.prompts
        # whatever happened, the conversation can go on, in any dialect
        self.added = self.conversation.messages[1:]
        ChatRequest.of([*self.conversation.messages, Message("user", "And now?")])

    @property
    def results(self) -> list[str]:
        return [message.text for message in self.added if message.role in ("tool", "observation")]

    @property
    def calls(self) -> list[ToolCall]:
        return [call for message in self.added for call in message.tool_calls]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_is_run_and_its_result_answered(tmp_path: Path, dialect: str) -> None:
    tool = weather()
    turn = Turn(tmp_path, [CALL[dialect], OPENING[dialect] + "It is sunny."], [tool], dialect=dialect)
    assert [(i.function, i.arguments, i.raw) for i in tool.invocations] == [("weather", '{"city": "Beijing"}', False)]
    assert states(turn.events) == [("weather", "writing"), ("weather", "running"), ("weather", "done")]
    assert (shown_text(turn.events), outputs(turn.events)) == ("It is sunny.", "sunny")
    assert ending(turn.events) == ("completed", "stop")
    role = "observation" if dialect == "glm4" else "tool"
    assert [message.role for message in turn.added] == ["assistant", role, "assistant"]
    assert turn.results == ["sunny"]
    assert turn.added[1].tool_call_id == turn.calls[0].id
    usage = [event for event in turn.events if isinstance(event, UsageAdded)]
    assert [event.context for event in usage] == [65536, 65536]
    assert all(event.prompt > 100 and event.completion > 5 for event in usage)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_tools_it_is_a_plain_answer_to_a_plain_prompt(tmp_path: Path, dialect: str) -> None:
    turn = Turn(tmp_path, [OPENING[dialect] + "Hello."], [], dialect=dialect, system="Be brief.")
    assert (shown_text(turn.events), ending(turn.events)) == ("Hello.", ("completed", "stop"))
    request = ChatRequest.of([Message("system", "Be brief."), Message("user", "What is the weather?")])
    tokenizer = turn.script.llm.tokenizer
    assert turn.prompts == [tokenizer.decode(turn.script.llm.render(request).ids, skip_special_tokens=False)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_text_before_a_call_is_a_part_and_stays(tmp_path: Path, dialect: str) -> None:
    said = OPENING[dialect] + "I look it up.\nOne moment." + ("<|assistant|>" if dialect == "glm4" else "\n")
    turn = Turn(tmp_path, [said + CALL[dialect], OPENING[dialect] + "Sunny."], [weather()], dialect=dialect)
    parts = [event.kind for event in turn.events if isinstance(event, PartBegan)]
    assert parts == ["text", "tool", "text"]
    assert turn.added[0].text == "I look it up.\nOne moment."
    assert turn.added[0].tool_calls
    assert "I look it up.\nOne moment." in turn.prompts[1]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"town": "Beijing"}', "city is missing"),
        ('{"city": 7}', "city must be of type string, not integer"),
        ("{}", "city is missing"),
    ],
)
def test_arguments_that_do_not_match_go_back_to_the_model(
    tmp_path: Path, dialect: str, arguments: str, said: str
) -> None:
    tool = weather()
    answers = [calling(dialect, "weather", arguments), CALL[dialect], OPENING[dialect] + "Sunny."]
    turn = Turn(tmp_path, answers, [tool], dialect=dialect)
    assert len(tool.invocations) == 1
    assert said in turn.results[0]
    assert turn.results[1:] == ["sunny"]
    assert turn.calls[0].arguments == arguments
    assert said in turn.prompts[1]
    assert states(turn.events)[:3] == [("weather", "writing"), ("weather", "error"), ("weather", "writing")]
    if dialect == "glm4":
        assert "<|observation|>system_error\nweather was not called" in turn.prompts[1]


@pytest.mark.parametrize("written", ['{"city": "Bei', '{"city": }', "{'city': 'Beijing'}"])
def test_broken_json_goes_back_and_is_not_kept_in_the_history(tmp_path: Path, written: str) -> None:
    tool = weather()
    turn = Turn(tmp_path, [f"weather\n{written}<|observation|>", "\nSorry."], [tool])
    assert not tool.invocations
    assert turn.calls == [ToolCall(turn.calls[0].id, "weather", "{}")]
    assert "not valid JSON" in turn.results[0]
    assert f"You wrote: {written}" in turn.results[0]


@pytest.mark.parametrize("written", ["[1, 2]", '"Beijing"', "7", "null", "true"])
def test_arguments_that_are_no_object_go_back(tmp_path: Path, written: str) -> None:
    tool = weather()
    answer = f'<tool_call>\n{{"name": "weather", "arguments": {written}}}\n</tool_call>'
    turn = Turn(tmp_path, [answer, "Sorry."], [tool], dialect="chatml")
    assert not tool.invocations
    assert turn.calls[0].arguments == "{}"
    assert "must be a JSON object" in turn.results[0] or "not valid JSON" in turn.results[0]
    assert ending(turn.events) == ("completed", "stop")


def test_a_call_without_arguments_has_an_empty_object(tmp_path: Path) -> None:
    tool = weather(parameters={"type": "object"})
    turn = Turn(tmp_path, ["weather\n<|observation|>", "\nSunny."], [tool])
    assert [invocation.arguments for invocation in tool.invocations] == ["{}"]
    assert turn.calls[0].arguments == "{}"


@pytest.mark.parametrize("name", ["wether", "we\nther 天气 " + "x" * 100, ""])
def test_a_function_that_is_not_there_is_named_back(tmp_path: Path, name: str) -> None:
    turn = Turn(tmp_path, [calling("chatml", name, '{"city": "Beijing"}'), "Sorry."], [weather()], dialect="chatml")
    assert "There is no function" in turn.results[0]
    assert "The functions are: weather." in turn.results[0]
    kept = turn.calls[0].name
    assert kept.isascii() and 0 < len(kept) <= 64 and kept.replace("_", "").replace("-", "").isalnum()  # noqa: PT018
    assert turn.calls[0].arguments == '{"city": "Beijing"}'


class BrokenError(Exception):
    """Has no text."""


def _raises(error: BaseException) -> Callable[[Invocation, ToolContext], str]:
    def run(invocation: Invocation, context: ToolContext) -> str:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such city"), "ValueError: no such city"),
        (InvalidRequestError("the city is unknown; name another"), "the city is unknown; name another"),
        (BrokenError(), "BrokenError"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_tool_that_fails_is_an_observation_and_the_model_goes_on(
    tmp_path: Path, dialect: str, error: BaseException, said: str
) -> None:
    tool = PlainTool("weather", _raises(error), parameters=CITY)
    turn = Turn(tmp_path, [CALL[dialect], OPENING[dialect] + "I do not know."], [tool], dialect=dialect)
    assert turn.results == [said]
    assert turn.added[1].metadata == ("system_error" if dialect == "glm4" else None)
    assert (states(turn.events)[-1], outputs(turn.events)) == (("weather", "error"), said)
    assert (shown_text(turn.events), ending(turn.events)) == ("I do not know.", ("completed", "stop"))


def test_a_failed_call_may_be_tried_again(tmp_path: Path) -> None:
    results = [ToolResult.error("the line is busy"), ToolResult.of("sunny")]
    tool = PlainTool("weather", lambda invocation, context: results.pop(0), parameters=CITY)
    turn = Turn(tmp_path, [CALL["glm4"], CALL["glm4"], "\nSunny."], [tool])
    assert turn.results == ["the line is busy", "sunny"]


def test_the_same_call_is_not_run_again_and_the_model_then_answers_without_tools(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        return CALL["glm4"] if "# 可用工具" in prompt else "\nIt is sunny."

    tool = weather()
    turn = Turn(tmp_path, [answer], [tool])
    assert len(tool.invocations) == 1
    assert len(turn.results) == 2
    assert all("not run again. Its result: sunny\n" in text for text in turn.results[1:])
    assert ending(turn.events) == ("limit", "repeated_calls")
    assert turn.added[-1] == Message("assistant", "It is sunny.")


def test_a_long_result_is_not_repeated(tmp_path: Path) -> None:
    turn = Turn(tmp_path, [CALL["glm4"], CALL["glm4"], "\nLong."], [weather("x" * 5000)])
    assert "not run again: its result stands above" in turn.results[1]
    assert len(turn.results[1]) < 300


def test_other_arguments_or_another_call_between_are_no_repetition(tmp_path: Path) -> None:
    tool = weather()
    cities = ["Beijing", "Tokyo", "Beijing"]
    answers = [f'weather\n{{"city": "{city}"}}<|observation|>' for city in cities]
    turn = Turn(tmp_path, [*answers, "\nSunny."], [tool])
    assert len(tool.invocations) == 3
    assert turn.results == ["sunny"] * 3


def test_equal_arguments_in_another_order_are_a_repetition(tmp_path: Path) -> None:
    tool = PlainTool("weather", lambda invocation, context: "sunny")
    answers = ['weather\n{"a": 1, "b": 2}<|observation|>', 'weather\n{"b": 2,"a": 1}<|observation|>', "\nSunny."]
    Turn(tmp_path, answers, [tool])
    assert len(tool.invocations) == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_at_the_round_limit_the_model_answers_without_tools(tmp_path: Path, dialect: str) -> None:
    numbers = iter(range(100))

    def answer(prompt: str) -> str:
        if "weather" in prompt.split("What is the weather?")[0]:
            return calling(dialect, "weather", json.dumps({"city": str(next(numbers))}))
        return OPENING[dialect] + "I have seen enough."

    tool = weather()
    turn = Turn(tmp_path, [answer], [tool], dialect=dialect)
    assert (len(tool.invocations), len(turn.prompts)) == (10, 11)
    assert ending(turn.events) == ("limit", "rounds")
    assert turn.added[-1].text == "I have seen enough."


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_model_that_says_nothing_after_a_result_is_asked_without_tools(tmp_path: Path, dialect: str) -> None:
    tool = weather()
    turn = Turn(tmp_path, [CALL[dialect], "", OPENING[dialect] + "Sunny."], [tool], dialect=dialect)
    assert ending(turn.events) == ("completed", "stop")
    assert turn.added[-1] == Message("assistant", "Sunny.")
    assert "Does weather." in turn.prompts[1]
    assert "Does weather." not in turn.prompts[2]
    assert "sunny" in turn.prompts[2]


def test_a_model_that_says_nothing_at_all_is_not_asked_again(tmp_path: Path) -> None:
    turn = Turn(tmp_path, [""], [weather()])
    assert (ending(turn.events), turn.added, len(turn.prompts)) == (("completed", "stop"), [], 1)
    turn = Turn(tmp_path / "called", [CALL["glm4"], ""], [weather()])
    assert (ending(turn.events), len(turn.prompts)) == (("completed", "stop"), 3)


def test_text_that_looks_like_a_call_is_text_in_the_last_round(tmp_path: Path) -> None:
    turn = Turn(tmp_path, [CALL["glm4"]], [weather()], limits=AgentLimits(rounds=1))
    assert ending(turn.events) == ("limit", "rounds")
    assert turn.added[-1] == Message("assistant", 'weather\n{"city": "Beijing"}')


def test_the_token_limit_ends_the_turn_and_keeps_the_text(tmp_path: Path) -> None:
    turn = Turn(tmp_path, ["\n" + "x" * 500], [weather()], limits=AgentLimits(tokens=20))
    assert ending(turn.events) == ("limit", "tokens")
    assert turn.added == [Message("assistant", "x" * 19)]


def test_an_answer_that_reaches_max_tokens_ends_with_length(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=10)
    turn = Turn(tmp_path, ["\n" + "x" * 500], [weather()], params=params)
    assert (ending(turn.events), turn.added) == (("completed", "length"), [Message("assistant", "x" * 9)])


def test_a_call_cut_off_at_max_tokens_is_not_run(tmp_path: Path) -> None:
    tool = weather()
    params = SamplingParams(max_tokens=30)
    turn = Turn(tmp_path, ["\nA moment.<|assistant|>" + CALL["glm4"]], [tool], params=params)
    assert not tool.invocations
    assert states(turn.events) == [("weather", "writing"), ("weather", "error")]
    assert ending(turn.events) == ("completed", "length")
    assert turn.added == [Message("assistant", "A moment.")]


def test_calls_beyond_the_limit_of_a_round_are_not_made(tmp_path: Path) -> None:
    tool = weather()
    many = "\n".join(calling("chatml", "weather", json.dumps({"city": str(n)})) for n in range(9))
    turn = Turn(tmp_path, [many, "Sunny."], [tool], dialect="chatml", limits=AgentLimits(calls_per_round=3))
    assert [json.loads(i.arguments)["city"] for i in tool.invocations] == ["0", "1", "2"]
    assert len(turn.calls) == len(turn.results) == 3


@pytest.mark.parametrize("dialect", DIALECTS)
def test_results_are_in_the_order_of_the_calls(tmp_path: Path, dialect: str) -> None:
    def run(invocation: Invocation, context: ToolContext) -> ToolResult:
        city = json.loads(invocation.arguments)["city"]
        return ToolResult((Observation(f"{city}: sunny"), Observation(f"{city}: 20 degrees")))

    tool = PlainTool("weather", run, parameters=CITY)
    between = "<|assistant|>" if dialect == "glm4" else "\n"
    calls = [calling(dialect, "weather", json.dumps({"city": city})) for city in ("Beijing", "Tokyo")]
    answer = between.join(calls).replace("<|observation|><|assistant|>", "<|assistant|>")
    turn = Turn(tmp_path, [answer, OPENING[dialect] + "Sunny."], [tool], dialect=dialect)
    assert [text.split(":")[0] for text in turn.results] == ["Beijing", "Tokyo"]
    assert turn.results[0] == "Beijing: sunny\n\nBeijing: 20 degrees"
    assert turn.prompts[1].index("Beijing: sunny") < turn.prompts[1].index("Tokyo: sunny")


def test_the_same_call_twice_in_one_answer_is_run_once(tmp_path: Path) -> None:
    tool = weather()
    turn = Turn(tmp_path, [f"{CALL['chatml']}\n{CALL['chatml']}", "Sunny."], [tool], dialect="chatml")
    assert len(tool.invocations) == 1
    assert turn.results[0] == "sunny"
    assert "twice in one answer" in turn.results[1]


@pytest.mark.parametrize(("decision", "runs"), [("once", 1), ("always", 1), ("never", 0)])
def test_the_user_is_asked(tmp_path: Path, decision: Decision, runs: int) -> None:
    asked: list[str] = []

    def approve(tool: Tool, invocation: Invocation) -> Decision:
        asked.append(tool.about(invocation))
        return decision

    tool = weather(approval="ask")
    turn = Turn(tmp_path, [CALL["glm4"], "\nWell."], [tool], approve=approve)
    assert asked == ['weather {"city": "Beijing"}']
    assert len(tool.invocations) == runs
    waiting = [event.about for event in turn.events if isinstance(event, CallChanged) and event.state == "waiting"]
    assert waiting == asked
    assert states(turn.events)[-1] == ("weather", "done" if runs else "denied")
    assert turn.conversation.approved == ({"weather/weather"} if decision == "always" else set())
    assert ("did not allow" in turn.results[0]) == (not runs)


def test_always_is_remembered_for_the_function_and_the_conversation(tmp_path: Path) -> None:
    asked = 0

    def approve(tool: Tool, invocation: Invocation) -> Decision:
        nonlocal asked
        asked += 1
        return "always"

    script = Script(tmp_path, [calling("glm4", "weather", f'{{"city": "{n}"}}') for n in range(3)] + ["\nSunny."])
    agent = Agent(script.llm, [weather(approval="ask")], approve=approve)
    conversation = Conversation()
    conversation.ask("Weather?")
    list(agent.run(conversation))
    assert asked == 1
    restored = Conversation.from_dict(json.loads(json.dumps(conversation.as_dict())))
    script._answers[:] = [calling("glm4", "weather", '{"city": "x"}'), "\nSunny."]
    restored.ask("And there?")
    list(agent.run(restored))
    assert asked == 1


@pytest.mark.parametrize("approval", ["ask", "never"])
def test_without_anybody_to_ask_nothing_runs(tmp_path: Path, approval: Any) -> None:
    tool = weather(approval=approval)
    turn = Turn(tmp_path, [CALL["glm4"], "\nWell."], [tool])
    assert not tool.invocations
    assert states(turn.events)[-1] == ("weather", "denied")
    assert "did not allow" in turn.results[0]
    assert ending(turn.events) == ("completed", "stop")


def test_a_conversation_too_long_for_the_model_is_an_error_event(tmp_path: Path) -> None:
    turn = Turn(tmp_path, ["\nHello."], [weather()], max_model_len=200)
    errors = [event for event in turn.events if isinstance(event, ErrorRaised)]
    assert [(event.where, event.code, event.retry) for event in errors] == [("model", "prompt_too_long", False)]
    assert (ending(turn.events), turn.added) == (("error", "prompt_too_long"), [])


def test_long_results_are_cut_for_the_model(tmp_path: Path) -> None:
    text = "begin " + "x" * 50_000 + " end"
    turn = Turn(tmp_path, [CALL["glm4"], "\nLong."], [weather(text)], limits=AgentLimits(output_chars=300))
    assert turn.results[0].startswith("begin xxx")
    assert turn.results[0].endswith("xxx end")
    assert "[… 49,710 characters left out …]" in turn.results[0]
    assert len(turn.results[0]) < 350


def test_results_fit_a_small_context(tmp_path: Path) -> None:
    turn = Turn(tmp_path, [CALL["glm4"], "\nLong."], [weather("x" * 50_000)], max_model_len=4096)
    assert ending(turn.events) == ("completed", "stop")
    assert 1500 < len(turn.results[0]) < 2200


def test_of_two_tools_with_one_function_the_model_gets_the_first(tmp_path: Path) -> None:
    first, second = weather("sunny"), weather("rainy")
    turn = Turn(tmp_path, [CALL["glm4"], "\nSunny."], [first, second])
    assert turn.results == ["sunny"]
    problems = [event for event in turn.events if isinstance(event, ErrorRaised)]
    assert [(event.where, event.code) for event in problems] == [("tool", "tool_unavailable")]
    assert "two tools have a function weather" in problems[0].message
    assert ending(turn.events) == ("completed", "stop")


def test_a_tool_that_cannot_say_what_it_can_do_is_left_out(tmp_path: Path) -> None:
    class Unreachable(PlainTool):
        @property
        def functions(self) -> Sequence[Function]:
            raise ToolServerDownError("the server is down")

        @functions.setter
        def functions(self, functions: Sequence[Function]) -> None:
            pass

    class ToolServerDownError(Glm4Error):
        pass

    turn = Turn(tmp_path, ["\nHello."], [Unreachable("mcp:files", lambda invocation, context: "")])
    problems = [event.message for event in turn.events if isinstance(event, ErrorRaised)]
    assert problems == ["the tool mcp:files cannot be used: the server is down"]
    assert ending(turn.events) == ("completed", "stop")


def test_a_schema_that_cannot_be_enforced_is_offered_all_the_same(tmp_path: Path) -> None:
    parameters = {**CITY, "properties": {"city": {"type": "string", "pattern": "(?=B)B.*"}}}
    tool = weather(parameters=parameters)
    turn = Turn(tmp_path, [CALL["glm4"], "\nSunny."], [tool])
    assert len(tool.invocations) == 1
    assert ending(turn.events) == ("completed", "stop")
    assert not any(isinstance(event, ErrorRaised) for event in turn.events)
    refused = ChatRequest.of([Message("user", "x")], tools=[tool.functions[0].definition()], constrain_calls=True)
    with pytest.raises(InvalidRequestError):
        turn.script.llm.prepare(refused)


@pytest.mark.parametrize("constrain", [True, False])
def test_calls_are_constrained_by_default(tmp_path: Path, constrain: bool) -> None:
    options: dict[str, Any] = {} if constrain else {"constrain_calls": False}
    turn = Turn(tmp_path, [CALL["glm4"], "\nSunny."], [weather()], **options)
    assert [request is not None for request in turn.script.constraints] == [constrain] * 2


def test_functions_of_one_tool_may_need_different_approvals(tmp_path: Path) -> None:
    class Files(PlainTool):
        def approval_of(self, function: str) -> Approval:
            return "never" if function == "delete" else "always"

    tool = Files("files", lambda invocation, context: invocation.function)
    tool.functions = tuple(Function(name, "", {"type": "object"}) for name in ("read", "delete"))
    turn = Turn(tmp_path, ["read\n{}<|observation|>", "delete\n{}<|observation|>", "\nDone."], [tool])
    assert [invocation.function for invocation in tool.invocations] == ["read"]
    assert states(turn.events)[-1] == ("delete", "denied")


def test_an_agent_is_in_one_turn_at_a_time(tmp_path: Path) -> None:
    agent = Agent(Script(tmp_path, ["\nHello."]).llm)
    first, second = Conversation(), Conversation()
    first.ask("Hello?")
    second.ask("Hello?")
    running = agent.run(first)
    next(running)
    with pytest.raises(InvalidRequestError, match="in a turn already"):
        next(agent.run(second))
    running.close()
    assert ending(list(agent.run(second))) == ("completed", "stop")


def test_closing_an_agent_closes_its_tools(tmp_path: Path) -> None:
    tool = weather()
    with Agent(Script(tmp_path, ["\nHello."]).llm, [tool]):
        before = tool.closed
    assert (before, tool.closed) == (0, 1)


@pytest.mark.parametrize("name", ["rounds", "seconds", "tokens", "output_chars", "calls_per_round", "repeats"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        AgentLimits(**{name: 0})
