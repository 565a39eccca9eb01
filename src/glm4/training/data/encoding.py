"""`Encoder`: examples → token ids and which of them carry loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.chat.pictures import images_of
from glm4.errors import Glm4Error, TrainingDataError
from glm4.requests.processor import Processor
from glm4.training.data.examples import (
    ChatExample,
    Example,
    Loss,
    PreferenceExample,
    TextExample,
    TokenizedExample,
    TokenizedPreference,
)
from glm4.training.data.formats.row_values import conversation, is_call

LongSamples = Literal["cut", "drop", "error"]
Tokenized = TokenizedExample | TokenizedPreference


@dataclass
class EncodingCounts:
    """What became of the examples so far.

    Attributes:
        too_long: examples above the maximum length, cut or dropped.
        cut_tokens, cut_targets: tokens that were cut off, and those of them that would have carried loss.
        dropped_long: examples that were dropped because they are too long.
        dropped_without_target: examples in which nothing (or nothing that is left) carries loss.
    """

    too_long: int = 0
    cut_tokens: int = 0
    cut_targets: int = 0
    dropped_long: int = 0
    dropped_without_target: int = 0


class Encoder:
    """Turns examples into token ids by the model's own template and vocabulary.

    Args:
        loss: which assistant turns carry loss, beside their weights: one of weight 0 never does.
        max_length: tokens of a sample.
        long_samples: what becomes of longer ones. "cut" keeps their beginning; the token that would have ended a turn
            is then gone, and counted. Plain text is never cut: it becomes several samples.
    """

    def __init__(
        self, processor: Processor, loss: Loss = "all", max_length: int = 2048, long_samples: LongSamples = "cut"
    ) -> None:
        self._processor = processor
        self._loss = loss
        self._max_length = max_length
        self._long_samples = long_samples
        self.counts = EncodingCounts()

    def encode(self, example: Example) -> Tokenized | None:
        """The example as one sample; of plain text, its first. None if it was dropped; see `counts`.

        Raises:
            TrainingDataError: the model's template rejects it, or it is too long and that is to be an error.
        """
        return next(self.samples(example), None)

    def samples(self, example: Example) -> Iterator[Tokenized]:
        """All samples of an example: one or none, of long plain text several. Errors as `encode`."""
        return (fitted for sample in self.tokenized(example) if (fitted := self.fitted(sample)) is not None)

    def tokenized(self, example: Example) -> Iterator[Tokenized]:
        """The same before anything is cut or dropped: only of plain text each sample fits. Errors as `encode`."""
        try:
            if isinstance(example, TextExample):
                yield from self._text(example)
            elif isinstance(example, PreferenceExample):
                chosen, rejected = (self._answer(example, answer) for answer in (example.chosen, example.rejected))
                yield TokenizedPreference(chosen, rejected)
            else:
                yield self._conversation(example.request, self._turns(example), example.place)
        except TrainingDataError:
            raise
        except Glm4Error as error:
            raise TrainingDataError(str(error), place=example.place) from None

    def fitted(self, sample: Tokenized) -> Tokenized | None:
        """The sample within the maximum length; None if nothing is left to learn, or if it is dropped. Counts.

        Raises:
            TrainingDataError: it is too long and that is to be an error.
        """
        if isinstance(sample, TokenizedExample):
            return self._fitted(sample)
        chosen, rejected = self._fitted(sample.chosen), self._fitted(sample.rejected)
        return None if chosen is None or rejected is None else TokenizedPreference(chosen, rejected)

    def _turns(self, example: ChatExample) -> list[int]:
        """Indices of the messages that carry loss."""
        messages = example.request.messages
        turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if self._loss == "last":
            turns = turns[-1:]
        elif self._loss == "text":
            turns = [index for index in turns if not is_call(messages[index])]
        weights = example.weights
        return turns if weights is None else [index for index in turns if weights[index]]

    def _conversation(self, request: ChatRequest, turns: Sequence[int], place: str) -> TokenizedExample:
        """A whole conversation, however long."""
        processor = self._processor
        ids, mask = processor.dialect.loss_mask(
            request,
            tokenizer=processor.tokenizer,
            template=processor.template,
            image=processor.image,
            turns=frozenset(turns),
        )
        example = TokenizedExample(
            np.array(ids, np.int32), np.array(mask, np.bool_), place, tools=tuple(request.offered_tools)
        )
        if processor.image is None or not (pictures := images_of(request.messages)):
            return example
        # What users write is never a special token, so these are the template's.
        starts = np.flatnonzero(example.ids == processor.image.begin_id).tolist()
        return replace(example, images=tuple(part.data or b"" for part in pictures), image_starts=tuple(starts))

    def _answer(self, example: PreferenceExample, answer: Sequence[Message]) -> TokenizedExample:
        request = example.request
        whole = conversation([*request.messages, *answer], request.tools)
        begins = len(request.messages)
        turns = [index for index in range(begins, len(whole.messages)) if whole.messages[index].role == "assistant"]
        return self._conversation(whole, turns, example.place)

    def _text(self, example: TextExample) -> Iterator[TokenizedExample]:
        """Each piece begins with the model's prefix, which carries no loss."""
        tokenizer = self._processor.tokenizer
        prefix = np.array(tokenizer.prefix_ids, np.int32)
        ids = np.array(tokenizer.encode(example.text), np.int32)
        if example.ends:
            ids = np.append(ids, np.int32(end_of_text(self._processor)))
        size = self._max_length - len(prefix)
        if size < 2:
            raise TrainingDataError(f"max_length {self._max_length} has no room for text; give more")
        for start in range(0, len(ids), size):
            piece = np.concatenate([prefix, ids[start : start + size]])
            mask = np.ones(len(piece), np.bool_)
            mask[: max(1, len(prefix))] = False  # nothing predicts the first token
            if mask.any():
                yield TokenizedExample(piece, mask, example.place)

    def _fitted(self, example: TokenizedExample) -> TokenizedExample | None:
        counts, most = self.counts, self._max_length
        if len(example) > most:
            counts.too_long += 1
            if self._long_samples == "error":
                raise TrainingDataError(
                    f"the sample has {len(example)} tokens, but max_length is {most}; raise max_length, shorten the"
                    ' sample, or set long_samples to "cut" or "drop"',
                    place=example.place,
                )
            if self._long_samples == "drop":
                counts.dropped_long += 1
                return None
            example = self._cut(example)
        if not example.mask.any():
            counts.dropped_without_target += 1
            return None
        return example

    def _cut(self, example: TokenizedExample) -> TokenizedExample:
        most = self._max_length
        image = self._processor.image
        if image is not None:  # half a picture is none
            most = next((start for start in example.image_starts if start < most < start + image.num_rows), most)
        targets = int(example.mask[most:].sum())
        self.counts.cut_tokens += len(example) - most
        self.counts.cut_targets += targets
        kept = sum(start < most for start in example.image_starts)
        return replace(
            example,
            ids=example.ids[:most],
            mask=example.mask[:most],
            num_cut=len(example) - most,
            num_cut_targets=targets,
            images=example.images[:kept],
            image_starts=example.image_starts[:kept],
        )


def end_of_text(processor: Processor) -> int:
    """The token that ends a document: `<|endoftext|>`, or what the vocabulary says.

    Raises:
        TrainingDataError: there is none.
    """
    tokenizer = processor.tokenizer
    if (token := tokenizer.added_tokens.get("<|endoftext|>")) is not None:
        return token.id
    if tokenizer.eos_ids:
        return min(tokenizer.eos_ids)
    raise TrainingDataError("the vocabulary has no token that ends a text; plain text cannot be trained with it")
