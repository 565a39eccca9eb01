"""Functions that `run_function` calls in tests: what ours could become in the hands of whoever wrote a document."""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path


def reverse(data: bytes) -> bytes:
    return data[::-1]


def first_byte_of_much(data: bytes) -> bytes:
    return data[:1] * (8 << 20)


def print_and_return(data: bytes) -> bytes:
    print("to standard output")
    os.write(1, b"to the descriptor")
    os.system("echo by a child")
    return data


def sleep(data: bytes) -> bytes:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)
    return data


def close_and_stay(data: bytes) -> bytes:
    for handle in range(64):
        try:
            os.close(handle)
        except OSError:
            continue
    time.sleep(1000)
    return data


def spin(data: bytes) -> bytes:
    while True:
        pass


def flood(data: bytes) -> bytes:
    """Write to what `main` kept of standard output, without end."""
    while True:
        for handle in range(1, 16):
            try:
                os.write(handle, bytes(1 << 16))
            except OSError:
                continue


def flood_errors(data: bytes) -> bytes:
    for _ in range(1000):
        os.write(2, b"x" * (1 << 16))
    raise ValueError("the last line")


def lie_about_size(data: bytes) -> bytes:
    for handle in range(3, 16):
        try:
            os.write(handle, struct.pack("<cQ", b"D", 1 << 62) + b"short")
        except OSError:
            continue
    os._exit(0)


def escape(data: bytes) -> bytes:
    raise ValueError("\033]0;title\007\033[2Jred\u202e\n\033[31mlast line")


def grow(data: bytes) -> bytes:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def grow_in_children(data: bytes) -> bytes:
    for _ in range(8):
        if os.fork() == 0:
            kept = os.urandom(1 << 20) * 100
            time.sleep(1000)
            os._exit(len(kept) & 1)
    time.sleep(1000)
    return data


def crash(data: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGSEGV)
    return data


def recurse(data: bytes) -> bytes:
    return recurse(data + b"x")


def leave_a_thread(data: bytes) -> bytes:
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return data


def look(data: bytes) -> bytes:
    """What it sees of this machine."""
    path = Path(data.decode())
    root = ",".join(sorted(entry.name for entry in Path("/").iterdir()))
    return "\n".join([root, ",".join(sorted(os.environ)), str(path.exists()), str(os.getuid())]).encode()


def not_bytes(data: bytes) -> bytes:
    return sys  # type: ignore[return-value]
