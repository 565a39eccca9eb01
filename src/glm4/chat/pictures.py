"""Pictures in a conversation: which messages may have them, and the rows that take their places in a prompt.

A dialect writes three special tokens where a picture stands; only the template's own ones are tokens (`Shield`), so a
user who spells them writes text. Once encoded, they become as many rows as the model has for a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from glm4.chat.messages import Message
from glm4.chat.parts import ImagePart, MediaPart, TextPart, refusal
from glm4.errors import TemplateError
from glm4.prompt import ImageLayout, Prompt

Marks = tuple[int, int, int]
"""Ids of the three tokens at the place of a picture."""


def images_of(messages: Sequence[Message]) -> list[ImagePart]:
    """The pictures of a conversation, in order; each knows its location."""
    return [
        part if part.where else replace(part, where=where)
        for _, part, where in _located(messages)
        if isinstance(part, ImagePart)
    ]


def has_addresses(messages: Sequence[Message]) -> bool:
    """Whether a picture of a conversation has yet to be fetched."""
    return any(part.url is not None for part in images_of(messages))


def check_parts(messages: Sequence[Message], media: frozenset[str], image: ImageLayout | None) -> None:
    """Refuse parts that the model cannot read. The only such check: parsers accept every part that the APIs define.

    Args:
        media: kinds of parts that the dialect has a place for.
        image: how a picture stands in prompts; None if the model does not see.

    Raises:
        InvalidRequestError: `.param` is the part's location.
    """
    readable = media if image is not None else media - {ImagePart.kind}
    seen = 0
    for message, part, where in _located(messages):
        if part.kind not in readable:
            reads = " and ".join(("text", *sorted(readable))) if readable else "text only"
            kind = part.type or part.kind
            raise refusal(where, f"this model takes {reads}; cannot use a content part of type {kind!r}")
        if isinstance(part, ImagePart) and image is not None:
            seen += 1
            if message.role != "user":
                raise refusal(
                    where,
                    f"only messages of the user can have pictures, not those of role {message.role!r}; send it in a"
                    " message of the user",
                )
            check_number(seen, image, where)


def check_number(count: int, image: ImageLayout, where: str) -> None:
    """Refuse the picture with this number, counted from 1, if a conversation cannot have so many."""
    if image.most is not None and count > image.most:
        limit = "one picture" if image.most == 1 else f"{image.most} pictures"
        raise refusal(
            where,
            f"this model was trained with {limit} per conversation; leave this one out or begin a new conversation, or"
            " load the model with allow_many_images (`--allow-many-images`), which goes beyond its training",
        )


def with_rows(ids: Sequence[int], marks: Marks, image: ImageLayout) -> tuple[list[int], list[int]]:
    """Ids in which every `marks` has become the rows of a picture, and where these begin."""
    out: list[int] = []
    starts: list[int] = []
    copied = 0
    for at in _places(ids, marks):
        out += ids[copied:at]
        starts.append(len(out))
        out += [marks[0], *[marks[1]] * (image.num_rows - 2), marks[2]]
        copied = at + len(marks)
    return [*out, *ids[copied:]], starts


def _places(ids: Sequence[int], marks: Marks) -> Iterator[int]:
    at = -1
    for _ in range(ids.count(marks[0])):
        at = ids.index(marks[0], at + 1)
        if tuple(ids[at : at + len(marks)]) == marks:
            yield at


def check_places(found: int, pictures: int) -> None:
    """Check that a chat template wrote every picture.

    Raises:
        TemplateError: it did not.
    """
    if found != pictures:
        raise TemplateError(
            f"the chat template left out a picture: its prompt has places for {found}, the conversation has {pictures};"
            " the checkpoint needs a template that writes the content of messages of the user as it is"
        )


def picture_prompt(ids: Sequence[int], marks: Marks, image: ImageLayout, images: Sequence[ImagePart]) -> Prompt:
    """The prompt of encoded text in which `marks` stand for these pictures; it has no pixels yet.

    The digest of a picture that is only an address is that address.

    Raises:
        TemplateError: as `check_places`.
    """
    rows, starts = with_rows(ids, marks, image)
    check_places(len(starts), len(images))
    names = [str(part.url if part.digest is None else part.digest) for part in images]
    return Prompt(rows, tuple(image.span(at, name) for at, name in zip(starts, names, strict=True)))


def _located(messages: Sequence[Message]) -> Iterator[tuple[Message, MediaPart, str]]:
    """Every part that is not text, with its message and its location in the request."""
    for index, message in enumerate(messages):
        for number, part in enumerate(message.content):
            if not isinstance(part, TextPart):
                yield message, part, part.where or f"messages[{index}].content[{number}]"
