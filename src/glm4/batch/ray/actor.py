"""`LineActor`: a process on a cluster that holds a model and answers lines of a batch, many at the same time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from glm4.async_llm import AsyncLLM
from glm4.batch.files import InputLine
from glm4.batch.lines import LineAnswerer, PreparedLine, Row, failed, finished, refused
from glm4.errors import Glm4Error, OutOfMemoryError, RemoteUnavailableError, request_error
from glm4.llm import LLM
from glm4.version import __version__


@dataclass(frozen=True)
class LineResult:
    """What became of a line.

    Attributes:
        row: for the output file; None if it gets none now.
        error: why there is no row: the machine has no memory, a remote server does not answer, or the model has
            stopped.
    """

    row: Row | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: Glm4Error | None = None


class LineActor:
    """Never raises: what goes wrong with a line is its row, and what goes wrong with the model is in the result.

    Args:
        source: what `LLM` takes.
        name: the name reported in the rows.
        options: of `LLM`.
    """

    def __init__(self, source: str, name: str, options: Mapping[str, Any]) -> None:
        self._source = source
        self._name = name
        self._options = options
        self._engine: AsyncLLM | None = None
        self._lines: LineAnswerer | None = None

    async def hello(self) -> tuple[str, str]:
        """The node it runs on, and the version of this package there."""
        return socket.gethostname(), __version__

    async def load(self) -> int | str:
        """Load the model.

        Returns:
            How many requests it answers at the same time, or why it cannot be loaded.
        """
        try:
            llm = await asyncio.to_thread(partial(LLM, self._source, **self._options))
        except Glm4Error as error:
            return str(error)
        except Exception as error:
            return f"internal error ({type(error).__name__}: {error})"
        self._lines = LineAnswerer(llm, self._name)
        self._engine = AsyncLLM(llm)
        return llm.info.max_num_seqs

    async def answer(self, custom_id: str, line: InputLine, problem: str | None) -> LineResult:
        """Answer one line; see `LineAnswerer.prepare`. Only after `load`."""
        engine, lines = self._engine, self._lines
        if engine is None or lines is None:
            return LineResult(None, error=Glm4Error("the model is not loaded"))
        try:
            return await self._answered(engine, lines, custom_id, line, problem)
        except (OutOfMemoryError, RemoteUnavailableError) as error:
            return LineResult(None, error=error)
        except MemoryError:
            return LineResult(None, error=OutOfMemoryError("the machine ran out of memory"))
        except Exception as error:
            return LineResult(refused(custom_id, 500, "internal_error", f"{type(error).__name__}: {error}"))

    async def _answered(
        self, engine: AsyncLLM, lines: LineAnswerer, custom_id: str, line: InputLine, problem: str | None
    ) -> LineResult:
        prepared = await asyncio.to_thread(lines.prepare, custom_id, line, problem)
        if not isinstance(prepared, PreparedLine):
            return LineResult(prepared)
        try:
            output = await (await engine.submit(prepared.request)).output()
        except Exception as error:
            if engine.failed:
                return LineResult(None, error=Glm4Error(f"the model has stopped ({type(error).__name__}: {error})"))
            return LineResult(failed(custom_id, request_error(error)))
        tokens = sum(len(sample.token_ids) for sample in output.outputs)
        return LineResult(finished(prepared, output), len(output.prompt_token_ids), tokens)
