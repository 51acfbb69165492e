"""The ledger's part of the session memory: its counters, and a journal of the operations that are under way.

An operation changes the backing store, then the counters and what has been counted of one to four inodes (a word in the
record of each node); a kill may come between any two of these. So the operation has an *entry* in the journal:

* *in flight*: the entry names the nodes that may change, and an inode that is made by its directory and name. If the
  server is killed now, the next one looks at those inodes, and counts what they have beyond what was counted
  (``fusevol.fs.recovery``). Nothing else in the volume needs to be looked at, however large it is.
* *committing*: the entry holds the new counters and charges, which are being stored. If the server is killed now, the
  next one stores them again. The counters' lock is held meanwhile, so that there is one such entry at the most.
* *free*.

Each word is 8 bytes and is stored by one instruction (an item of a memoryview), and a kill ends every thread between
two of its own stores, after all that came before in its program. So the memory is as the words were stored up to there,
on any processor: who reads it began after the death.

Weighed against it: marks in the nodes' records alone (an inode that is made has no record yet, and counter and record
are two words), and a total that is only ever summed up (a node that is forgotten takes its share of it along).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Sequence
from struct import Struct
from typing import Final

from fusevol.fs.memory import GONE, UNKNOWN, Unfinished
from fusevol.server.table import Table
from fusevol.usage import Usage

log = logging.getLogger(__name__)

ENTRIES: Final = 2048
"""More than there can be threads that carry requests out."""
ENTRY_SIZE: Final = 384
CHARGED: Final = 7
MOVING: Final = 6
"""Words in the record of a node."""

# words of the counters
_VALID, _BYTES, _INODES, _LIMIT_BYTES, _LIMIT_INODES, _HIGH = range(6)
_COUNTERS: Final = Struct("=6q")
COUNTERS_SIZE: Final = _COUNTERS.size
_NO_LIMIT: Final = -1
_ALL: Final = (1 << 64) - 1

# words of an entry
_STATE, _NEW_BYTES, _NEW_INODES, _UNNAMED, _PARENT, _BEFORE, _LENGTH, _PARTS = range(8)
_NAME: Final = 16
"""Where the name begins, in 8-byte words: behind four parts of two words, place and new charge."""
_PARTS_MOST: Final = 4
_NAME_MOST: Final = 255
_IN_FLIGHT: Final = 16
"""State: this, plus the number of parts."""
_COMMITTING: Final = 32


class Entry:
    """One entry. Implements ``fusevol.fs.memory.Entry``."""

    __slots__ = ("_bytes", "_counters", "_free", "_words", "at", "parts")

    def __init__(self, journal: Journal, at: int) -> None:
        self._words, self._bytes = journal.words, journal.bytes
        self._counters, self._free = journal.counters, journal.free
        self.at = at
        self.parts = 0

    def begin(self, nodes: Sequence[int]) -> None:
        """The nodes at these places are in flight."""
        words, at = self._words, self.at
        place = at + _PARTS
        for where in nodes:
            words[place] = where
            place += 2
        words[at + _PARENT] = 0
        words[at + _UNNAMED] = 0
        self.parts = len(nodes)
        words[at] = _IN_FLIGHT + self.parts

    def makes(self, parent: int, name: bytes, inode: int) -> None:
        """See ``fusevol.fs.memory.Entry``."""
        words, at = self._words, self.at
        words[at + _BEFORE] = inode - (1 << 64) if inode >> 63 else inode
        words[at + _LENGTH] = len(name)
        start = (at + _NAME) * 8
        self._bytes[start : start + len(name)] = name
        words[at + _PARENT] = parent

    def unnames(self, where: int) -> None:
        """See ``fusevol.fs.memory.Entry``."""
        self._words[self.at + _UNNAMED] = where

    def charge(self, place: int, charged: int) -> None:
        """See ``fusevol.fs.memory.Entry``."""
        self._words[self.at + _PARTS + 1 + 2 * place] = charged

    def add(self, where: int, charged: int) -> None:
        """See ``fusevol.fs.memory.Entry``."""
        place = self.at + _PARTS + 2 * self.parts
        self._words[place] = where
        self._words[place + 1] = charged
        self.parts += 1

    def commit(self, used_bytes: int, used_inodes: int) -> None:
        """See ``fusevol.usage.Entry``."""
        words, at = self._words, self.at
        words[at + _NEW_BYTES] = used_bytes
        words[at + _NEW_INODES] = used_inodes
        words[at] = _COMMITTING + self.parts
        self.store()
        self._free(self)

    def cancel(self) -> None:
        """See ``fusevol.fs.memory.Entry``."""
        self._words[self.at] = 0
        self._free(self)

    def store(self) -> None:
        """Store what the entry, which is committing, holds, and free it. Twice is as good as once."""
        words, at, counters = self._words, self.at, self._counters
        words[counters + _BYTES] = words[at + _NEW_BYTES]
        words[counters + _INODES] = words[at + _NEW_INODES]
        place = at + _PARTS
        for _ in range(self.parts):
            charged = words[place + 1]
            if charged == GONE:
                words[words[place] >> 3] = 0
            else:
                words[(words[place] >> 3) + CHARGED] = charged
            place += 2
        words[at] = 0


def glance(counters: bytes) -> Usage | None:
    """What *counters*, a copy of that part of a memory, count; ``None`` where nobody counts there, or nobody yet.

    Each word is of its own moment, and whoever counts may be at work meanwhile.
    """
    valid, used_bytes, used_inodes, *limits, _high = _COUNTERS.unpack(counters)
    if not valid or used_bytes < 0 or used_inodes < 0:
        return None
    limit_bytes, limit_inodes = (None if limit == _NO_LIMIT else limit for limit in limits)
    return Usage(used_bytes, used_inodes, limit_bytes, limit_inodes)


class Journal:
    """See above. Implements ``fusevol.fs.memory.Journal`` and the ledger's ``Counters``. Thread-safe."""

    def __init__(self, memory: memoryview, counters: int, entries: int, nodes: Table) -> None:
        """*memory* has the counters and the entries at these bytes; *nodes* are the records of the nodes."""
        self.words = memory.cast("q")
        self.bytes = memory
        self.counters = counters >> 3
        self._entries = entries >> 3
        self._nodes = nodes
        self._free: list[Entry] = []
        self.free = self._free.append
        self._high = self.words[self.counters + _HIGH]
        self._growing = threading.Lock()
        self._unfinished: list[Entry] = []

    # -- the ledger's -------------------------------------------------------------------------------------------------

    def load(self) -> Usage | None:
        """See ``fusevol.quota.ledger.Counters``. ``None`` also where what is there makes no sense."""
        words, counters = self.words, self.counters
        if not self.valid:
            return None
        in_flight: list[Entry] = []
        committing: list[Entry] = []
        for number in reversed(range(min(self._high, ENTRIES))):
            at = self._at(number)
            state = words[at]
            entry = Entry(self, at)
            entry.parts = state % 16
            if not state:
                self._free.append(entry)
            elif not self._plausible(at):
                log.warning("the journal of operations cannot be understood: the volume is counted anew")
                return None
            else:
                (in_flight if state < _COMMITTING else committing).append(entry)
        for entry in committing:
            entry.store()
            self._free.append(entry)
        self._unfinished = in_flight
        nbytes, inodes, limit_bytes, limit_inodes = words[counters + _BYTES : counters + _HIGH].tolist()
        if nbytes < 0 or inodes < 1 or self._high > ENTRIES:
            log.warning("the counters of an earlier server are wrong: the volume is counted anew")
            return None
        return Usage(
            nbytes,
            inodes,
            None if limit_bytes == _NO_LIMIT else limit_bytes,
            None if limit_inodes == _NO_LIMIT else limit_inodes,
        )

    def _plausible(self, at: int) -> bool:
        words = self.words
        kind, parts = divmod(words[at], 16)
        return (
            kind in {_IN_FLIGHT // 16, _COMMITTING // 16}
            and parts <= _PARTS_MOST
            and all(self._nodes.holds(words[at + _PARTS + 2 * i]) for i in range(parts))
            and all(not where or self._nodes.holds(where) for where in (words[at + _PARENT], words[at + _UNNAMED]))
            and (not words[at + _PARENT] or 0 < words[at + _LENGTH] <= _NAME_MOST)
        )

    @property
    def valid(self) -> bool:
        """Whether there are counters."""
        return bool(self.words[self.counters + _VALID])

    def distrust(self) -> None:
        """What is here cannot be made right: :meth:`load` finds nothing until the next :meth:`start`."""
        self.words[self.counters + _VALID] = 0

    def start(self, counted: Usage) -> None:
        """See ``fusevol.quota.ledger.Counters``."""
        words, counters = self.words, self.counters
        self.distrust()
        self._free.clear()
        self._unfinished = []
        self._high = words[counters + _HIGH] = 0
        self._nodes.fill(CHARGED, UNKNOWN)
        self._nodes.fill(MOVING, 0)
        words[counters + _BYTES] = counted.used_bytes
        words[counters + _INODES] = counted.used_inodes
        self.set_limits(counted.limit_bytes, counted.limit_inodes)
        words[counters + _VALID] = 1

    def set_limits(self, limit_bytes: int | None, limit_inodes: int | None) -> None:
        """See ``fusevol.quota.ledger.Counters``."""
        self.words[self.counters + _LIMIT_BYTES] = _NO_LIMIT if limit_bytes is None else limit_bytes
        self.words[self.counters + _LIMIT_INODES] = _NO_LIMIT if limit_inodes is None else limit_inodes

    # -- the filesystem's ---------------------------------------------------------------------------------------------

    def begin(self, nodes: Sequence[int]) -> Entry:
        """See ``fusevol.fs.memory.Journal``."""
        try:
            entry = self._free.pop()
        except IndexError:
            entry = self._grow()
        entry.begin(nodes)
        return entry

    def _grow(self) -> Entry:
        """An entry that was never used: few are, so that their memory is not there."""
        with self._growing:
            if self._high >= ENTRIES:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            at = self._at(self._high)
            self.words[at] = 0  # what a start left in it
            self._high += 1
            self.words[self.counters + _HIGH] = self._high
        return Entry(self, at)

    def know(self, where: int, charged: int) -> None:
        """See ``fusevol.fs.memory.Journal``."""
        self.words[(where >> 3) + CHARGED] = charged

    def moves(self, where: int, value: bool) -> None:
        """See ``fusevol.fs.memory.Journal``."""
        self.words[(where >> 3) + MOVING] = value

    def unfinished(self) -> list[Unfinished]:
        """See ``fusevol.fs.memory.Journal``."""
        found, self._unfinished = self._unfinished, []
        return [self._describe(entry) for entry in found]

    def _describe(self, entry: Entry) -> Unfinished:
        words, at = self.words, entry.at
        nodes = [self._nodes.key(words[at + _PARTS + 2 * i]) for i in range(entry.parts)]
        parent, unnamed = words[at + _PARENT], words[at + _UNNAMED]
        unnamed = self._nodes.key(unnamed) if unnamed else 0
        if not parent:
            return Unfinished(entry, nodes, unnamed, 0, b"", 0)
        start = (at + _NAME) * 8
        name = bytes(self.bytes[start : start + words[at + _LENGTH]])
        return Unfinished(entry, nodes, unnamed, self._nodes.key(parent), name, words[at + _BEFORE] & _ALL)

    def _at(self, number: int) -> int:
        return self._entries + number * (ENTRY_SIZE >> 3)
