"""What to do about a sandbox that does not start: the settings of the system that are known to prevent it."""

from __future__ import annotations

import re
from pathlib import Path

from glm4.errors import SandboxError, SandboxUnavailableError

# (setting, the value that prevents user namespaces, what to do)
_SETTINGS = (
    ("kernel/unprivileged_userns_clone", "0", "allow it with: sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "allow some with: sysctl -w user.max_user_namespaces=10000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns", "1",
        "AppArmor must allow it to bubblewrap (Ubuntu 24.04 and later): add a profile /etc/apparmor.d/bwrap with "
        "`userns,` as Ubuntu describes it, or run sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)  # fmt: skip
_NAMESPACE = re.compile("namespace|uid map|gid map|loopback|RTM_NEWADDR|pivot_root|setgroups", re.IGNORECASE)


def explain(message: str, settings: Path = Path("/proc/sys")) -> SandboxError:
    """The error for what bubblewrap, or what starts it, said before any program ran."""
    said = message.splitlines()[-1] if message else "it said nothing"
    if "Unknown option" in message:
        return SandboxUnavailableError(f"bubblewrap is too old; version 0.8 or later is needed ({said})")
    if "proc" in message and "mount" in message.lower() and "not permitted" in message:
        return SandboxUnavailableError(
            f"this container hides parts of /proc, so bubblewrap may not mount one ({said}); start the container with "
            "--security-opt systempaths=unconfined"
        )
    if _NAMESPACE.search(message) and not message.startswith("mount:"):
        for name, value, advice in _SETTINGS:
            try:
                found = (settings / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if found == value:
                return SandboxUnavailableError(f"bubblewrap may not make a user namespace ({said}); {advice}")
        return SandboxUnavailableError(
            f"bubblewrap may not make a namespace ({said}); in a container, allow it: with Docker by --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined, or a seccomp profile that allows clone, unshare, "
            "mount and pivot_root"
        )
    return SandboxError("failure", f"the sandbox could not be set up: {said}")
