"""What a backing filesystem tells of itself and of a file's blocks (FIEMAP: Documentation/filesystems/fiemap.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_FIEMAP: Final = 0xC020660B
_FIEMAP_LAST: Final = 1
_EXTENTS: Final = 17
"""With more, the buffer is longer than 1024 bytes, and fcntl.ioctl keeps the interpreter's lock: a disk that hangs
would then stop every thread of this process, also those that tell of it."""


def kind(fd: int) -> str:
    """The type of the filesystem of *fd* as in mountinfo (proc(5)); empty if it is not found there (btrfs)."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with Path("/proc/self/mountinfo").open("rb") as lines:
        for line in lines:
            fields = line.decode(errors="replace").split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return ""


def holes(fd: int, start: int, end: int, block: int) -> list[tuple[int, int]]:
    """The parts of *start* to *end*, whole blocks, that have no blocks: by FIEMAP, or SEEK_DATA where there is none."""
    try:
        return unmapped(fd, start, end)
    except OSError:
        pass
    found: list[tuple[int, int]] = []
    while start < end:
        # the end of the file is reported as a hole, even within a block
        hole = _seek(fd, start, os.SEEK_HOLE, end)
        hole += -hole % block
        if hole >= end:
            break
        data = _seek(fd, hole, os.SEEK_DATA, end)
        data -= data % block
        if data > hole:
            found.append((hole, data))
        start = max(data, hole + block)
    return found


def unmapped(fd: int, at: int, end: int, extents: int = _EXTENTS) -> list[tuple[int, int]]:
    """The parts of *at* to *end* that have no blocks, by FIEMAP, *extents* at a time. Raises ``OSError``."""
    found: list[tuple[int, int]] = []
    while at < end:
        buffer = bytearray(32 + 56 * extents)
        struct.pack_into("=QQIIII", buffer, 0, at, end - at, 0, 0, extents, 0)
        fcntl.ioctl(fd, _FIEMAP, buffer)
        count: int = struct.unpack_from("=I", buffer, 20)[0]
        last = count < extents
        for i in range(count):
            logical, _physical, length = struct.unpack_from("=QQQ", buffer, 32 + 56 * i)
            (flags,) = struct.unpack_from("=I", buffer, 32 + 56 * i + 40)
            if logical > at:
                found.append((at, min(logical, end)))
            at = max(at, logical + length)
            last = last or bool(flags & _FIEMAP_LAST)
        if last:
            break
    if at < end:
        found.append((at, end))
    return found


def pieces(fd: int) -> int:
    """How many extents a file has; 0 where nobody can say."""
    buffer = bytearray(32)
    struct.pack_into("=QQIIII", buffer, 0, 0, (1 << 64) - 1, 0, 0, 0, 0)
    try:
        fcntl.ioctl(fd, _FIEMAP, buffer)
    except OSError:
        return 0
    count: int = struct.unpack_from("=I", buffer, 20)[0]
    return count


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    try:
        return min(os.lseek(fd, offset, whence), end)
    except OSError as e:
        if e.errno != errno.ENXIO:
            raise
        return end if whence == os.SEEK_DATA else offset
