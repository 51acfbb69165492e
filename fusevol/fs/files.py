"""Open files and directories of one mount, by number."""

from __future__ import annotations

import errno
import itertools
import os
from typing import Final, Generic, TypeVar

from fusevol.fs.nodes import Node


class OpenFile:
    """A regular file that is open."""

    __slots__ = ("fd", "node", "writable")

    def __init__(self, node: Node, fd: int, *, writable: bool) -> None:
        self.node = node
        self.fd = fd
        self.writable = writable


class OpenDirectory:
    """A directory that is open, and its names as they were when it was last read from the start."""

    __slots__ = ("entries", "fd", "node")

    def __init__(self, node: Node, fd: int) -> None:
        self.node = node
        self.fd = fd
        self.entries: list[tuple[bytes, int, int]] | None = None


T = TypeVar("T", OpenFile, OpenDirectory)
_numbers: Final = itertools.count(1)


class Handles(Generic[T]):
    """Numbers for open things. Thread-safe, since each method is one operation on a dict."""

    def __init__(self) -> None:
        self._open: dict[int, T] = {}

    def add(self, thing: T) -> int:
        """A number for *thing*."""
        number = next(_numbers)
        self._open[number] = thing
        return number

    def get(self, number: int) -> T:
        """What has *number*. Raises ``OSError(EBADF)``."""
        try:
            return self._open[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def pop(self, number: int) -> T:
        """What had *number*. Raises ``OSError(EBADF)``."""
        try:
            return self._open.pop(number)
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def values(self) -> list[T]:
        """All that is open."""
        return list(self._open.values())

    def __len__(self) -> int:
        return len(self._open)
