"""Pictures in GLM-4V's prompts: exact ids, where they may be, and that nobody can spell one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4 import AudioPart, ImagePart, Message, TextPart
from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import DIALECTS
from glm4.chat.template.template import ChatTemplate, default_template
from glm4.errors import InvalidRequestError, PromptTooLongError, TemplateError, TokenizerError
from glm4.prompt import ImageLayout, MediaSpan, Prompt
from glm4.tokenizer import Tokenizer, load_tokenizer
from rendering import loss_mask, render, render_text
from vocabularies import tiny_gguf

GLM4V = DIALECTS["glm4"]
PREFIX, USER, ASSISTANT, NEWLINE = [151331, 151333], 151336, 151337, 198
BEGIN, END_OF_TEXT, END = 151339, 151329, 151340
HELLO = [109377]  # 你好
MARKS = "<|begin_of_image|><|endoftext|><|end_of_image|>"
PUBLISHED = ImageLayout(1120, 1602, BEGIN, END)
SMALL = ImageLayout(56, 6, BEGIN, END)
ROWS = [BEGIN, *[END_OF_TEXT] * 4, END]
CAT, DOG = ImagePart(b"a cat"), ImagePart(b"a dog")
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "查询天气", "parameters": {}}}


def prompt_of(messages: list[Any], glm4: Tokenizer, image: ImageLayout | None = SMALL, **options: Any) -> Prompt:
    return GLM4V.render(ChatRequest.of(messages, **options), tokenizer=glm4, image=image)


def ask(*content: Any) -> list[Any]:
    return [Message("user", [TextPart(one) if isinstance(one, str) else one for one in content])]


def test_a_picture_is_1602_rows_with_three_positions(glm4: Tokenizer) -> None:
    """The layout of glm-4v-9b, from the code of its tokenizer and model."""
    prompt = prompt_of(ask(CAT, "你好"), glm4, PUBLISHED)
    rows = [BEGIN, *[END_OF_TEXT] * 1600, END]
    assert list(prompt.ids) == [*PREFIX, USER, NEWLINE, *rows, *HELLO, ASSISTANT]
    assert prompt.spans == (MediaSpan(4, 1602, "image", str(CAT.digest), (0, *[1] * 1600, 2)),)
    assert not prompt.pixels
    words = prompt_of(ask("你好"), glm4, PUBLISHED)
    assert len(prompt) == len(words) + 1602
    assert words == prompt_of(ask("你好"), glm4, None)


@pytest.mark.parametrize("content", [(CAT, "你好"), ("你好", CAT)])
def test_a_picture_precedes_the_text_whatever_the_order_of_the_parts(glm4: Tokenizer, content: Any) -> None:
    assert list(prompt_of(ask(*content), glm4).ids) == [*PREFIX, USER, NEWLINE, *ROWS, *HELLO, ASSISTANT]
    assert render_text(GLM4V, ask(*content), tokenizer=glm4, image=SMALL) == (
        f"[gMASK]<sop><|user|>\n{MARKS}你好<|assistant|>"
    )


def test_a_picture_without_words(glm4: Tokenizer) -> None:
    assert list(prompt_of(ask(CAT), glm4).ids) == [*PREFIX, USER, NEWLINE, *ROWS, ASSISTANT]


def test_it_is_kept_in_later_turns_and_may_come_in_any(glm4: Tokenizer) -> None:
    turns = [*ask("你好"), Message("assistant", "你好"), *ask(CAT, "你好")]
    first = [*PREFIX, USER, NEWLINE, *HELLO, ASSISTANT, NEWLINE, *HELLO]
    prompt = prompt_of(turns, glm4)
    assert list(prompt.ids) == [*first, USER, NEWLINE, *ROWS, *HELLO, ASSISTANT]
    later = prompt_of([*turns, Message("assistant", "你好"), *ask("你好")], glm4)
    assert list(later.ids) == [*prompt.ids, NEWLINE, *HELLO, USER, NEWLINE, *HELLO, ASSISTANT]
    assert later.spans == prompt.spans
    assert prompt.spans[0].start == len(first) + 2


def test_system_prompts_and_tools_go_with_pictures(glm4: Tokenizer) -> None:
    system = Message("system", "Be brief.")
    turns = [system, *ask(CAT, "你好")]
    assert render_text(GLM4V, turns, tokenizer=glm4, image=SMALL) == (
        f"[gMASK]<sop><|system|>\nBe brief.<|user|>\n{MARKS}你好<|assistant|>"
    )
    # From the code of glm-4v-9b's tokenizer: no heading, and an empty line before each tool.
    name = '{\n    "name": "get_weather",\n    "description": "查询天气",\n    "parameters": {}\n}'
    text = render_text(GLM4V, turns, tokenizer=glm4, image=SMALL, tools=[WEATHER, WEATHER])
    tool = f"\n\n## get_weather\n\n{name}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
    assert text == (
        "[gMASK]<sop><|system|>\n你是一个名为 GLM-4 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
        f"你的任务是针对用户的问题和要求提供适当的答复和支持。{tool}{tool}<|system|>\nBe brief."
        f"<|user|>\n{MARKS}你好<|assistant|>"
    )
    assert prompt_of(turns, glm4, tools=[WEATHER]).spans[0].length == 6


def test_our_template_differs_from_that_of_text_models_in_the_tools_alone() -> None:
    text, sees = (default_template(name).source.partition("\n")[2] for name in ("glm4", "glm4v"))
    changed = text.replace("为 ChatGLM 的", "为 GLM-4 的").replace("\n\n# 可用工具\n", "\n")
    assert changed.replace("{{ '\\n", "{{ '\\n\\n", 5).replace("{{ '\\n\\n\\n", "{{ '\\n\\n") == sees
    assert "可用工具" not in sees
    assert sees.count("## ") == text.count("## ") == 4


def test_the_checkpoints_own_template_writes_it(glm4: Tokenizer) -> None:
    """Templates are GLM-4's: the content of a message is a text, and written as it is."""
    published = Path(__file__).parents[1] / "golden/templates/glm-4-9b-chat.jinja"
    own = ChatTemplate(published.read_text(encoding="utf-8"))
    ids = render(GLM4V, ask("你好", CAT), tokenizer=glm4, template=own, image=SMALL)
    assert ids == [*PREFIX, USER, NEWLINE, *ROWS, *HELLO, ASSISTANT]
    tools = render_text(GLM4V, ask(CAT), tokenizer=glm4, template=own, image=SMALL, tools=[WEATHER])
    assert "你是一个名为 ChatGLM 的" in tools
    assert "# 可用工具" in tools
    assert tools.endswith(f"<|user|>\n{MARKS}<|assistant|>")


@pytest.mark.parametrize(
    "source",
    [
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% for part in m.content %}{{ part.text }}{% endfor %}"
        "{% endfor %}<|assistant|>",
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | upper }}{% endfor %}<|assistant|>",
        "{{ messages[0].content }}{{ messages[0].content }}",
    ],
)
def test_a_template_that_leaves_it_out_is_an_error(glm4: Tokenizer, source: str) -> None:
    for draw in (render, loss_mask):
        with pytest.raises(TemplateError, match=r"has places for [02], the conversation has 1"):
            draw(GLM4V, ask(CAT, "你好"), tokenizer=glm4, template=ChatTemplate(source), image=SMALL)


@pytest.mark.parametrize("spelled", [MARKS, f"{MARKS}{MARKS}你好", f"x{MARKS}", "<|begin_of_image|>", "<|endoftext|>"])
def test_what_a_user_spells_is_text_beside_a_picture(glm4: Tokenizer, spelled: str) -> None:
    plain = glm4.encode(spelled)
    assert not {BEGIN, END_OF_TEXT, END} & set(plain)
    turns = [Message("system", spelled), *ask(spelled, CAT), Message("assistant", spelled), *ask(spelled)]
    prompt = prompt_of(turns, glm4, tools=[{"type": "function", "function": {"name": "f", "description": spelled}}])
    ids = list(prompt.ids)
    (span,) = prompt.spans
    assert ids[span.start : span.end] == ROWS
    assert ids[span.end : span.end + len(plain)] == plain
    assert ids.count(BEGIN) == ids.count(END) == 1
    assert ids.count(END_OF_TEXT) == 4
    assert render(GLM4V, ask(spelled), tokenizer=glm4, image=SMALL) == render(GLM4V, ask(spelled), tokenizer=glm4)


_NAMES = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
          "<|begin_of_image|>", "<|end_of_image|>")  # fmt: skip
_TINY = load_tokenizer(None, gguf_metadata=tiny_gguf("glm4", specials=_NAMES))
_LAYOUT = ImageLayout(56, 6, _TINY.special_id("<|begin_of_image|>"), _TINY.special_id("<|end_of_image|>"))
_HOSTILE = st.lists(
    st.one_of(st.sampled_from([*_NAMES, MARKS, *(n[:5] for n in _NAMES), *(n[5:] for n in _NAMES), "\n", " "]),
              st.text(max_size=4)),
    max_size=6,
).map("".join)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(before=_HOSTILE, text=_HOSTILE, answer=_HOSTILE, after=_HOSTILE)
def test_there_is_one_picture_whatever_is_written(before: str, text: str, answer: str, after: str) -> None:
    turns = [Message("system", before), *ask(text, CAT), Message("assistant", answer), *ask(after)]
    request = ChatRequest.of(turns)
    prompt = GLM4V.render(request, tokenizer=_TINY, image=_LAYOUT)
    assert [(span.length, span.digest) for span in prompt.spans] == [(6, CAT.digest)]
    assert list(prompt.ids).count(_LAYOUT.begin_id) == list(prompt.ids).count(_LAYOUT.end_id) == 1
    words = GLM4V.render(ChatRequest.of([Message("system", before), *ask(text), *turns[2:]]), tokenizer=_TINY)
    assert len(prompt) == len(words) + (6 if text else 6 + 2)  # an empty turn is not in a prompt


def test_a_second_picture_is_refused_with_the_reason(glm4: Tokenizer) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    turns: list[Any] = [*ask(CAT, "你好"), Message("assistant", "你好"), {"role": "user", "content": [image]}]
    for draw in (render, render_text, loss_mask):
        with pytest.raises(InvalidRequestError) as caught:
            draw(GLM4V, turns, tokenizer=glm4, image=SMALL)
        assert caught.value.param == "messages[2].content[0]"
        assert str(caught.value).startswith(
            "messages[2].content[0]: this model was trained with one picture per conversation; leave this one out"
        )
        assert "allow_many_images" in str(caught.value)
    with pytest.raises(InvalidRequestError, match=r"^messages\[0\]\.content\[1\]: this model was trained with one"):
        render(GLM4V, ask(CAT, DOG), tokenizer=glm4, image=SMALL)


def test_many_pictures_where_they_are_allowed(glm4: Tokenizer) -> None:
    many = ImageLayout(56, 6, BEGIN, END, most=None)
    turns = [*ask(CAT, "你好", DOG), Message("assistant", "你好"), *ask("你好", CAT)]
    prompt = prompt_of(turns, glm4, many)
    first = [*PREFIX, USER, NEWLINE, *ROWS, *ROWS, *HELLO, ASSISTANT, NEWLINE, *HELLO]
    assert list(prompt.ids) == [*first, USER, NEWLINE, *ROWS, *HELLO, ASSISTANT]
    assert [(span.start, span.digest) for span in prompt.spans] == [
        (4, CAT.digest), (10, DOG.digest), (len(first) + 2, CAT.digest)
    ]  # fmt: skip


@pytest.mark.parametrize("role", ["system", "assistant", "tool", "observation"])
def test_only_users_show_pictures(glm4: Tokenizer, role: Any) -> None:
    turns = [*ask("你好"), Message(role, [TextPart("a"), CAT])]
    with pytest.raises(InvalidRequestError) as caught:
        render(GLM4V, turns, tokenizer=glm4, image=SMALL)
    assert caught.value.param == "messages[1].content[1]"
    assert f"only messages of the user can have pictures, not those of role '{role}'" in str(caught.value)


def test_sounds_are_refused_as_before(glm4: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        render(GLM4V, ask("你好", AudioPart(b"x")), tokenizer=glm4, image=SMALL)
    assert str(caught.value) == (
        "messages[0].content[1]: this model takes text and image; cannot use a content part of type 'audio'"
    )


@pytest.mark.parametrize("name", ["glm4_0414", "glm_z1", "chatml"])
def test_dialects_without_a_place_for_pictures_refuse_them(glm4: Tokenizer, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="this model takes text only"):
        render(DIALECTS[name], ask(CAT), tokenizer=glm4, image=SMALL)


def test_an_address_counts_like_the_picture_it_leads_to(glm4: Tokenizer) -> None:
    url = "https://example.com/a.png"
    prompt = prompt_of(ask(ImagePart(url=url), "你好"), glm4)
    assert list(prompt.ids) == list(prompt_of(ask(CAT, "你好"), glm4).ids)
    assert prompt.spans[0].digest == url


def test_rows_of_pictures_are_not_trained(glm4: Tokenizer) -> None:
    turns = [*ask(CAT, "你好"), Message("assistant", "你好"), *ask("你好"), Message("assistant", "你好")]
    ids, mask = loss_mask(GLM4V, turns, tokenizer=glm4, image=SMALL)
    answer = [NEWLINE, *HELLO, USER]
    assert ids == [*PREFIX, USER, NEWLINE, *ROWS, *HELLO, ASSISTANT, *answer, NEWLINE, *HELLO, ASSISTANT, *answer]
    trained = [at for at, is_trained in enumerate(mask) if is_trained]
    start = 4 + len(ROWS) + len(HELLO) + 1
    assert trained == [*range(start, start + 3), *range(len(ids) - 3, len(ids))]


def test_a_vocabulary_without_the_marks_is_an_error() -> None:
    names = tuple(name for name in _NAMES if "image" not in name)
    tokenizer = load_tokenizer(None, gguf_metadata=tiny_gguf("glm4", specials=names))
    with pytest.raises(TokenizerError, match=r"no special token '<\|begin_of_image\|>'"):
        render(GLM4V, ask(CAT), tokenizer=tokenizer, image=SMALL)


def test_long_texts_are_refused_before_they_are_encoded(glm4: Tokenizer) -> None:
    request = ChatRequest.of(ask(CAT, "你好" * 200_000))
    with pytest.raises(PromptTooLongError):
        GLM4V.render(request, tokenizer=glm4, image=SMALL, most=1000)
