"""Makes caches cold in one mount, without a drop on the whole machine, and waits for what that sets off.

*Cold names*: a remount has the kernel forget the dentries of a filesystem (``shrink_dcache_sb``), and with them FUSE's
inodes, as if it had just been mounted; the backing filesystem keeps its own inodes. *Cold pages* are in the page cache
neither of the mount nor of the backing file; those of the image behind the loop device stay, so that what is measured
is the layers and not the disk.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_MS_REMOUNT: Final = 32
_KEPT: Final = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
"""Flags of a mount that a remount would clear; statvfs(3) and mount(2) have the same bits for them."""
_QUIET_NS: Final = 200_000
_LOOK_S: Final = 0.005
_PATIENCE_S: Final = 5.0


def forget_names(mountpoint: Path) -> None:
    """Have the kernel forget the names of the filesystem mounted at *mountpoint*, except those that are in use."""
    flags = _MS_REMOUNT | os.statvfs(mountpoint).f_flag & _KEPT
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(mountpoint), None, flags, None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(mountpoint))


def forget_all_names() -> None:
    """The same for the whole machine: where the bare directory is on a filesystem that is not ours to remount."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2\n", encoding="ascii")


def forget_pages(paths: Iterable[Path]) -> None:
    """Drop the pages of a file, by each of the *paths* that lead to it, the mount's before the backing directory's."""
    for path in paths:
        fd = os.open(path, os.O_RDWR)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def flush(directory: Path) -> None:
    """Write what is dirty in *directory*'s filesystem, so that the next subject does not pay for it (syncfs(2))."""
    subprocess.run(["sync", "-f", str(directory)], check=True)


def settle(pid: int | None) -> None:
    """Wait until process *pid* rests: forgotten names are told to a FUSE server afterwards, in many requests."""
    if pid is None:
        return
    deadline = time.monotonic() + _PATIENCE_S
    before = _cpu_ns(pid)
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now = _cpu_ns(pid)
        if now - before < _QUIET_NS:
            return
        before = now


def _cpu_ns(pid: int) -> int:
    """Nanoseconds that all living threads of *pid* have run (first number of schedstat)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except (FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            continue
    return total
