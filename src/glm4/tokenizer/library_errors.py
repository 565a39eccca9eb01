"""Errors from the `tokenizers` library, as `TokenizerError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glm4.errors import TokenizerError


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Wraps calls into the library, which raises bare Exception and panics on values it does not expect.

    Args:
        where: what to blame, such as a file.

    Raises:
        TokenizerError: for either.
    """
    try:
        yield
    except BaseException as error:
        # A panic is not an Exception, and its class is not in any importable module.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{where}: {error}") from None
        raise
