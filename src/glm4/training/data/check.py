"""`check_data`: what training on these files would read, cut, drop and learn, and every row that cannot be used."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from glm4.chat.messages import Message
from glm4.errors import InvalidRequestError, TrainingDataError
from glm4.requests.processor import Processor
from glm4.training.config import DataConfig
from glm4.training.data.dataset import Progress, data_sources
from glm4.training.data.encoding import Encoder, Tokenized
from glm4.training.data.examples import Example, PreferenceExample, TextExample, TokenizedExample, TokenizedPreference
from glm4.training.data.formats.row_values import is_call, tool_name

MAX_PROBLEMS = 1000  # bad rows that are kept; all are counted


@dataclass(frozen=True)
class RowProblem:
    """A row that cannot be used."""

    place: str
    reason: str


@dataclass(frozen=True)
class FileCheck:
    """A file, and the format of its rows."""

    name: str
    format: str
    rows: int


@dataclass
class DataCheck:
    """What was found.

    Attributes:
        bad: number of rows that cannot be used; `problems` are the first of them.
        lengths: tokens of each sample before it is cut; int32. A preference has two.
        too_long, cut_tokens, cut_targets: samples above the maximum length, the tokens beyond it, and those of them
            that carry loss.
        dropped: samples of which nothing would be left to learn, or that `long_samples` drops.
        targets: tokens that carry loss, of those that are not cut.
        notes: what a row may mean otherwise than its author thought: text → places, in the order in which it was found.
        example: a sample as it is trained on; None if all rows are bad.
    """

    files: list[FileCheck]
    max_length: int
    rows: int = 0
    bad: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    samples: int = 0
    dropped: int = 0
    too_long: int = 0
    tokens: int = 0
    targets: int = 0
    cut_tokens: int = 0
    cut_targets: int = 0
    repeated: int = 0
    lengths: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    notes: Counter[str] = field(default_factory=Counter)
    note_places: dict[str, str] = field(default_factory=dict)
    example: Tokenized | None = None

    def histogram(self, bins: int = 10) -> list[tuple[int, int, int]]:
        """Shortest length, longest length and number of samples of each bin; all bins are equally wide."""
        if not len(self.lengths):
            return []
        longest = int(self.lengths.max())
        width = max(1, -(-longest // bins))
        counts = np.bincount((self.lengths - 1).clip(0) // width)
        return [(at * width + 1, (at + 1) * width, int(count)) for at, count in enumerate(counts)]


def check_data(
    config: DataConfig,
    processor: Processor,
    *,
    preferences: bool | None = None,
    shown: str = "",
    progress: Progress | None = None,
) -> DataCheck:
    """Read every row to the end, of validation data, too.

    Args:
        preferences: what rows must be; None takes either.
        shown: the place of the row to keep as the example; by default the first one that can be used.

    Raises:
        TrainingDataError: a file cannot be read, is empty, or is in no known format.
    """
    train, validation = data_sources(config)
    sources = [*train, *validation]
    checker = _Checker(config, processor, shown)
    total = sum(source.nbytes for source in sources)
    done = 0
    for source in sources:
        before = checker.found.rows
        name, examples = source.open()
        for row, example in examples:
            checker.add(row.place, example, preferences)
            if progress is not None:
                progress("reading data", done + row.position, total)
        done += source.nbytes
        checker.found.files.append(FileCheck(source.name, name, checker.found.rows - before))
    return checker.finish()


class _Checker:
    def __init__(self, config: DataConfig, processor: Processor, shown: str) -> None:
        limit = "cut" if config.long_samples == "error" else config.long_samples
        self._encoder = Encoder(processor, config.loss, config.max_length, limit)
        self._fail_long = config.long_samples == "error"
        self._thinks = processor.dialect.thinks
        self._images = processor.images
        self._shown = shown
        self._lengths = array("i")
        self._seen: set[int] = set()
        self.found = DataCheck([], config.max_length)

    def add(self, place: str, example: Example | TrainingDataError, preferences: bool | None) -> None:
        """Count a row."""
        self.found.rows += 1
        try:
            if isinstance(example, TrainingDataError):
                raise example
            samples = list(self._encoder.tokenized(example))
            for sample in samples:
                self._check_length(sample)
                self._check_pictures(sample)
        except TrainingDataError as error:
            self.found.bad += 1
            if len(self.found.problems) < MAX_PROBLEMS:
                self.found.problems.append(RowProblem(error.place or place, error.reason))
            return
        for sample in samples:
            self._count(sample)
        for note in dict.fromkeys(notes_of(example, thinks=self._thinks)):
            self.found.notes[note] += 1
            self.found.note_places.setdefault(note, place)

    def finish(self) -> DataCheck:
        """The whole result."""
        counts = self._encoder.counts
        if self._images is not None:
            self._images.close()
        return replace(
            self.found,
            lengths=np.array(self._lengths, np.int32),
            dropped=counts.dropped_long + counts.dropped_without_target,
            too_long=counts.too_long,
            cut_tokens=counts.cut_tokens,
            cut_targets=counts.cut_targets,
        )

    def _check_length(self, sample: Tokenized) -> None:
        for one in _sequences(sample):
            if self._fail_long and len(one) > self.found.max_length:
                raise TrainingDataError(
                    f"the sample has {len(one)} tokens, but max_length is {self.found.max_length}", place=one.place
                )

    def _check_pictures(self, sample: Tokenized) -> None:
        """Decode them, as training does when it comes to them."""
        if self._images is None:
            return
        for one in _sequences(sample)[:1]:  # the answers of a preference have the same
            for data in one.images:
                try:
                    self._images.decoder.decode(data)
                except InvalidRequestError as error:
                    raise TrainingDataError(str(error), place=one.place) from None

    def _count(self, sample: Tokenized) -> None:
        found = self.found
        sequences = _sequences(sample)
        self._lengths.extend(map(len, sequences))
        digest = hash(tuple(one.ids.tobytes() for one in sequences))
        found.repeated += digest in self._seen
        self._seen.add(digest)
        fitted = self._encoder.fitted(sample)
        if fitted is None:
            return
        found.samples += 1
        found.tokens += sum(map(len, _sequences(fitted)))
        found.targets += sum(int(one.mask.sum()) for one in _sequences(fitted))
        place = _sequences(fitted)[0].place
        if (found.example is None and not self._shown) or place == self._shown:
            found.example = fitted


def _sequences(sample: Tokenized) -> tuple[TokenizedExample, ...]:
    return (sample.chosen, sample.rejected) if isinstance(sample, TokenizedPreference) else (sample,)


def notes_of(example: Example, *, thinks: bool) -> list[str]:
    """What is usable, and yet may not be what was meant.

    Args:
        thinks: the model's answers begin with thinking.
    """
    if isinstance(example, TextExample):
        return []
    messages = list(example.request.messages)
    turns = [message for message in messages if message.role == "assistant"]
    if isinstance(example, PreferenceExample):
        turns = [message for message in (*example.chosen, *example.rejected) if message.role == "assistant"]
    notes = []
    if not thinks and any(message.reasoning for message in turns):
        notes.append("reasoning_content is left out: this model's prompts have no place for thinking")
    if thinks and not all(message.reasoning for message in turns[-1:]):
        notes.append("the answer has no reasoning_content: the model learns to answer without thinking")
    if thinks and len(turns) > 1 and not isinstance(example, PreferenceExample):
        notes.append("only the last turn is learned: this model reads earlier ones without their thinking")
    offered = {str(tool_name(tool)) for tool in example.request.offered_tools}
    return notes + _call_notes(turns, offered)


def _call_notes(turns: Sequence[Message], offered: set[str]) -> list[str]:
    notes = []
    for message in turns:
        names = [call.name for call in message.tool_calls] + [message.metadata] * bool(message.metadata)
        if any(name not in offered for name in names):
            notes.append("a call names a tool that the row does not offer")
        arguments = [call.arguments for call in message.tool_calls if call.name not in ("python",)]
        if any(not _is_object(text) for text in arguments):
            notes.append("the arguments of a call are no JSON object")
        if not is_call(message) and message.text.lstrip()[:1] == "{" and '"arguments"' in message.text:
            notes.append("an answer looks like a call, but is learned as text: no result follows it")
    return notes


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        return False
