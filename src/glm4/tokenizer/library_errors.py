"""What goes wrong inside the `tokenizers` library, as a `TokenizerError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glm4.errors import TokenizerError


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Around calls into the library: it raises bare Exception, and where it did not expect a value it panics.

    Args:
        where: what to blame, a file say.

    Raises:
        TokenizerError: for either.
    """
    try:
        yield
    except BaseException as error:
        # A panic is no Exception, and its class is in no module that could be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{where}: {error}") from None
        raise
