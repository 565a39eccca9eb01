"""Two machines with public addresses, made of network namespaces: fetches between them, and prints what came.

unshare --map-root-user --net python public_network.py

The fetcher's policy is the default one: every check of addresses is on, and ports are 80 and 443. A second machine
serves `pictures.test`; this one has a service that nobody may reach, on loopback and on its own public address.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from glm4.errors import InvalidRequestError
from glm4.multimodal.fetch import Fetcher, FetchPolicy
from web_sites import CERTIFICATE, PICTURE, Names, page, redirect, site

HERE, THERE = "93.184.216.1", "93.184.216.34"
HERE_V6, THERE_V6 = "2606:4700::1", "2606:4700::34"
UNAVAILABLE = 77
ANSWERS = {
    "/": page(),
    "/to-loopback": redirect("http://127.0.0.1/"),
    "/to-metadata": redirect("http://169.254.169.254/latest/meta-data"),
    "/to-rebinding-name": redirect("http://rebind.test/"),
    "/to-https": redirect("https://pictures.test/"),
}
NAMES = {
    "pictures.test": [[THERE_V6, THERE]],
    "half.test": [["93.184.216.99", THERE]],  # nobody is at the first one
    "two-faced.test": [[THERE, "127.0.0.1"]],
    "rebind.test": [[THERE], ["127.0.0.1"]],
    "myself.test": [[HERE]],
}
LITERALS = (THERE, HERE, "127.0.0.1", "169.254.169.254")
URLS = {
    "address": f"http://{THERE}/",
    "IPv6 address": f"http://[{THERE_V6}]/",
    "name": "http://pictures.test/",
    "https": "https://pictures.test/",
    "redirect to https": "http://pictures.test/to-https",
    "two public addresses": "http://half.test/",
    "a public and a private address": "http://two-faced.test/",
    "rebinding name": "http://rebind.test/",
    "rebinding name again": "http://rebind.test/",
    "loopback": "http://127.0.0.1/",
    "redirect to loopback": "http://pictures.test/to-loopback",
    "redirect to metadata": "http://pictures.test/to-metadata",
    "redirect to rebinding name": "http://pictures.test/to-rebinding-name",
    "this machine by public address": f"http://{HERE}/",
    "this machine by IPv6 address": f"http://[{HERE_V6}]/",
    "this machine by public name": "http://myself.test/",
}


def serve() -> None:
    """Be the other machine, until the input ends."""
    with ExitStack() as stack:
        stack.enter_context(site(ANSWERS, address=THERE, port=80))
        stack.enter_context(site(ANSWERS, address=THERE, port=443, secure=True))
        stack.enter_context(site(ANSWERS, address=THERE_V6, port=80))
        print("serving", flush=True)
        sys.stdin.read()


def connect(pid: int) -> None:
    """A cable between this network namespace and that of another process."""
    enter = f"nsenter --target {pid} --net "
    commands = ["ip link set lo up", f"ip link add name left type veth peer name right netns {pid}"]
    for prefix, device, address, address_v6 in (("", "left", HERE, HERE_V6), (enter, "right", THERE, THERE_V6)):
        commands += [
            f"{prefix}ip addr add {address}/24 dev {device}",
            f"{prefix}ip addr add {address_v6}/64 dev {device} nodad",
            f"{prefix}ip link set {device} up",
        ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        sys.exit(UNAVAILABLE)


def fetch_all() -> dict[str, str]:
    """What each of `URLS` gives: the file, or the message."""
    names = Names({**NAMES, **{literal: [[literal]] for literal in (*LITERALS, HERE_V6, THERE_V6)}})
    fetcher = Fetcher(FetchPolicy(), resolve=names)
    found = {}
    for name, url in URLS.items():
        try:
            found[name] = fetcher.fetch(url).data.decode("latin-1")
        except InvalidRequestError as error:
            found[name] = str(error)
    return found


@contextmanager
def another_machine(script: str) -> Iterator[None]:
    """Connects this machine to one that runs `script serve`, until the block ends."""
    command = ["unshare", "--net", sys.executable, script, "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            # `unshare` replaces itself, so the process is in its own namespace as soon as Python runs.
            assert other.stdout.readline() == b"here\n"
            connect(other.pid)
            other.stdin.write(b"connected\n")
            other.stdin.flush()
            assert other.stdout.readline() == b"serving\n"
            os.environ["REQUESTS_CA_BUNDLE"] = str(CERTIFICATE)
            yield
        finally:
            other.stdin.close()


def main() -> None:
    """Build the network, fetch, print."""
    with (
        another_machine(__file__),
        site({"/": page(b"secret")}, address="0.0.0.0", port=80) as secret,
        site({"/": page(b"secret")}, address=HERE_V6, port=80) as secret_v6,
    ):
        found = fetch_all()
        asked = secret.requests + secret_v6.requests
    print(json.dumps({"found": found, "asked": asked, "picture": PICTURE.decode("latin-1")}))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        print("here", flush=True)
        sys.stdin.readline()
        serve()
    else:
        main()
