"""Attacks from inside the sandbox: files of this machine, and what is left in a writable folder."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from sandboxes import Box, marker

from glm4.sandbox.interpreter import own_mounts

WRITE = """
def write(path):
    with open(path, "w") as file:
        file.write("x")
"""


def test_no_file_of_this_machine_is_there(box: Box) -> None:
    with tempfile.NamedTemporaryFile(prefix=marker(), dir="/tmp") as secret:
        Path(secret.name).chmod(0o644)  # all who see it may read it
        paths = [
            secret.name, "/etc/shadow", "/etc/hosts", "/etc/resolv.conf", "/etc/machine-id", "/root", "/home", "/var",
            "/run", "/sys", "/boot", "/srv", "/mnt", "/opt", "/root/.ssh/id_rsa", "/proc/kcore/x", "/dev/mem",
            "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/.dockerenv",
            str(Path.cwd()),
        ]  # fmt: skip
        found = box.results(f"""
for path in {paths}:
    attempt(path, os.stat, path)
results["root"] = sorted(os.listdir("/"))
results["etc"] = sorted(os.listdir("/etc"))
""")
    root, etc = set(found.pop("root")), set(found.pop("etc"))
    assert root <= {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sandbox", "sbin", "tmp", "usr"}
    assert etc <= {"alternatives", "group", "ld.so.cache", "passwd"}
    assert set(found.values()) <= {"ENOENT", "ENOTDIR"}


def test_the_devices_are_harmless_ones(box: Box) -> None:
    found = box.results("""
results["devices"] = sorted(os.listdir("/dev"))
attempt("terminal", open, "/dev/tty", "rb")
attempt("new file", open, "/dev/new", "wb")
""")
    assert set(found.pop("devices")) == {
        "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    }  # fmt: skip
    assert found == {"terminal": "ENXIO", "new file": "EROFS"}


def test_the_system_cannot_be_changed(box: Box) -> None:
    found = box.results(f"""{WRITE}
for path in "/usr/x /usr/bin/env /usr/bin/new /bin/sh /usr/lib/x /etc/passwd /etc/x /x /dev/x".split():
    attempt(path, write, path)
attempt("remove", os.unlink, "/usr/bin/env")
attempt("rename", os.rename, "/usr/bin", "/usr/bin2")
attempt("mode", os.chmod, "/usr/bin/env", 0o777)
attempt("link", os.symlink, "/tmp", "/usr/x")
""")
    assert set(found.values()) <= {"EROFS", "EACCES", "EBUSY", "EPERM"}


def test_scratch_folders_are_empty_and_end_with_it(box: Box) -> None:
    name = marker()
    for _ in range(2):
        found = box.results(f"""{WRITE}
results["before"] = os.listdir("/tmp") + os.listdir("/dev/shm")
attempt("tmp", write, "/tmp/{name}")
attempt("shm", write, "/dev/shm/{name}")
""")
        assert found == {"before": [], "tmp": "done", "shm": "done"}
    assert not Path("/tmp", name).exists()
    assert not Path("/dev/shm", name).exists()


def test_proc_gives_no_way_out(box: Box) -> None:
    found = box.results("""
import pathlib
results["processes"] = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
attempt("root", lambda: sorted(os.listdir("/proc/1/root")))
attempt("parent", lambda: sorted(os.listdir("/proc/1/root/..")))
attempt("shadow", open, "/proc/1/root/etc/shadow")
attempt("memory", open, "/proc/1/mem", "r+b")
attempt("program", open, "/proc/1/exe", "r+b")
attempt("own program", open, "/proc/self/exe", "r+b")
attempt("cwd", lambda: os.listdir("/proc/1/cwd"))
for path in ("kernel/core_pattern", "kernel/hostname", "vm/drop_caches", "kernel/modprobe", "fs/binfmt_misc/register"):
    attempt(path, open, f"/proc/sys/{path}", "w")
for path in ("sysrq-trigger", "kcore", "kmsg", "1/oom_score_adj", "1/uid_map", "self/uid_map", "self/setgroups"):
    attempt(path, open, f"/proc/{path}", "r+")
attempt("score", lambda: pathlib.Path("/proc/self/oom_score_adj").write_text("-1000"))
attempt("map", lambda: pathlib.Path("/proc/self/uid_map").write_text("0 0 1"))
""")
    assert len(found.pop("processes")) <= 3
    inside = {"usr", "proc", "tmp"}
    for name in ("root", "parent", "cwd"):
        if isinstance(found[name], list):  # what it sees there is its own
            assert inside <= set(found.pop(name))
            continue
        assert found.pop(name) == "EACCES"
    for name in ("1/uid_map", "self/uid_map", "self/setgroups", "1/oom_score_adj"):
        found.pop(name)  # they open; what can be written is below
    refused = {"EACCES", "EPERM", "EROFS", "ENOENT", "ETXTBSY"}
    assert set(found.values()) <= refused, found


def test_no_file_system_can_be_mounted(box: Box) -> None:
    found = box.results("""
at = ctypes.c_char_p
attempt("tmpfs", syscall, "mount", at(b"x"), at(b"/tmp"), at(b"tmpfs"), 0, at(b""))
attempt("proc", syscall, "mount", at(b"x"), at(b"/tmp"), at(b"proc"), 0, at(b""))
attempt("remount", syscall, "mount", at(b""), at(b"/usr"), at(b""), 4096 | 32, at(b""))
attempt("unmount", syscall, "umount2", at(b"/proc"), 2)
attempt("pivot", syscall, "pivot_root", at(b"/tmp"), at(b"/tmp"))
attempt("chroot", os.chroot, "/tmp")
attempt("new", syscall, "fsopen", at(b"tmpfs"), 0)
attempt("tree", syscall, "open_tree", -100, at(b"/"), 1)
attempt("handle", syscall, "open_by_handle_at", -100, at(b"\\0" * 64), 0)
""")
    assert set(found.values()) == {"EPERM"}


def test_no_device_or_pipe_with_a_name_is_made(box: Box) -> None:
    folder = box.folder()
    found = box.results(
        """
import stat
for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
    attempt(str(kind), os.mknod, f"/data/{kind}", kind | 0o666, os.makedev(1, 1))
attempt("pipe", os.mkfifo, "/data/pipe")
""",
        mounts=[(str(folder), "/data", True)],
    )
    assert set(found.values()) == {"EPERM"}
    assert list(folder.iterdir()) == []


def test_no_file_lends_rights(box: Box) -> None:
    folder = box.folder()
    found = box.results(
        """
attempt("plain", lambda: os.close(os.open("/data/plain", os.O_CREAT | os.O_WRONLY, 0o755)))
attempt("open", lambda: os.close(os.open("/data/open", os.O_CREAT | os.O_WRONLY, 0o4755)))
attempt("chmod", os.chmod, "/data/plain", 0o4755)
attempt("group", os.chmod, "/data/plain", 0o2755)
attempt("fchmod", os.fchmod, os.open("/data/plain", os.O_RDONLY), 0o6755)
attempt("fchmodat", os.chmod, "plain", 0o4755, )
attempt("mkdir", os.mkdir, "/data/folder", 0o2755)
attempt("fchmodat2", syscall, "fchmodat2", -100, ctypes.c_char_p(b"/data/plain"), 0o4755, 0)
attempt("openat2", syscall, "openat2", -100, ctypes.c_char_p(b"/data/plain"), ctypes.c_char_p(bytes(24)), 24)
attempt("owner", os.chown, "/data/plain", 0, 0)
every = bytes.fromhex("01000002ffffffff00000000ffffffff00000000")
attempt("capability", os.setxattr, "/data/plain", "security.capability", every)
""",
        mounts=[(str(folder), "/data", True)], working_directory="/data",
    )  # fmt: skip
    assert found.pop("plain") == "done"
    assert found.pop("openat2") == "ENOSYS"
    assert found.pop("owner") in ("EPERM", "EINVAL")
    assert found.pop("capability") in ("EPERM", "EOPNOTSUPP")
    assert set(found.values()) == {"EPERM"}
    files = list(folder.iterdir())
    assert [file.name for file in files] == ["plain"]
    assert files[0].stat().st_mode & 0o7777 == 0o755
    assert files[0].stat().st_uid not in (0,) or os.geteuid() != 0


def test_links_lead_nowhere(box: Box) -> None:
    """Hard links out of a mount are impossible; symbolic ones mean, inside, what is inside."""
    folder, secret = box.folder(), box.folder()
    (secret / "secret").write_text("secret")
    (secret / "secret").chmod(0o644)
    found = box.results(
        f"""
attempt("hard", os.link, "/usr/bin/env", "/data/env")
attempt("other mount", os.link, "/other/secret", "/data/secret")
attempt("rename", os.rename, "/other/secret", "/data/secret")
attempt("process", os.link, "/proc/self/exe", "/data/exe")
os.symlink("{secret}/secret", "/data/absolute")
os.symlink("../../..{secret}/secret", "/data/relative")
attempt("absolute", open, "/data/absolute")
attempt("relative", open, "/data/relative")
attempt("read-only", open, "/other/secret", "w")
attempt("above", lambda: sorted(os.listdir("/data/../..")))
""",
        mounts=[(str(folder), "/data", True), (str(secret), "/other", False)],
    )
    assert "usr" in found.pop("above")
    assert found["read-only"] == "EROFS"
    assert {found["absolute"], found["relative"]} == {"ENOENT"}
    assert {found["hard"], found["other mount"], found["rename"]} <= {"EXDEV", "EPERM", "EROFS"}
    assert found["process"] in ("EXDEV", "EPERM")
    assert (secret / "secret").read_text() == "secret"


def test_programs_with_rights_of_others_lend_none(box: Box) -> None:
    found = box.results("""
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups"):
    results[name] = status[name].strip()
results["ids"] = [*os.getresuid(), *os.getresgid()]
attempt("setuid", os.setuid, 0)
attempt("setgid", os.setgid, 0)
attempt("setgroups", os.setgroups, [0])
import glob
names = [path for path in glob.glob("/usr/bin/*") if os.stat(path).st_mode & 0o4000]
results["set"] = len(names)
results["nosuid"] = int(bool(os.statvfs("/usr").f_flag & os.ST_NOSUID))
""")
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert found["nosuid"] == 1
    assert found["ids"] == [1000] * 6
    assert {found["setuid"], found["setgid"], found["setgroups"]} <= {"EPERM", "EINVAL"}


def test_this_package_and_its_interpreter_are_read_only(box: Box) -> None:
    mounts = [(str(mount.source), mount.target, False) for mount in own_mounts()]
    if box.user != os.geteuid() and not all(_reachable(Path(source)) for source, _, _ in mounts):
        pytest.skip("the plain user cannot reach this interpreter")
    import glm4

    paths = [str(Path(glm4.__file__)), str(Path(glm4.__file__).parent / "new.py"), f"{sys.prefix}/new"]
    found = box.results(
        f"""{WRITE}
for path in {paths}:
    attempt(path, write, path)
results["there"] = len(open({paths[0]!r}).read())
""",
        mounts=mounts,
    )
    assert found.pop("there") > 100
    assert set(found.values()) <= {"EROFS", "EACCES"}


def _reachable(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)
