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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            raise busy(os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown") from e
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


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
