"""Asks at the terminal whether a call may run: once, always in this conversation, or not."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
from collections.abc import Callable
from typing import Literal

from glm4.agent.steps import Decision
from glm4.agent.tool import Invocation, Tool
from glm4.cli import console
from glm4.cli.console import printable
from glm4.cli.conversation.interrupt import silent_keyboard

ApproveOption = Literal["ask", "always", "never"]
APPROVE_OPTIONS: tuple[ApproveOption, ...] = ("ask", "always", "never")

_KEYS: dict[str, Decision] = {"o": "once", "y": "once", "a": "always", "n": "never"}


def approver(option: ApproveOption, interrupted: Callable[[], bool]) -> Callable[[Tool, Invocation], Decision]:
    """What decides on calls.

    Args:
        option: "ask" asks; the others decide without asking.
        interrupted: the user has asked to stop everything.
    """

    def approve(tool: Tool, invocation: Invocation) -> Decision:
        if option != "ask":
            return "once" if option == "always" else "never"
        if not sys.stdin.isatty():
            console.notice("nobody can be asked here; --approve always allows such calls")
            return "never"
        return _ask(invocation.function, interrupted)

    return approve


def _ask(function: str, interrupted: Callable[[], bool]) -> Decision:
    """Wait for a key. Keys typed before the question do not answer it."""
    descriptor = sys.stdin.fileno()
    decision: Decision = "never"
    with silent_keyboard():
        with contextlib.suppress(termios.error):
            termios.tcflush(descriptor, termios.TCIFLUSH)
        sys.stderr.write(f"  allow {printable(function)}? [o]nce, [a]lways in this conversation, [n]ever: ")
        sys.stderr.flush()
        while not interrupted():
            if not select.select([descriptor], [], [], 0.1)[0]:
                continue
            key = os.read(descriptor, 1).decode("ascii", "replace").lower()
            if not key or key in _KEYS or key == "\x04":  # the end of input, or Ctrl-D
                decision = _KEYS.get(key, "never")
                break
    sys.stderr.write(f"{decision}\n")
    return decision
