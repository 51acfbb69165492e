"""What plain file calls do not promise: files written whole and durably, locks, opening without crossing.

``open_directory`` asks the kernel (openat2(2), Linux 5.6) not to follow symbolic links and not to enter a mount: device
numbers alone do not show a bind mount of the same filesystem. Older kernels get O_NOFOLLOW and the caller's comparison
of device numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_OPENAT2: Final = 437  # one number on all architectures but alpha
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HOW: Final = struct.pack("=QQQ", _DIRECTORY, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def open_directory(name: str | bytes, parent: int) -> int:
    """A descriptor of the directory *name* in the directory *parent*.

    Raises ``OSError``: EXDEV for a mount point, ENOTDIR or ELOOP for a symbolic link.
    """
    raw = os.fsencode(name)
    fd = int(
        _libc.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_int(parent), raw, ctypes.c_char_p(_HOW), ctypes.c_size_t(len(_HOW))
        )
    )
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code == errno.ENOSYS:
        return os.open(raw, _DIRECTORY, dir_fd=parent)
    raise OSError(code, os.strerror(code), os.fsdecode(raw))


def sync_directory(path: Path) -> None:
    """Make the names in the directory *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: Path) -> None:
    """Make durable all that was written to the filesystem of *path* (syncfs(2)). Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(ctypes.c_int(fd)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], Exception]) -> Iterator[None]:
    """Be the only process that holds the lock file *path*, which names the holder's pid.

    Raises what *busy* makes of the holder's pid (or "unknown") if there is one. It is a POSIX lock (lockf), not flock:
    an flock belongs to the open file, which a forked child shares, so a child that has not closed it yet could keep
    the next process out. A process must not open *path* otherwise while it holds the lock: closing that releases it.
    """
    descriptor = _take(path, busy)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(path: Path, busy: Callable[[str], Exception]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        taken = False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = is_still(path, descriptor)
        except OSError as e:
            if e.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            if not left_by_the_dying(path, descriptor):
                raise busy(os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown") from e
        finally:
            if not taken:
                os.close(descriptor)
        if taken:
            return descriptor


def is_still(path: Path, descriptor: int) -> bool:
    """Whether *path* is the file that is open as *descriptor*: a lock on another one is worth nothing."""
    ours = os.fstat(descriptor)
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def left_by_the_dying(path: Path, descriptor: int) -> bool:
    """Take the lock file *path*, open as *descriptor*, out of the way if its holder is dead but cannot go.

    A killed process with a thread in a system call that hangs (a disk, a network filesystem) stays, with all its locks,
    for as long as that takes. It does nothing any more: such a thread dies when its call returns. Returns whether the
    lock may be tried again, on a new file.
    """
    holder = _holder(descriptor)
    if holder is None or not is_dying(holder):
        return False
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # for a moment: or somebody else's new file could be taken away
        if is_still(path, descriptor):
            path.unlink()
    finally:
        os.close(directory)
    return True


def _holder(descriptor: int) -> int | None:
    """Who holds the lock on an open file, by the kernel's list (proc_locks(5)); ``None`` if that does not tell."""
    st = os.fstat(descriptor)
    wanted = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] != "->" and fields[5] == wanted:
            return int(fields[4])
    return None


def is_dying(pid: int) -> bool:
    """Whether a process has ended but for what hangs in it (or but for its parent's taking note)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return False


def temporary_name(path: Path) -> Path:
    """Where :func:`write_whole` builds the file; what is left there by a crash is overwritten by the next writer."""
    return path.with_name(f".{path.name}.tmp")


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write *path* so that a reader, and the disk after a crash, has the old file or all of the new one.

    One writer per path at a time. Raises ``OSError``; the old file is untouched then.
    """
    temporary = temporary_name(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    finally:
        sync_directory(path.parent)
