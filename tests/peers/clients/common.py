"""What the client libraries' tests share: addresses, the weather of two cities, and models of typed answers."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import json
import os
import pathlib
import time
import uuid
from typing import Annotated, Literal, Optional, Union

import pydantic
from pydantic import BaseModel, Field

_SERVERS = json.loads(os.environ["GLM4_SERVERS"])
SCRIPTED, STARTER, KEY = _SERVERS["scripted"], _SERVERS["starter"], "sk-clients-test"

QUESTION = "Weather in Oslo and Cairo?"
WEATHER = {"Oslo": "-5 C, snow", "Cairo": "35 C, sun"}
# What the scripted model says when each city has its own weather.
REPORT = "Oslo: -5 C, snow; Cairo: 35 C, sun"
FIRST, SECOND = "Name a river.", "And another."


def said(*turns: str) -> str:
    """The scripted model's answer to these turns of user and assistant, in order."""
    return "You said: " + " | ".join(turns)


def measure(city: str) -> str:
    """The weather of a city. Oslo takes longer, so results of calls that run side by side come out of order."""
    time.sleep(0.2 if city == "Oslo" else 0.0)
    return WEATHER[city]


def form(kind: type[BaseModel]) -> str:
    """What the model is asked for a typed answer."""
    return f"Fill in the form. {kind.__doc__}"


class Color(enum.Enum):
    """An enumeration."""

    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    """An enumeration of numbers; beyond the last, doubles skip some."""

    LOW = 1
    HUGE = 9007199254740991


class Numbers(BaseModel):
    """Plain numbers, and bounds."""

    flag: bool
    count: int = Field(ge=0, le=9)
    share: float = Field(ge=0, le=1)
    price: decimal.Decimal
    step: int = Field(multiple_of=5, ge=0, le=20)


class Texts(BaseModel):
    """Bounded strings, bytes and secrets."""

    name: Annotated[str, Field(min_length=1, max_length=8)]
    code: Annotated[str, Field(pattern="^[A-Z]{3}-[0-9]{2}$")]
    raw: bytes = Field(max_length=6)
    secret: pydantic.SecretStr = Field(max_length=6)


class Times(BaseModel):
    """Dates, times and durations."""

    day: datetime.date
    moment: datetime.datetime
    clock: datetime.time
    span: datetime.timedelta


class Names(BaseModel):
    """Identifiers and addresses."""

    key: uuid.UUID
    host: ipaddress.IPv4Address


class Choices(BaseModel):
    """Literals, enumerations and optional values."""

    word: Literal["yes", "no"]
    color: Color
    level: Level
    maybe: Optional[int]  # noqa: UP045
    either: Union[bool, Literal["unknown"]]  # noqa: UP007


class Collections(BaseModel):
    """Lists, tuples and sets, bounded."""

    digits: list[Annotated[int, Field(ge=0, le=9)]] = Field(min_length=1, max_length=3)
    pair: tuple[bool, Literal["a", "b"]]
    colors: set[Color] = Field(max_length=1)


class Cat(BaseModel):
    """One half of a discriminated union."""

    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    """The other half."""

    kind: Literal["dog"]
    barks: bool


class Owner(BaseModel):
    """A discriminated union, nested models."""

    pet: Union[Cat, Dog] = Field(discriminator="kind")  # noqa: UP007
    favorite: Color


class Tree(BaseModel):
    """A tree of a single node: its child is null."""

    value: bool
    child: Optional[Tree]  # noqa: UP045


class Place(BaseModel):
    """A short path."""

    path: pathlib.Path


TYPED: tuple[type[BaseModel], ...] = (Numbers, Texts, Times, Names, Choices, Collections, Owner, Tree, Place)
# Those that need no bound: the anthropic library leaves bounds out of schemas.
UNBOUNDED: tuple[type[BaseModel], ...] = (Times, Names, Choices, Owner, Tree, Place)
