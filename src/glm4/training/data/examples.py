"""What rows of training data become, whatever file they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm4.chat.chat_request import ChatRequest, Tool
from glm4.chat.messages import Message

Loss = Literal["all", "last", "text"]
"""Which assistant turns are trained: all, the last one, or those in words only (no calls of tools)."""


@dataclass(frozen=True)
class ChatExample:
    """A conversation to learn from.

    Attributes:
        request: messages and tools, without a generation prompt.
        weights: 0 or 1 per message: whether an assistant turn is trained. None trains what `Loss` says.
        place: where it came from, such as "train.jsonl:17", for errors.
    """

    request: ChatRequest
    weights: tuple[int, ...] | None
    place: str


@dataclass(frozen=True)
class TextExample:
    """Plain text for continued pre-training: every token carries loss.

    Attributes:
        ends: the text ends here, and the token for that follows; false for a piece of a long file.
    """

    text: str
    place: str
    ends: bool = True


@dataclass(frozen=True)
class PreferenceExample:
    """A conversation that ends where the model answers, with a better and a worse answer.

    Attributes:
        chosen: the better answer: one assistant message, or several with results of tools between them.
    """

    request: ChatRequest
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    place: str


Example: TypeAlias = ChatExample | TextExample | PreferenceExample


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """Token ids, and which of them the model should learn to produce.

    Attributes:
        ids: int32 [T]; rows of pictures are placeholder ids.
        mask: bool [T]: token t carries loss, that is, row t - 1 predicts it. mask[0] is false.
        place: of its example.
        num_cut: tokens that were cut off to fit the maximum length, and `num_cut_targets` of them carried loss.
        images: encoded pictures (files' bytes), in order; `image_starts` are the rows at which their ids begin.
        tools: that were offered, without which nobody can tell what is a call in an answer.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    place: str = ""
    num_cut: int = 0
    num_cut_targets: int = 0
    images: tuple[bytes, ...] = ()
    image_starts: tuple[int, ...] = ()
    tools: tuple[Tool, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class TokenizedPreference:
    """The two conversations of a preference: same prompt, different answers. Only the answers carry loss.

    Attributes:
        references: log-probabilities of both answers under the model before training, where they are kept.
    """

    chosen: TokenizedExample
    rejected: TokenizedExample
    references: tuple[float, float] | None = None

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))
