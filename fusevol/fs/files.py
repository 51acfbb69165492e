"""Open files and directories of one mount, by number."""

from __future__ import annotations

import errno
import itertools
import os
from typing import Generic, TypeVar

from fusevol.fs.memory import Memory
from fusevol.fs.node import Node


class OpenFile:
    """A regular file that is open with *flags* of open(2)."""

    __slots__ = ("fd", "flags", "node", "where")

    def __init__(self, node: Node, fd: int, flags: int) -> None:
        self.node = node
        self.fd = fd
        self.flags = flags
        self.where = -1
        """Its record in the session memory, if there is one."""

    @property
    def writable(self) -> bool:
        """Whether it may be written to."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class OpenDirectory:
    """A directory that is open."""

    __slots__ = ("fd", "flags", "node", "where")

    def __init__(self, node: Node, fd: int) -> None:
        self.node = node
        self.fd = fd
        self.flags = os.O_DIRECTORY
        self.where = -1
        """Its record in the session memory, if there is one."""


T = TypeVar("T", OpenFile, OpenDirectory)


class Numbers:
    """File handles, of which none is ever given twice in a connection's life. Thread-safe, as the counter is."""

    def __init__(self) -> None:
        self._counter = itertools.count(1)

    def __next__(self) -> int:
        return next(self._counter)

    def begin_after(self, highest: int) -> None:
        """Handles up to *highest* were given already."""
        self._counter = itertools.count(highest + 1)


class Handles(Generic[T]):
    """Numbers for open things. Thread-safe, since each method is one operation on a dict."""

    def __init__(self, numbers: Numbers, memory: Memory | None) -> None:
        self._open: dict[int, T] = {}
        self._numbers = numbers
        self._memory = memory

    def add(self, thing: T) -> int:
        """A number for *thing*. Raises ``OSError`` when too much is open."""
        number = next(self._numbers)
        if self._memory is not None:
            thing.where = self._memory.add_file(number, thing.node.number, thing.flags)
        self._open[number] = thing
        return number

    def restore(self, number: int, where: int, thing: T) -> None:
        """*thing* has had *number* and the record *where* since an earlier server."""
        thing.where = where
        self._open[number] = thing

    def get(self, number: int) -> T:
        """What has *number*. Raises ``OSError(EBADF)``."""
        try:
            return self._open[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def pop(self, number: int) -> T:
        """What had *number*. Raises ``OSError(EBADF)``."""
        try:
            thing = self._open.pop(number)
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        if self._memory is not None:
            self._memory.drop_file(thing.where)
        return thing

    def values(self) -> list[T]:
        """All that is open."""
        return list(self._open.values())

    def __len__(self) -> int:
        return len(self._open)
