"""A module whose import takes longer than anybody waits: what is sent to its functions stays in the pipe."""

from __future__ import annotations

import time


def sleep(data: bytes) -> bytes:
    return data


if __name__ != "sandbox_tests":
    time.sleep(1000)
