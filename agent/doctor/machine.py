"""What can be told of this machine by looking: kernel, device, rights, limits, programs."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.doctor.findings import Finding, lacking, ok
from fusevol.server.privileges import KEPT
from fusevol.transport.kernel import parameter
from fusevol.transport.kernel.ring import Ring

AREA: Final = "machine"
_DEVICE: Final = Path("/dev/fuse")
_FUSE_CONF: Final = Path("/etc/fuse.conf")
_SYSCTLS: Final = Path("/proc/sys")
_DESCRIPTORS: Final = 20_000
"""Two for each of the inodes that a volume keeps at hand, and some."""
_MOUNTS: Final = 20_000
_PROGRAMS: Final = (
    ("fusermount3", ("fusermount3", "--version"), "mounts by users who are not root", "fuse3"),
    ("podman", ("podman", "--version"), "`fusevol run`", "podman"),
    ("mkfs.xfs", ("mkfs.xfs", "-V"), "pools on a device or in an image file", "xfsprogs"),
    ("mkfs.ext4", ("mkfs.ext4", "-V"), "pools on a device or in an image file", "e2fsprogs"),
    ("mkfs.btrfs", ("mkfs.btrfs", "--version"), "pools on a device or in an image file", "btrfs-progs"),
)
"""Name, a command that tells the version, what is given up without it, and Debian's package."""


def look() -> Iterator[Finding]:
    """The findings on the machine itself."""
    yield ok(AREA, "Linux", platform.release())
    yield _device()
    yield _capabilities()
    yield _descriptors()
    yield _locked_memory()
    yield _mounts()
    yield _others()


def _device() -> Finding:
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        remedy = "modprobe fuse; a container is given it by --device /dev/fuse."
        return lacking(AREA, str(_DEVICE), e.strerror or "it cannot be opened", remedy, needed=True)
    return ok(AREA, str(_DEVICE), "can be opened")


def _capabilities() -> Finding:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    without = [f"CAP_{name}" for name, bit in KEPT.items() if not held >> bit & 1]
    if not without:
        return ok(AREA, "capabilities", "all that a volume server keeps")
    return lacking(
        AREA,
        "capabilities",
        f"not held: {', '.join(without)}",
        "Run as root; give a container these capabilities. Without them volumes belong to one user.",
        needed=os.geteuid() == 0 and "CAP_SYS_ADMIN" in without,
    )


def _descriptors() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard} for each process"
    if hard == resource.RLIM_INFINITY or hard >= _DESCRIPTORS:
        return ok(AREA, "open files", found)
    remedy = f"Raise the hard limit to {_DESCRIPTORS} or more: LimitNOFILE= in the agent's unit, or ulimit -Hn."
    return lacking(AREA, "open files", f"{found}: volumes with many open files want more", remedy)


def _locked_memory() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB for each process"
    if soft == resource.RLIM_INFINITY or soft >= 1 << 16 or not parameter.PARAMETER.exists():
        return ok(AREA, "locked memory", found)
    return lacking(AREA, "locked memory", f"{found}: io_uring may be refused", "LimitMEMLOCK=8M in the agent's unit.")


def _mounts() -> Finding:
    most = _sysctl("fs/mount-max") or 0
    if most >= _MOUNTS:
        return ok(AREA, "mounts", f"at most {most} in a mount namespace")
    found = f"at most {most} in a mount namespace: each volume takes one, and one more for each target"
    return lacking(AREA, "mounts", found, f"sysctl fs.mount-max={5 * _MOUNTS}")


def _others() -> Finding:
    try:
        allowed = any(line.strip() == "user_allow_other" for line in _FUSE_CONF.read_text().splitlines())
    except OSError:
        allowed = False
    if allowed:
        return ok(AREA, "user_allow_other", f"set in {_FUSE_CONF}")
    found = "mounts of users who are not root cannot be used by other users"
    return lacking(AREA, "user_allow_other", found, f"Write the line user_allow_other into {_FUSE_CONF}.")


def _sysctl(name: str) -> int | None:
    try:
        return int((_SYSCTLS / name).read_text())
    except (OSError, ValueError):
        return None


def no_io_uring() -> str:
    """What to do so that requests can come over io_uring; empty if nothing stands in the way here."""
    if not parameter.PARAMETER.exists():
        return "Linux 6.14 with CONFIG_FUSE_IO_URING."
    if not parameter.enabled():
        return f"Configure ioUring: on, or echo Y > {parameter.PARAMETER} before volumes are mounted."
    if _sysctl("kernel/io_uring_disabled"):
        return "sysctl kernel.io_uring_disabled=0"
    try:
        Ring().close()
    except OSError:
        return "Allow the system calls io_uring_setup and io_uring_enter (a container's seccomp profile forbids them)."
    return ""


def programs() -> Iterator[Finding]:
    """The findings on programs that are called."""
    for name, command, purpose, package in _PROGRAMS:
        version = _version(command)
        if version:
            yield ok("programs", name, version)
        else:
            yield lacking("programs", name, f"without it no {purpose}", f"Install {package}.")


def _version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found.group() if found else ""
