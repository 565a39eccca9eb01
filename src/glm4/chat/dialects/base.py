"""What all dialects share: preparing messages, rendering through a template, masks for training.

A dialect defines how its template expects messages, which tokens end a turn, and how its answers are parsed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from glm4.chat.call_grammar import ANY, MAX_FREE_TOOLS, CallableTool, literal
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.chat.parsers.base import StreamParser, new_call_id
from glm4.chat.parts import TextPart
from glm4.chat.pictures import Marks, check_parts, check_places, images_of, picture_prompt, with_rows
from glm4.chat.template.shield import Shield, texts
from glm4.chat.template.template import ChatTemplate, default_template
from glm4.errors import InvalidRequestError, TokenizerError, shown
from glm4.prompt import ImageLayout, Prompt
from glm4.tokenizer import Detokenizer, Tokenizer

Tools = Sequence[Mapping[str, Any]]
_SWITCH = "enable_thinking"  # the variable by which templates turn thinking off, where they can
PICTURES = "pictures"
"""Key of a prepared message: how many pictures it has. The template does not see it."""
TURN = "turn"
"""Key of a prepared message: the index of the message that it is of. The template does not see it."""
RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message")
"""Variables of a chat template that a request sets by fields of its own."""


class TemplateDialect(ABC):
    """A dialect whose prompts come from a Jinja template: the checkpoint's own, or ours if it has none.

    Attributes:
        name: as variants.py names it.
        template_name: our own template, in `templates/`.
        stop_names: tokens that end the model's turn.
        markers: tokens inside an answer that the parser must see → what the detokenizer shows for them.
        builtin_tools: tool types the model knows by name only.
        answer_opening: what the model writes before an answer that is not a call; its parser drops it.
        call_opening: the same before calls.
        call_ending: the stop token that ends calls and nothing else, in dialects that have one.
        thinking_closing: what ends the thinking that precedes everything else, in dialects that have it.
        media: kinds of content parts its prompts have a place for, besides text. Whether a checkpoint can use them is
            its own affair: `image` says so.
        picture_marks: the special tokens that stand where a picture is.
        picture_template_name: our own template for checkpoints that see, if it is another one.

    Methods take `image`, how a picture stands in prompts of this checkpoint; None if it does not see.
    """

    name: str
    template_name: str
    stop_names: tuple[str, ...]
    markers: Mapping[str, str] = MappingProxyType({})
    builtin_tools: tuple[str, ...] = ()
    answer_opening: str = ""
    call_opening: str = ""
    call_ending: str = ""
    thinking_closing: str | None = None
    media: frozenset[str] = frozenset()
    picture_marks: tuple[str, str, str] = ("", "", "")
    picture_template_name: str = ""

    @property
    def thinks(self) -> bool:
        """Whether answers begin with thinking."""
        return self.thinking_closing is not None

    @abstractmethod
    def prepare(self, messages: Sequence[Message], tools: Tools) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Messages and tools as the template's variables `messages` and `tools`."""

    @abstractmethod
    def parser(
        self, tools: Tools = (), tokenizer: Tokenizer | None = None, *, call_id: Callable[[], str] = new_call_id
    ) -> StreamParser:
        """A new parser for one answer.

        Args:
            tools: the tools that were offered.
            tokenizer: needed if the stop token distinguishes a call from text.
            call_id: creates the ids of tool calls.
        """

    def render(
        self,
        request: ChatRequest,
        *,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        image: ImageLayout | None = None,
        most: int | None = None,
    ) -> Prompt:
        """The prompt of a conversation, in which only the template's own markers are special tokens.

        Args:
            tokenizer: the checkpoint's.
            template: the checkpoint's own template; None uses the dialect's.
            most: refuse a prompt that certainly has more ids than this, before it is encoded.

        Raises:
            InvalidRequestError: malformed tools, or something this model or its template does not support.
            PromptTooLongError: see `most`.
            TemplateError: the template failed or rejected the conversation.
        """
        rendering = Rendering(self, request, tokenizer, template, image)
        ids = rendering.shield.encode(rendering.prompt(), most)
        if image is None:
            return Prompt(ids)
        return picture_prompt(ids, self.mark_ids(tokenizer), image, images_of(request.messages))

    def render_text(
        self,
        request: ChatRequest,
        *,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        image: ImageLayout | None = None,
    ) -> str:
        """The same prompt as human-readable text, in which `picture_marks` stand for a picture.

        Re-encoding it would trust what users wrote; use `render` instead.
        """
        rendering = Rendering(self, request, tokenizer, template, image)
        return rendering.shield.uncover(rendering.prompt())

    def loss_mask(
        self,
        request: ChatRequest,
        *,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        image: ImageLayout | None = None,
        turns: Container[int] | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and which of them the model should learn to produce.

        An assistant turn is trained from the first token the model writes through the token that ends the turn; rows of
        pictures are not.
        Where template text and model text meet inside one token (an answer that begins with a line break after
        ChatML's own), they are encoded separately, as they are in generation.

        Args:
            turns: indices of the messages to train; None trains every assistant turn. The ids do not depend on it.

        Raises:
            InvalidRequestError: the template renders earlier turns differently once later ones follow.
        """
        rendering = Rendering(self, request, tokenizer, template, image)
        ids: list[int] = []
        mask: list[bool] = []
        places = 0
        for text, turn in self.segments(rendering):
            part = rendering.shield.encode(text)
            if image is not None and turn is None:
                part, starts = with_rows(part, self.mark_ids(tokenizer), image)
                places += len(starts)
            ids += part
            mask += [turn is not None and (turns is None or turn in turns)] * len(part)
        check_places(places, len(images_of(request.messages)))
        return ids, mask

    @abstractmethod
    def call_rules(self, tools: Sequence[CallableTool], tokenizer: Tokenizer, *, parallel: bool) -> str:
        """Lark rules whose rule `calls` matches tool calls as the model writes them.

        Args:
            tools: at least one; no others can be called.
            parallel: one call or several, up to `MAX_CALLS`; otherwise exactly one.
        """

    @abstractmethod
    def free_rules(self, tools: Sequence[CallableTool], tokenizer: Tokenizer) -> str:
        """Lark rules whose rule `answer` matches free text and calls of these tools, as `parser` tells them apart.

        Args:
            tools: at least one.
        """

    def free_grammar(self, tools: Sequence[CallableTool], tokenizer: Tokenizer) -> str:
        """A Lark grammar for a whole answer that is free, its thinking included, except for what its calls say.

        Raises:
            InvalidRequestError: too many tools; `.param` is "tools".
        """
        if len(tools) > MAX_FREE_TOOLS:
            raise InvalidRequestError(
                f"constrain_calls takes at most {MAX_FREE_TOOLS} tools, not {len(tools)}; offer fewer, or leave it out",
                param="tools",
            )
        rules = self.free_rules(tools, tokenizer)
        if self.thinking_closing is None:
            return f"start: answer\n{rules}\n"
        thinking = f"thinking[suffix={literal(self.thinking_closing)}]: {ANY}"
        return f"start: {ANY} | thinking answer\n{thinking}\n{rules}\n"

    def call_ending_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The id of `call_ending`, if there is one."""
        token = tokenizer.added_tokens.get(self.call_ending)
        return frozenset() if token is None else frozenset({token.id})

    def answer_grammar(
        self, tools: Sequence[CallableTool], tokenizer: Tokenizer, *, parallel: bool, structured: bool
    ) -> str:
        """A Lark grammar for a whole answer: calls, structured text, or either of them.

        Args:
            tools: the tools that may be called; may be empty.
            parallel: whether several calls may be made.
            structured: text that matches the grammar `@answer` is allowed instead.
        """
        thinking = "" if self.thinking_closing is None else "thinking "
        options: list[str] = []
        rules = ""
        if structured:
            options.append(f"{thinking}{literal(self.answer_opening)} @answer")
        if tools:
            options.append(f"{thinking}{literal(self.call_opening)} calls")
            rules = self.call_rules(tools, tokenizer, parallel=parallel)
        if self.thinking_closing is not None:
            rules += f"\nthinking[suffix={literal(self.thinking_closing)}]: /(.|\\n)*/"
        return f"start: {' | '.join(options)}\n{rules}\n"

    @abstractmethod
    def segments(self, rendering: Rendering) -> list[tuple[str, int | None]]:
        """The rendered conversation split into segments: what the model writes with the index of its message, and the
        rest with None.
        """

    def choose_template(self, template: ChatTemplate | None, image: ImageLayout | None = None) -> ChatTemplate:
        """The checkpoint's own template, or the dialect's if it has none."""
        name = self.template_name if image is None else self.picture_template_name or self.template_name
        return template or default_template(name)

    def mark_ids(self, tokenizer: Tokenizer) -> Marks:
        """Ids of `picture_marks`.

        Raises:
            TokenizerError: the vocabulary lacks one of them.
        """
        begin, content, end = map(tokenizer.special_id, self.picture_marks)
        return begin, content, end

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that end the model's turn, the tokenizer's own end-of-text ids included.

        Raises:
            TokenizerError: the vocabulary has none of the dialect's stop tokens.
        """
        ids = {tokenizer.added_tokens[name].id for name in self.stop_names if name in tokenizer.added_tokens}
        if not ids:
            raise TokenizerError(f"the vocabulary has none of {', '.join(self.stop_names)}; is it the right tokenizer?")
        return frozenset(ids) | tokenizer.eos_ids

    def detokenizer(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A detokenizer whose text the dialect's parser understands."""
        shown_as = {
            tokenizer.added_tokens[name].id: shown
            for name, shown in self.markers.items()
            if name in tokenizer.added_tokens
        }
        return tokenizer.detokenizer(skip_special_tokens=skip_special_tokens, shown_as=shown_as)


def texts_of(request: ChatRequest) -> list[str]:
    """What a template gets. It may leave some of it out, such as the thinking of earlier turns."""
    found = list(texts(request.tools))
    for message in request.messages:
        found += [part.text for part in message.content if isinstance(part, TextPart)]
        found += [call.arguments for call in message.tool_calls]
        if message.reasoning is not None:
            found.append(message.reasoning)
    return found


class Rendering:
    """One conversation being rendered by one template."""

    def __init__(
        self,
        dialect: TemplateDialect,
        request: ChatRequest,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        image: ImageLayout | None,
    ) -> None:
        self.template = dialect.choose_template(template, image)
        self.tokenizer = tokenizer
        self._add_generation_prompt = request.add_generation_prompt
        kwargs = dict(request.template_kwargs)
        for name in RESERVED:
            if name in kwargs:
                raise InvalidRequestError(f"template_kwargs may not set {name!r}", param="template_kwargs")
        if kwargs.get("reasoning_effort") == "none" and dialect.thinks and _SWITCH not in self.template.source:
            raise InvalidRequestError(
                "this model always thinks before it answers; leave reasoning_effort out"
                " (include_reasoning = false hides the thinking)",
                param="reasoning_effort",
            )
        check_parts(request.messages, dialect.media, image)
        builtin = dialect.builtin_tools
        turns = [replace(m, tools=tuple(check_tools(m.tools, builtin))) if m.tools else m for m in request.messages]
        prepared, offered = dialect.prepare(turns, check_tools(request.tools, builtin))
        wants_tools = bool(offered) or any(message.get("tools") for message in prepared)
        if wants_tools and "tools" not in self.template.source:
            raise InvalidRequestError("this model's chat template has no place for tools", param="tools")
        self._marks = "".join(dialect.picture_marks)
        self.turns: list[int | None] = [message.pop(TURN, None) for message in prepared]
        self.shield = Shield(tokenizer, [prepared, offered, kwargs], self.template.source)
        self.messages = [self._cover(message) for message in prepared]
        self._tools = self.shield.cover(offered) or None
        self._kwargs = self.shield.cover(kwargs)

    def _cover(self, message: dict[str, Any]) -> dict[str, Any]:
        """Cover everything callers wrote except the role: it is one of ours, and templates compare it.

        The marks of pictures are ours too, and come first, as the models were trained.
        """
        model_text, pictures = message["role"] == "assistant", message.pop(PICTURES, 0)
        covered = {
            key: value if key == "role" else self.shield.cover(value, model_text=model_text)
            for key, value in message.items()
        }
        if pictures:
            covered["content"] = self._marks * pictures + covered["content"]
        return covered

    def prompt(self) -> str:
        """The whole conversation as the request asks for it."""
        return self.text(len(self.messages), self._add_generation_prompt)

    @cached_property
    def whole(self) -> str:
        """All messages, rendered without a generation prompt."""
        return self.text(len(self.messages), False)

    def text(self, count: int, add_generation_prompt: bool) -> str:
        """The first `count` messages, rendered."""
        return self.template.render(
            {
                **self._kwargs,
                "messages": self.messages[:count],
                "tools": self._tools,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def assistant_turns(self) -> list[tuple[int, int, int]]:
        """Message index, start and end (in the full text) of what the model wrote in each assistant turn."""
        full = self.whole
        turns = []
        for index, message in enumerate(self.messages):
            if message["role"] != "assistant":
                continue
            end = full if index + 1 == len(self.messages) else self.text(index + 1, False)
            prompt = self.text(index, True)
            if end == prompt or (len(end) < len(prompt) and end == self.text(index, False)):
                continue  # an empty turn leaves nothing in the prompt
            if not (end.startswith(prompt) and full.startswith(end)):
                raise InvalidRequestError(
                    f"message {index} cannot be trained on: this chat template writes earlier turns differently once "
                    "later ones are there (put system messages first)",
                    param="messages",
                )
            turns.append((index, len(prompt), len(end)))
        return turns


def check_tools(tools: Tools, builtin: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, checked.

    Args:
        builtin: tool types that consist of just their type.

    Raises:
        InvalidRequestError: with `.param` "tools".
    """
    return [_checked_tool(tool, index, builtin) for index, tool in enumerate(tools)]


def _checked_tool(tool: object, index: int, builtin: Sequence[str]) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise InvalidRequestError(f"tools[{index}] must be an object", param="tools")
    kind = tool.get("type", "function")
    if kind in builtin:
        return dict(tool)
    if kind != "function":
        raise InvalidRequestError(
            f"tools[{index}] has type {shown(kind)}, which this model does not know", param="tools"
        )
    function = tool.get("function")
    function = function if isinstance(function, Mapping) else {}
    name = function.get("name")
    if not isinstance(name, str) or not name.strip() or len(name.splitlines()) != 1:
        raise InvalidRequestError(f"tools[{index}] needs a function with a name of one line", param="tools")
    for key, (type_, words) in _FUNCTION_MEMBERS.items():
        if key in function and not isinstance(function[key], type_):
            place = f"tools[{index}].function.{key}"
            raise InvalidRequestError(f"{place} must be {words}, not {shown(function[key])}", param=place)
    return {"type": "function", **tool}


_FUNCTION_MEMBERS: dict[str, tuple[type, str]] = {
    "description": (str, "a text"),
    "parameters": (Mapping, "a JSON schema, which is an object"),
    "strict": (bool, "true or false"),
}


def function_names(tools: Tools) -> frozenset[str]:
    """Names of the functions among the tools."""
    return frozenset(str(t["function"]["name"]) for t in tools if t.get("type", "function") == "function")
