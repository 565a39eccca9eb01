"""The program that calls one function inside the sandbox; see `function.py`. It imports only what that needs."""

from __future__ import annotations

import importlib
import os
import struct
import sys
from collections.abc import Callable

# What precedes a result: how it went, and its size.
HEADER = struct.Struct("<cQ")
DONE, MEMORY, FAILURE = b"D", b"M", b"F"


def main(name: str) -> None:
    """Call "module:function" with what standard input has, and write the result to standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no result
    kind, result = _call(name, sys.stdin.buffer.read())
    answers.write(HEADER.pack(kind, len(result)) + result)
    answers.flush()
    os._exit(0)  # threads of libraries have nothing to add


def _call(name: str, argument: bytes) -> tuple[bytes, bytes]:
    module, _, attribute = name.partition(":")
    try:
        function: Callable[[bytes], bytes] = getattr(importlib.import_module(module), attribute)
        return DONE, function(argument)
    except MemoryError:
        return MEMORY, b""
    except BaseException as error:  # a panic of a library is not an Exception
        return FAILURE, f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace")
