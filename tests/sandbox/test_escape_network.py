"""Attacks from inside the sandbox: the network, and programs that listen on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import Box, marker

# Addresses where clouds tell machines their secrets.
METADATA = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192"]

CONNECT = """
import socket
def connect(family, kind, address):
    with socket.socket(family, kind) as made:
        made.settimeout(5)
        made.connect(address)
        made.send(b"x")
"""


@pytest.fixture
def listener() -> Iterator[int]:
    """A port of this machine that can be reached, by IPv4, TCP and UDP."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        server.settimeout(60)
        with socket.create_connection(("127.0.0.1", port), timeout=60), server.accept()[0]:
            pass  # from here it can be reached
        server.setblocking(False)
        datagrams.setblocking(False)
        yield port
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)


def test_no_port_of_this_machine_can_be_reached(box: Box, listener: int) -> None:
    found = box.results(f"""{CONNECT}
attempt("tcp", connect, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {listener}))
attempt("udp", connect, socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", {listener}))
attempt("mapped", connect, socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:127.0.0.1", {listener}))
""")
    assert set(found.values()) == {"EAFNOSUPPORT"}


def test_no_metadata_service_can_be_asked(box: Box) -> None:
    code = "\n".join(
        f'attempt("{address}", connect, socket.AF_INET, socket.SOCK_STREAM, ("{address}", 80))' for address in METADATA
    )
    found = box.results(f"""{CONNECT}{code}
attempt("v6", connect, socket.AF_INET6, socket.SOCK_STREAM, ("fd00:ec2::254", 80))
""")
    assert set(found.values()) == {"EAFNOSUPPORT"}


def test_no_name_is_resolved(box: Box) -> None:
    found = box.results("""
import socket
def resolve(name):
    try:
        socket.getaddrinfo(name, 80)
    except socket.gaierror:
        return "unknown"
attempt("name", resolve, "example.com")
attempt("local", resolve, "localhost.localdomain")
""")
    assert found == {"name": "unknown", "local": "unknown"}


def test_no_socket_but_local_ones_is_made(box: Box) -> None:
    found = box.results("""
import socket
for family in range(2, 46):
    for kind in (1, 2, 3, 5):
        attempt(f"{family}-{kind}", syscall, "socket", family, kind, 0)
attempt("pair", syscall, "socketpair", 2, 1, 0, (ctypes.c_int * 2)())
results["local"] = [socket.socketpair()[0].family]
""")
    assert found.pop("local") == [socket.AF_UNIX]
    assert set(found.values()) == {"EAFNOSUPPORT"}


def test_the_only_interface_is_its_own_loopback(box: Box) -> None:
    found = box.results("""
results["interfaces"] = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
results["routes"] = len(open("/proc/net/route").readlines()) - 1
results["namespace"] = os.readlink("/proc/self/ns/net")
""")
    assert found["interfaces"] == ["lo"]
    assert found["routes"] == 0
    assert found["namespace"] != str(Path("/proc/self/ns/net").readlink())


def test_no_local_socket_of_this_machine_can_be_reached(box: Box) -> None:
    name = marker()
    path = Path("/tmp", name)
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        abstract.bind(f"\0{name}")
        named.bind(str(path))
        path.chmod(0o777)
        try:
            for server, address in ((abstract, f"\0{name}"), (named, str(path))):
                server.listen()
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(address)  # from here it can be reached
            found = box.results(f"""{CONNECT}
attempt("abstract", connect, socket.AF_UNIX, socket.SOCK_STREAM, chr(0) + {name!r})
attempt("named", connect, socket.AF_UNIX, socket.SOCK_STREAM, {str(path)!r})
attempt("docker", connect, socket.AF_UNIX, socket.SOCK_STREAM, "/var/run/docker.sock")
attempt("system", connect, socket.AF_UNIX, socket.SOCK_STREAM, "/run/dbus/system_bus_socket")
""")
        finally:
            path.unlink()
    assert found == {"abstract": "ECONNREFUSED", "named": "ENOENT", "docker": "ENOENT", "system": "ENOENT"}


def test_namespaces_are_its_own(box: Box) -> None:
    kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
    found = box.results(f"""
for kind in {kinds}:
    results[kind] = os.readlink(f"/proc/self/ns/{{kind}}")
results["host"] = os.uname().nodename
""")
    assert found.pop("host") == "sandbox" != os.uname().nodename
    for kind in kinds:
        assert found[kind] != str(Path(f"/proc/self/ns/{kind}").readlink())
