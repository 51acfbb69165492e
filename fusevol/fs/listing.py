"""What getdents64(2) returns: a block of records, each a ``struct linux_dirent64`` (getdents(2))."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from fusevol.fs.types import DirEntry

RECORD: Final = Struct("=QqHB")  # inode number, offset after it, length of the record, type; then the name and zeros


def entries(block: bytes) -> Iterator[DirEntry]:
    """The names in *block*."""
    at, name_at = 0, RECORD.size
    while at < len(block):
        ino, after, length, kind = RECORD.unpack_from(block, at)
        yield DirEntry(block[at + name_at : block.index(0, at + name_at)], ino, kind, after)
        at += length
