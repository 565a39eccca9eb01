"""One line of a batch: its request for a model, and the row that answers it.

A line that cannot be answered gets a row with an error; only what ends the whole run is raised.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from glm4.api.openai import chat_completion, parse_chat, parse_completion
from glm4.api.openai.answers import text_completions
from glm4.api.openai.request import StreamOptions
from glm4.batch.files import InputLine
from glm4.errors import (
    Glm4Error,
    InvalidRequestError,
    OutOfMemoryError,
    PromptTooLongError,
    RemoteUnavailableError,
    shown,
)
from glm4.outputs import RequestOutput

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.requests.input_processor import PreparedRequest

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"

Row = dict[str, Any]
"""A line of the output, in OpenAI's shape; `error` is None if the request was answered."""

_REQUEST_KEYS = {"custom_id", "method", "url", "body"}
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class PreparedLine:
    """A request that the model can answer, and how to build the row's body from the answer."""

    custom_id: str
    request: PreparedRequest
    build: Callable[[RequestOutput], dict[str, Any]]


class LineAnswerer:
    """Reads lines for a model, and builds their rows.

    Args:
        model: the name reported in the rows, whatever the requests say.
    """

    def __init__(self, llm: LLM, model: str) -> None:
        self._llm = llm
        self._model = model
        self._defaults = llm.default_sampling_params()

    def prepare(self, custom_id: str, line: InputLine, problem: str | None) -> PreparedLine | Row:
        """The line's request, or the row with its error. Thread-safe.

        Args:
            custom_id: of the row.
            problem: what is wrong with the line's own custom_id.

        Raises:
            OutOfMemoryError, MemoryError: the machine has no memory left.
        """
        try:
            return PreparedLine(custom_id, *self._prepared(line, problem))
        except (OutOfMemoryError, MemoryError):
            raise
        except PromptTooLongError as error:
            return refused(custom_id, 400, "context_length_exceeded", str(error), error.param)
        except UnicodeEncodeError:
            message = "the text has a lone surrogate, which is not valid Unicode"
            return refused(custom_id, 400, "invalid_request", message)
        except Glm4Error as error:
            return refused(custom_id, 400, "invalid_request", str(error), getattr(error, "param", None))
        except Exception as error:
            # A bug that one request triggers must not cost the others their answers.
            return refused(custom_id, 500, "internal_error", f"{type(error).__name__}: {error}")

    def _prepared(
        self, line: InputLine, problem: str | None
    ) -> tuple[PreparedRequest, Callable[[RequestOutput], dict[str, Any]]]:
        """Parse one line and prepare its request.

        Raises:
            Glm4Error: the request cannot be answered.
        """
        if problem:
            raise InvalidRequestError(problem, param="custom_id")
        request = _request(line)
        llm, model, tokenizer = self._llm, self._model, self._llm.tokenizer
        if request["url"] == CHAT_URL:
            chat = parse_chat(request["body"], self._defaults)
            _refuse_stream(chat.stream)
            return llm.prepare(chat.request), partial(
                chat_completion, model=model, tokenizer=tokenizer, options=chat.response
            )
        completion = parse_completion(request["body"], self._defaults)
        _refuse_stream(completion.stream)
        if len(completion.prompts) > 1:
            raise InvalidRequestError("a line of a batch has one prompt", param="prompt")
        prepared = llm.prepare_prompt(completion.prompts[0], completion.params, **completion.options)

        def build(output: RequestOutput) -> dict[str, Any]:
            return text_completions(
                [output],
                model,
                tokenizer,
                completion.response,
                echo=completion.echo,
                generate=completion.generate,
                skip_special_tokens=completion.params.skip_special_tokens,
            )

        return prepared, build


def finished(line: PreparedLine, output: RequestOutput) -> Row:
    """The row of a request that has ended; errors as `failed`."""
    if output.error is not None:
        return failed(line.custom_id, output.error)
    return _row(line.custom_id, 200, line.build(output), None)


def failed(custom_id: str, error: Glm4Error) -> Row:
    """The row of a request that failed while it ran.

    Raises:
        OutOfMemoryError: the model has no memory left.
        RemoteUnavailableError: the server did not answer; the request gets no row, because a retry may help.
    """
    if isinstance(error, (OutOfMemoryError, RemoteUnavailableError)):
        raise error
    if isinstance(error, InvalidRequestError):
        return refused(custom_id, 400, "invalid_request", str(error), error.param)
    return refused(custom_id, 500, "internal_error", str(error))


def refused(custom_id: str, status: int, code: str, message: str, param: str | None = None) -> Row:
    """The row of a request that cannot be answered."""
    kind = "invalid_request_error" if status == 400 else "internal_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return _row(custom_id, status, body, {"code": code, "message": message})


def _request(line: InputLine) -> Mapping[str, Any]:
    """The request on a line, its outer shape checked.

    Raises:
        InvalidRequestError: `.param` names the key.
    """
    request = line.decode()
    _check_unicode(line, request)
    for key in request:
        if key not in _REQUEST_KEYS:
            raise InvalidRequestError(
                f"unknown key {shown(key)}; a request has {', '.join(sorted(_REQUEST_KEYS))}", param=key
            )
    if request.get("method", "POST") != "POST":
        raise InvalidRequestError(f"method must be POST, not {shown(request['method'])}", param="method")
    if request.get("url") not in (CHAT_URL, COMPLETION_URL):
        raise InvalidRequestError(
            f"url must be {CHAT_URL} or {COMPLETION_URL}, not {shown(request.get('url'))}", param="url"
        )
    if not isinstance(request.get("body"), dict):
        raise InvalidRequestError("body must be an object", param="body")
    return request


def _check_unicode(line: InputLine, request: Mapping[str, Any]) -> None:
    """Refuse lone surrogates, which JSON escapes can express and no tokenizer can encode."""
    if line.data is not None and _SURROGATE_ESCAPE.search(line.data):
        try:
            json.dumps(request, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"line {line.number} has a lone surrogate, which is not valid Unicode") from error


def _refuse_stream(stream: StreamOptions | None) -> None:
    if stream is not None:
        raise InvalidRequestError("stream must be false: a batch row is a whole answer", param="stream")


def _row(custom_id: str, status: int, body: Mapping[str, Any], error: Mapping[str, Any] | None) -> Row:
    """One line of the output, in OpenAI's shape."""
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": uuid.uuid4().hex, "body": body},
        "error": error,
    }
