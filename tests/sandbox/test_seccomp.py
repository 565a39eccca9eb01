"""The filter of system calls, run by a small machine of our own: both architectures, without a kernel."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from glm4.sandbox.seccomp import ARCHITECTURES, RULES, filter_program

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, EAFNOSUPPORT = 0x50001, 0x50026, 0x50061
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def answer(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the kernel would do with a call."""
    given = [argument & (1 << 64) - 1 for argument in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    audit = ARCHITECTURES[machine].audit if audit is None else audit
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, *given)
    program = [struct.unpack_from("<HBBI", code, 0) for code in _instructions(filter_program(machine))]
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        else:
            assert code in (0x15, 0x35)
            held = value == operand if code == 0x15 else value >= operand
            at += if_true if held else if_false


def _instructions(program: bytes) -> list[bytes]:
    assert len(program) % 8 == 0
    return [program[at : at + 8] for at in range(0, len(program), 8)]


@pytest.fixture(params=ARCHITECTURES)
def machine(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


def test_it_is_a_program_that_the_kernel_takes(machine: str) -> None:
    program = _instructions(filter_program(machine))
    assert len(program) <= 4096
    for at, instruction in enumerate(program):
        code, if_true, if_false, _ = struct.unpack("<HBBI", instruction)
        assert code in (0x20, 0x15, 0x35, 0x54, 0x06)
        assert code == 0x06 or at + 1 + max(if_true, if_false) < len(program)
    assert struct.unpack("<HBBI", program[-1])[0] == 0x06


def test_calls_get_the_answer_of_their_rules(machine: str) -> None:
    numbers = ARCHITECTURES[machine].numbers
    for name, rules in RULES.items():
        if name in numbers and not rules[0].tests:
            assert answer(machine, numbers[name]) == 0x50000 | rules[0].errno, name
            assert answer(machine, numbers[name], *[(1 << 64) - 1] * 6) == 0x50000 | rules[0].errno, name
    for name in set(numbers) - set(RULES):
        assert answer(machine, numbers[name]) == ALLOW, name


def test_ordinary_calls_are_allowed() -> None:
    ordinary = {"x86_64": [0, 1, 9, 12, 39, 59, 231], "aarch64": [63, 64, 222, 214, 172, 221, 94]}  # read … exit_group
    for machine, numbers in ordinary.items():
        for number in numbers:
            assert answer(machine, number, *range(6)) == ALLOW


def test_other_architectures_are_killed(machine: str) -> None:
    for audit in {0x40000003, 0x40000028, 0xC000003E, 0xC00000B7} - {ARCHITECTURES[machine].audit}:
        assert answer(machine, 0, audit=audit) == KILL


def test_calls_of_x32_do_not_exist() -> None:
    for number in (0x40000000, 0x40000065, 0x40000200, 0xFFFFFFFF):
        assert answer("x86_64", number) == ENOSYS


def test_only_local_sockets_are_made(machine: str) -> None:
    for name in ("socket", "socketpair"):
        number = ARCHITECTURES[machine].numbers[name]
        for family in range(50):
            assert answer(machine, number, family, 1) == (ALLOW if family == 1 else EAFNOSUPPORT)
        assert answer(machine, number, 1 | 1 << 32, 1) == ALLOW  # the kernel takes the lower half
        assert answer(machine, number, 2 | 1 << 32, 1) == EAFNOSUPPORT


def test_processes_are_made_but_no_namespaces(machine: str) -> None:
    number = ARCHITECTURES[machine].numbers["clone"]
    assert answer(machine, number, 17) == ALLOW  # fork
    assert answer(machine, number, 0x003D0F00) == ALLOW  # a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(machine, number, flag | 17) == EPERM
        assert answer(machine, number, 0x003D0F00 | flag) == EPERM


def test_nothing_is_typed_into_terminals(machine: str) -> None:
    number = ARCHITECTURES[machine].numbers["ioctl"]
    for request in (0x5412, 0x541C, 0x5412 | 1 << 32):
        assert answer(machine, number, 0, request) == EPERM
    assert answer(machine, number, 0, 0x5413) == ALLOW


def test_modes_that_lend_rights_are_refused(machine: str) -> None:
    places = {
        "chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "mkdir": 1, "mkdirat": 2, "creat": 1, "open": 2,
        "openat": 3,
    }  # fmt: skip
    numbers = ARCHITECTURES[machine].numbers
    for name, place in places.items():
        if name not in numbers:
            continue
        for mode in (0o4755, 0o2644, 0o6000, 0o755, 0o1777, 0):
            arguments = [0o100] * place + [mode]  # also O_CREAT, where there are flags
            wanted = EPERM if mode & 0o6000 else ALLOW
            assert answer(machine, numbers[name], *arguments) == wanted, (name, mode)
    for name in {"open", "openat"} & set(numbers):
        assert answer(machine, numbers[name], *[0] * places[name], 0o6777) == ALLOW  # no file is made: no mode


def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)")
    published = {name: int(number) for name, number in pattern.findall(HEADERS[machine].read_text())}
    ours = ARCHITECTURES[machine].numbers
    known = set(ours) & set(published)
    assert len(known) > 85
    assert {name: ours[name] for name in known} == {name: published[name] for name in known}
    later = set(ours) - known  # than these headers
    assert all(ours[name] > 450 for name in later), later


def test_no_filter_for_an_unknown_processor() -> None:
    with pytest.raises(KeyError):
        filter_program("vax")
