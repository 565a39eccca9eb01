"""Fetching on an internet of its own: public addresses, ports 80 and 443, and every check on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

import public_network


@pytest.mark.skipif(
    not all(map(shutil.which, ("unshare", "nsenter", "ip"))), reason="needs unshare, nsenter and ip (Linux)"
)
def test_public_addresses_are_fetched_from_and_private_ones_are_not() -> None:
    command = ["unshare", "--map-root-user", "--net", sys.executable, public_network.__file__]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if run.returncode == public_network.UNAVAILABLE or "unshare" in run.stderr:
        pytest.skip(f"no network namespaces here: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    found = result["found"]
    good = ("address", "IPv6 address", "name", "https", "redirect to https", "two public addresses", "rebinding name")
    assert {name for name in found if found[name] == result["picture"]} == set(good)
    for name in found.keys() - good:
        reason = "is this server itself" if name.startswith("this machine") else "has an address that is not public"
        assert reason in found[name], name
    assert result["asked"] == []
