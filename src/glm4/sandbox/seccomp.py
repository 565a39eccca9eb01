"""`filter_program`: the system calls that programs inside may not make, as a program for the kernel (seccomp BPF).

Allowed by default: a sandbox has to run programs that we do not know. Denied is what reaches parts of the kernel that
are large, rarely needed and often broken, or what the other layers rely on.

Not covered: a hole in a call that is allowed.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

EPERM, EAFNOSUPPORT, ENOSYS = 1, 97, 38

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000

# clone: every kind of namespace. CLONE_NEWTIME is not among them: its bit belongs to the signal there.
_NEW_NAMESPACES = 0x02000000 | 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SET_ID_BITS = 0o6000
_O_CREAT = 0o100


class Test(NamedTuple):
    """Whether (argument & mask) == value, of the lower 32 bits; an empty `mask` takes all."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    equal: bool = True


@dataclass(frozen=True)
class Rule:
    """A call fails with `errno` if all tests hold."""

    errno: int
    tests: tuple[Test, ...] = ()


@dataclass(frozen=True)
class _Architecture:
    audit: int
    numbers: Mapping[str, int]


def filter_program(machine: str | None = None) -> bytes:
    """The filter as `struct sock_filter[]`, little-endian, for bubblewrap's --seccomp.

    Args:
        machine: as `platform.machine()` names it; this one by default.

    Raises:
        KeyError: there is no table of calls for it.
    """
    name = machine or platform.machine()
    architecture = ARCHITECTURES[name]
    code = [
        _statement(_LOAD, _ARCHITECTURE_AT),
        _jump(_EQUAL, architecture.audit, 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, _NUMBER_AT),
    ]
    if name == "x86_64":
        code += [_jump(_AT_LEAST, _X32_BIT, 0, 1), _statement(_RETURN, _ERRNO | ENOSYS)]
    for call, rules in RULES.items():
        if call not in architecture.numbers:  # this architecture does not have it
            continue
        body = [line for rule in rules for line in _rule(rule)]
        if rules[-1].tests:
            body.append(_statement(_RETURN, _ALLOW))
        code += [_jump(_EQUAL, architecture.numbers[call], 0, len(body)), *body]
    return b"".join([*code, _statement(_RETURN, _ALLOW)])


def _rule(rule: Rule) -> list[bytes]:
    """What returns the error if all tests hold, and else goes on behind it."""
    lines: list[bytes] = [_statement(_RETURN, _ERRNO | rule.errno)]
    for test in reversed(rule.tests):
        skip = len(lines)
        jump = _jump(_EQUAL, test.value, 0, skip) if test.equal else _jump(_EQUAL, test.value, skip, 0)
        masked = [] if test.mask == 0xFFFFFFFF else [_statement(_AND, test.mask)]
        lines = [_statement(_LOAD, _ARGUMENTS_AT + 8 * test.argument), *masked, jump, *lines]
    return lines


def _statement(code: int, value: int) -> bytes:
    return _jump(code, value, 0, 0)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _numbers(names: str, first: int) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names.split())}


def _no_set_id(argument: int, *before: Test) -> tuple[Rule, ...]:
    """A mode with one of the bits that lend a file's owner's rights: it would work outside, too."""
    return (Rule(EPERM, (*before, Test(argument, 0, _SET_ID_BITS, equal=False))),)


def _creating(argument: int) -> Test:
    return Test(argument, _O_CREAT, _O_CREAT)


_NEVER: Sequence[str] = (
    # Other processes.
    "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise",
    # Namespaces and mounts.
    "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_tree", "open_tree_attr", "move_mount",
    "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount", "name_to_handle_at",
    "open_by_handle_at", "quotactl", "quotactl_fd", "swapon", "swapoff",
    # Large parts of the kernel that no program here needs.
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl",
    "add_key", "request_key", "fanotify_init", "fanotify_mark", "lookup_dcookie", "vmsplice", "io_setup", "io_submit",
    "io_destroy", "io_cancel", "io_getevents", "io_pgetevents",
    # The machine.
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "syslog", "acct",
    "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "vhangup", "iopl",
    "ioperm", "modify_ldt", "personality", "nfsservctl", "mbind", "set_mempolicy", "migrate_pages", "move_pages",
    "set_mempolicy_home_node",
    # Counted for the user, who may have other programs.
    "inotify_init", "inotify_init1",
    # Memory that no process has mapped, and that no limit here would count.
    "memfd_create", "memfd_secret", "shmget", "msgget", "semget", "mq_open",
    # Device nodes and pipes with names, which whoever reads the results might open.
    "mknod", "mknodat",
)  # fmt: skip

_CONDITIONAL: dict[str, tuple[Rule, ...]] = {
    # Its flags are behind a pointer, which a filter cannot read; the C library then takes clone.
    "clone3": (Rule(ENOSYS),),
    "openat2": (Rule(ENOSYS),),
    "clone": (Rule(EPERM, (Test(0, 0, _NEW_NAMESPACES, equal=False),)),),
    "socket": (Rule(EAFNOSUPPORT, (Test(0, _AF_UNIX, equal=False),)),),
    "socketpair": (Rule(EAFNOSUPPORT, (Test(0, _AF_UNIX, equal=False),)),),
    "ioctl": (Rule(EPERM, (Test(1, _TIOCSTI),)), Rule(EPERM, (Test(1, _TIOCLINUX),))),
    "chmod": _no_set_id(1),
    "fchmod": _no_set_id(1),
    "fchmodat": _no_set_id(2),
    "fchmodat2": _no_set_id(2),
    "mkdir": _no_set_id(1),
    "mkdirat": _no_set_id(2),
    "creat": _no_set_id(1),
    "open": _no_set_id(2, _creating(1)),
    "openat": _no_set_id(3, _creating(2)),
}

# By call: the rules, of which the first that holds applies. Without any the call is allowed.
RULES: dict[str, tuple[Rule, ...]] = {**{name: (Rule(EPERM),) for name in _NEVER}, **_CONDITIONAL}

# Numbers of the calls since Linux 5.1, which all architectures share.
_COMMON = {
    **_numbers("io_uring_setup io_uring_enter io_uring_register", 425),
    **_numbers("open_tree move_mount fsopen fsconfig fsmount fspick", 428),
    **_numbers("pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2", 434),
    **_numbers("mount_setattr quotactl_fd", 442), "memfd_secret": 447, "set_mempolicy_home_node": 450,
    "fchmodat2": 452, **_numbers("statmount listmount", 457), "open_tree_attr": 467,
}  # fmt: skip

_X86_64 = {
    "open": 2, "ioctl": 16, "shmget": 29, "socket": 41, "socketpair": 53, "clone": 56, "semget": 64, "msgget": 68,
    "mkdir": 83, "creat": 85, "chmod": 90, "fchmod": 91, "ptrace": 101, "syslog": 103, "mknod": 133,
    "personality": 135, **_numbers("vhangup modify_ldt pivot_root", 153), "adjtimex": 159,
    **_numbers("chroot sync acct settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl", 161),
    "ioperm": 173, "init_module": 175, "delete_module": 176, "quotactl": 179, "nfsservctl": 180,
    **_numbers("io_setup io_destroy io_getevents io_submit io_cancel", 206), "lookup_dcookie": 212,
    "clock_settime": 227, "inotify_init": 253, "inotify_init1": 294,
    **_numbers("mbind set_mempolicy get_mempolicy mq_open", 237), "kexec_load": 246,
    **_numbers("add_key request_key keyctl", 248), "migrate_pages": 256, **_numbers("openat mkdirat mknodat", 257),
    "fchmodat": 268, "unshare": 272, "vmsplice": 278, "move_pages": 279, "perf_event_open": 298,
    **_numbers("fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime", 300),
    "setns": 308, **_numbers("process_vm_readv process_vm_writev kcmp finit_module", 310), "memfd_create": 319,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_pgetevents": 333,
}  # fmt: skip

_AARCH64 = {
    **_numbers("io_setup io_destroy io_submit io_cancel io_getevents", 0), "lookup_dcookie": 18, "inotify_init1": 26,
    "ioctl": 29,
    **_numbers("mknodat mkdirat", 33), **_numbers("umount2 mount pivot_root nfsservctl", 39), "chroot": 51,
    "fchmod": 52, "fchmodat": 53, "openat": 56, "vhangup": 58, "quotactl": 60, "vmsplice": 75, "acct": 89,
    "personality": 92, "unshare": 97, **_numbers("kexec_load init_module delete_module", 104), "clock_settime": 112,
    "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161, "setdomainname": 162, "settimeofday": 170,
    "adjtimex": 171, "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "socket": 198, "socketpair": 199,
    **_numbers("add_key request_key keyctl clone", 217), "swapon": 224, "swapoff": 225, "mbind": 235,
    **_numbers("set_mempolicy migrate_pages move_pages", 237), "perf_event_open": 241,
    **_numbers("fanotify_init fanotify_mark name_to_handle_at open_by_handle_at clock_adjtime syncfs setns", 262),
    **_numbers("process_vm_readv process_vm_writev kcmp finit_module", 270), "memfd_create": 279, "bpf": 280,
    "userfaultfd": 282, "io_pgetevents": 292, "kexec_file_load": 294,
}  # fmt: skip

# By `platform.machine()`.
ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, {**_X86_64, **_COMMON}),
    "aarch64": _Architecture(0xC00000B7, {**_AARCH64, **_COMMON}),
}
