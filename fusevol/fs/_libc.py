"""System calls that Python's ``os`` does not have, or not for a descriptor opened with O_PATH.

All raise ``OSError`` with the errno of the call. Constants are those of ``linux/fcntl.h`` and ``linux/falloc.h``.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from fusevol.fs.types import NOW

_libc: Final = ctypes.CDLL(None, use_errno=True)

BY_FD: Final = b"/proc/self/fd/%d"
"""A path to the inode behind a descriptor, which may be one opened with O_PATH (proc(5))."""
AT_EMPTY_PATH: Final = 0x1000
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
_MAX_HANDLE: Final = 128
_HANDLE_HEADER: Final = 8

_int_size: Final = ctypes.sizeof(ctypes.c_int)
_size_t, _int, _long = ctypes.c_size_t, ctypes.c_int, ctypes.c_int64
_char_p, _void_p = ctypes.c_char_p, ctypes.c_void_p


def _function(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = _int
    return function


_name_to_handle_at = _function("name_to_handle_at", _int, _char_p, _void_p, _void_p, _int)
_open_by_handle_at = _function("open_by_handle_at", _int, _void_p, _int)
_fchownat = _function("fchownat", _int, _char_p, ctypes.c_uint, ctypes.c_uint, _int)
_utimensat = _function("utimensat", _int, _char_p, _void_p, _int)
_linkat = _function("linkat", _int, _char_p, _int, _char_p, _int)
_renameat2 = _function("renameat2", _int, _char_p, _int, _char_p, ctypes.c_uint)
_fallocate = _function("fallocate", _int, _int, _long, _long)
_syncfs = _function("syncfs", _int)
_statx = _function("statx", _int, _char_p, _int, ctypes.c_uint, _void_p)
_getdents64 = _libc.getdents64
_getdents64.argtypes = (_int, _void_p, _size_t)
_getdents64.restype = ctypes.c_ssize_t


class _Times(ctypes.Structure):
    _fields_ = (("atime", _long), ("atime_ns", _long), ("mtime", _long), ("mtime_ns", _long))


def _fail() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class _Room:
    """Where name_to_handle_at(2) writes: making that anew took as long as the call, which every new node needs."""

    def __init__(self) -> None:
        self._memory = (ctypes.c_uint32 * ((_HANDLE_HEADER + _MAX_HANDLE + _int_size) // 4))()
        self._handle = ctypes.addressof(self._memory)
        self._mount_id = self._handle + _HANDLE_HEADER + _MAX_HANDLE
        self._bytes = memoryview(self._memory).cast("B")
        self._size = self._bytes[:4].cast("I")

    def file_handle(self, fd: int) -> bytes:
        self._size[0] = _MAX_HANDLE
        if _name_to_handle_at(fd, b"", self._handle, self._mount_id, AT_EMPTY_PATH) != 0:
            raise _fail()
        return self._bytes[: _HANDLE_HEADER + self._size[0]].tobytes()


_rooms: Final[list[_Room]] = []
"""Those that no thread is using. (An operation on a list is done by one thread at a time.)"""


def file_handle(fd: int) -> bytes:
    """The ``struct file_handle`` of the inode behind *fd* (name_to_handle_at(2)), to be opened again with."""
    try:
        room = _rooms.pop()
    except IndexError:
        room = _Room()
    try:
        return room.file_handle(fd)
    finally:
        _rooms.append(room)


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open the inode of *handle* on the filesystem of *mount_fd* (open_by_handle_at(2))."""
    fd: int = _open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        raise _fail()
    return fd


def chown(fd: int, uid: int, gid: int) -> None:
    """Change owner and group of the inode behind *fd*; -1 leaves one alone."""
    if _fchownat(fd, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, AT_EMPTY_PATH) != 0:
        raise _fail()


def _timespec(ns: int | None) -> tuple[int, int]:
    if ns is None:
        return 0, UTIME_OMIT
    return (0, UTIME_NOW) if ns == NOW else divmod(ns, 1_000_000_000)


def utime(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set times in nanoseconds since the epoch; ``None`` leaves one alone, NOW is now. Works on symbolic links."""
    times = _Times(*_timespec(atime_ns), *_timespec(mtime_ns))
    if _utimensat(fd, b"", ctypes.byref(times), AT_EMPTY_PATH) != 0:
        raise _fail()


def link(fd: int, newdir: int, newname: bytes) -> None:
    """Give the inode behind *fd* another name."""
    if _linkat(fd, b"", newdir, newname, AT_EMPTY_PATH) == 0:
        return
    # AT_EMPTY_PATH takes CAP_DAC_READ_SEARCH; anybody may go through /proc
    try:
        os.link(BY_FD % fd, newname, dst_dir_fd=newdir, follow_symlinks=True)
    except OSError as e:
        raise OSError(e.errno, e.strerror) from None


def rename(olddir: int, oldname: bytes, newdir: int, newname: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _renameat2(olddir, oldname, newdir, newname, flags) != 0:
        raise _fail()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _fallocate(fd, mode, offset, length) != 0:
        raise _fail()


def syncfs(fd: int) -> None:
    """Write the filesystem that *fd* is on to its disk."""
    if _syncfs(fd) != 0:
        raise _fail()


def statx(fd: int, mask: int) -> bytes:
    """The 256 bytes of ``struct statx`` (statx(2)) of the inode behind *fd*."""
    buffer = ctypes.create_string_buffer(256)
    if _statx(fd, b"", AT_EMPTY_PATH, mask, buffer) != 0:
        raise _fail()
    return buffer.raw


def getdents(fd: int, offset: int, size: int) -> bytes:
    """The records of the open directory *fd* from *offset* on, as many as fit in *size* bytes (getdents64(2))."""
    os.lseek(fd, offset, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(size)
    found: int = _getdents64(fd, buffer, size)
    if found < 0:
        raise _fail()
    return ctypes.string_at(buffer, found)
