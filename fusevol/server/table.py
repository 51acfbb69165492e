"""Records of one size in memory that outlives the process.

A record is in use if its first word, its key, is not 0. That word is written last and cleared first, as one 8-byte
store, so that a kill at any moment leaves a record that is whole or not there.
"""

from __future__ import annotations

import errno
import mmap
import os
from array import array
from struct import Struct
from typing import Any


class Table:
    """Records at one place. Callers hold a lock where two could take or free at once."""

    def __init__(self, memory: mmap.mmap, start: int, layout: Struct, capacity: int, used_at: int) -> None:
        """At *used_at*, a byte, is a word: how many records were ever in use."""
        self._memory = memory
        self.words = memoryview(memory).cast("Q")
        """All of the memory, by words."""
        self._start = start
        self._layout = layout
        self._pack_into = layout.pack_into
        self._size = 8 + layout.size + -layout.size % 8
        self._capacity = capacity
        self._used = used_at >> 3
        self._next: int = self.words[self._used]
        self._free: list[int] = []
        """Where there are records that are free."""

    @staticmethod
    def room(layout: Struct, capacity: int) -> int:
        """Bytes that such a table takes."""
        return (8 + layout.size + -layout.size % 8) * capacity

    def add(self, key: int, *fields: object) -> int:
        """A new record; returns where it is. Raises ``OSError(ENFILE)``."""
        words = self.words
        if self._free:
            where = self._free.pop()
            self._pack_into(self._memory, where + 8, *fields)
            words[where >> 3] = key
            return where
        if self._next >= self._capacity:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        where = self._start + self._next * self._size
        self._pack_into(self._memory, where + 8, *fields)
        words[where >> 3] = key
        self._next += 1
        words[self._used] = self._next
        return where

    def drop(self, where: int) -> None:
        """The record at *where* is free."""
        self.words[where >> 3] = 0
        self._free.append(where)

    def places(self) -> dict[int, int]:
        """Where the record of each key is. Those that are free are used again from here on."""
        keys = self.column(0)
        end = self._start + self._next * self._size
        found = dict(zip(keys, range(self._start, end, self._size), strict=True))
        free = found.pop(0, None) is not None
        self._free = [self._start + index * self._size for index, key in enumerate(keys) if not key] if free else []
        return found

    def others(self, found: dict[int, int]) -> list[int]:
        """Where the records are that *found*, which :meth:`places` returned, lacks, since others have the same keys."""
        if len(found) + len(self._free) == self._next:
            return []
        keys = self.column(0)
        places = range(self._start, self._start + self._next * self._size, self._size)
        return [where for key, where in zip(keys, places, strict=True) if key and found[key] != where]

    def key(self, where: int) -> int:
        """The key of the record at *where*; 0 if it is free."""
        return self.words[where >> 3]

    def fields(self, where: int) -> tuple[Any, ...]:
        """The record at *where*."""
        return self._layout.unpack_from(self._memory, where + 8)

    def column(self, word: int) -> list[int]:
        """One word of each record that was ever in use, of which the key is word 0: 30 ns each, a tenth of a loop."""
        return self.words[self._column(word)].tolist()

    def fill(self, word: int, value: int) -> None:
        """Store *value* in that word of all records that were ever in use."""
        self.words[self._column(word)] = array("Q", [value & 0xFFFFFFFFFFFFFFFF]) * self._next

    def _column(self, word: int) -> slice:
        start, step = (self._start >> 3) + word, self._size >> 3
        return slice(start, start + self._next * step, step)

    def holds(self, where: int) -> bool:
        """Whether a record that was ever in use could be at *where*."""
        index, rest = divmod(where - self._start, self._size)
        return not rest and 0 <= index < self._next
