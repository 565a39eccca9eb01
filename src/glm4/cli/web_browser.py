"""Opens a page in the user's own browser, where there is one, and says what to do where there is none."""

from __future__ import annotations

import os
import socket
import sys
import threading


def has_browser() -> bool:
    """Whether a browser that is started here would be seen by who sits at this terminal.

    `BROWSER` (a program) says that it would. Over SSH, and on a system without a screen, it would not: there are only
    browsers for terminals, which would take this one.
    """
    if os.environ.get("BROWSER"):
        return True
    if any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY")):
        return False
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def open_page(address: str) -> None:
    """Show a page; returns at once, as some browsers only return when they are closed."""

    def show() -> None:
        import webbrowser

        if not webbrowser.open(address):
            from glm4.cli.console import warning

            warning(f"no browser could be started; open {address} in yours")

    threading.Thread(target=show, name="glm4-browser", daemon=True).start()


def forwarding(port: int) -> str:
    """What shows a page of this machine, from one that has a browser."""
    words = os.environ.get("SSH_CONNECTION", "").split()  # client, its port, this machine, its port
    machine = words[2] if len(words) == 4 else socket.gethostname()
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "USER"
    return f"ssh -L {port}:127.0.0.1:{port} {user}@{machine}"
