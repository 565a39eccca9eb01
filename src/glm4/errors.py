"""The exception tree. Everything glm4 raises on purpose derives from `Glm4Error`.

Glm4Error
├── CheckpointError          a checkpoint on disk cannot be used (truncated, wrong shape, wrong architecture …)
│   ├── UnsupportedModelError    the architecture or one of its features is not supported
│   ├── TensorError              a tensor is missing, left over, truncated or has the wrong shape or dtype
│   └── GGUFError                a GGUF header is malformed or contradicts its file
├── TokenizerError           vocabulary missing or malformed, unknown special token
├── TemplateError            a chat template fails, loops, or accesses something forbidden
├── DownloadError            a model could not be fetched; says which source failed and what to try
│   ├── HashMismatchError        bytes arrived but are not the published ones; refused
│   └── DiskFullError            no room left; says how much is missing; what was fetched is kept
├── ModelNotFoundError       no such model name, folder or file
├── InvalidRequestError      a request that can never succeed; `.param` names the field
│   ├── PromptTooLongError       the prompt does not fit the context
│   └── NotFoundError            it names something that does not exist, or not for this client
├── GrammarError             a grammar became too complex to follow during generation; the text ends there
├── ModelClosedError         the model was closed; load it again
├── InternalError            a bug that one request ran into ended it; its `__cause__` is what went wrong
├── BusyError                too much of a kind of work is under way; the same request may work later
├── OutOfMemoryError         the weights or the KV cache do not fit; says what would
├── RemoteError              the upstream server cannot be used or has failed; says which one and what to do
│   └── RemoteUnavailableError   it cannot be reached, is busy or too slow; the same request may work later
├── ToolServerError          an MCP server cannot be started or reached, or broke; says which one and why
├── ClusterError             a Ray cluster cannot be reached, or what runs on it failed; says where and why
├── ToolError                a function or a file of them cannot be a tool; says what to change
├── MissingExtraError        an optional package is missing or has a version that does not work; says what to do
├── KernelError              no usable compute kernel (GLM4_ISA names one this processor lacks …)
├── SandboxError             what ran in a sandbox failed or broke a limit; `.cause` says which
│   └── SandboxUnavailableError  there is no sandbox here; says what to install or which setting is missing
├── TrainingError            a fine-tuning run failed or cannot go on; says why and what to do
├── StoreError               the response store's file cannot be opened, read or written
├── TrainingDataError        rows of training data cannot be used; says which one, why and what to do
└── BatchFileError           a batch file cannot be read or its output cannot be continued

Messages are written for the user at the terminal: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

_MAX_SHOWN = 80


def shown(value: object) -> str:
    """A value shortened for an error message, whatever it is: some have no `repr`, or one as long as the request."""
    try:
        text = repr(value)
    except Exception:  # integers of thousands of digits, deep nesting, and what a caller's own class may raise
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


class Glm4Error(Exception):
    """Base of every deliberate error. The CLI prints it without a traceback and exits with `exit_code`."""

    exit_code = 1


class CheckpointError(Glm4Error):
    """A checkpoint on disk cannot be used."""


class UnsupportedModelError(CheckpointError):
    """The architecture, or one of its options, is not implemented."""


class TensorError(CheckpointError):
    """A tensor is missing, left over, truncated, or has the wrong shape or dtype."""


class GGUFError(CheckpointError):
    """A GGUF file is malformed or its header contradicts the file."""


class TokenizerError(Glm4Error):
    """The vocabulary is missing or malformed, or a special token is unknown."""


class TemplateError(Glm4Error):
    """A chat template failed, ran too long, or accessed something forbidden."""


class DownloadError(Glm4Error):
    """A model could not be fetched."""


class HashMismatchError(DownloadError):
    """Bytes arrived, but they are not the published ones."""


class DiskFullError(DownloadError):
    """The disk has no room for the model, found before or during the download; what was fetched is kept."""


class ModelNotFoundError(Glm4Error):
    """There is no model of that name, folder or file."""

    exit_code = 2


class InvalidRequestError(Glm4Error):
    """A request that can never succeed. `param` names the offending field, if there is one."""

    exit_code = 2

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFoundError(InvalidRequestError):
    """What a request names does not exist, or not for this client."""


class GrammarError(Glm4Error):
    """A grammar that became too complex to follow during generation."""


class ModelClosedError(Glm4Error):
    """The model was closed, and its memory given back."""

    def __init__(self, message: str = "the model was closed; load it again to go on") -> None:
        super().__init__(message)


class InternalError(Glm4Error):
    """A request ran into a bug, which ended it and no other; `__cause__` is the exception, with its traceback."""


class BusyError(Glm4Error):
    """Too much of a kind of work is under way; the same request may work later."""


class PromptTooLongError(InvalidRequestError):
    """The prompt (plus at least one new token) does not fit the context.

    Attributes:
        at_least: the number of tokens it has at least, if it was refused uncounted.
    """

    def __init__(self, message: str, *, param: str | None = None, at_least: int | None = None) -> None:
        super().__init__(message, param=param)
        self.at_least = at_least


class OutOfMemoryError(Glm4Error):
    """The weights or the KV cache do not fit into memory."""


class ToolServerError(Glm4Error):
    """An MCP server cannot be started or reached, or broke."""


class ClusterError(Glm4Error):
    """A Ray cluster cannot be reached, or its processes cannot do the work."""


class ToolError(Glm4Error):
    """A function, or a file of functions, cannot be offered as a tool."""


class MissingExtraError(Glm4Error):
    """A package that an optional feature needs is not installed, or has a version that does not work."""

    exit_code = 2


class RemoteError(Glm4Error):
    """The upstream server cannot be used, or has failed."""


class RemoteUnavailableError(RemoteError):
    """The upstream server cannot be reached, is busy, or took too long; the same request may work later.

    Attributes:
        retry_after: seconds it asks for.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KernelError(Glm4Error):
    """No usable compute kernel."""


class SandboxError(Glm4Error):
    """What ran in a sandbox failed, or broke a limit.

    Attributes:
        cause: "time", "memory" or "failure"; "unavailable" if it could not start.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class SandboxUnavailableError(SandboxError):
    """There is no sandbox on this machine; says what to install or which setting is missing."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message)


class TrainingError(Glm4Error):
    """A fine-tuning run failed, or cannot go on from where it was."""


class StoreError(Glm4Error):
    """The response store's file cannot be opened, read or written."""


class TrainingDataError(Glm4Error):
    """Rows of training data cannot be used.

    Attributes:
        place: of the row, such as "train.jsonl:17"; "" if it is about a file or all rows. The message begins with it.
    """

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__(f"{place}: {message}" if place else message)
        self.place = place
        self.reason = message


class BatchFileError(Glm4Error):
    """A batch input cannot be read, or a batch output cannot be continued."""


def request_error(error: BaseException) -> Glm4Error:
    """The error that ends the request in which `error` was caught: itself if it is ours, else one that it has caused.

    To be called in the `except` block. Its frames are cleared: callers keep errors, and must not keep the weights and
    activations that were in use at that moment.
    """
    import traceback  # not while starting

    inner = None if error.__traceback__ is None else error.__traceback__.tb_next
    traceback.clear_frames(inner)
    error.__traceback__ = inner
    if isinstance(error, Glm4Error):
        return error
    made: Glm4Error
    if isinstance(error, MemoryError):
        made = OutOfMemoryError("the machine ran out of memory while the request was running; free some, or shorten it")
    else:
        made = InternalError(f"internal error ({type(error).__name__}: {error}); please report it")
    made.__cause__ = error
    return made
