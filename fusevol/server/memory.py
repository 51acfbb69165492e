"""The session memory: a memfd that outlives the volume server where somebody else holds it too, and what is in it.

Layout, version 2: a page with the header, then tables of fixed-size records (:mod:`fusevol.server.table`) and the
journal of the ledger (:mod:`fusevol.server.journal`). The file is sparse: what was never used takes no memory.

Inodes without a name are kept alive by descriptors in a :mod:`parking lot <fusevol.server.parking>`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import threading
from struct import Struct
from typing import Final, Self

from fusevol.errors import UnavailableError
from fusevol.fs.memory import FileRecord, NodeRecord
from fusevol.server.journal import COUNTERS_SIZE, ENTRIES, ENTRY_SIZE, Journal, glance
from fusevol.server.parking import ParkingLot
from fusevol.server.table import Table
from fusevol.usage import Usage

VERSION: Final = 2
"""The layout of new memories."""
READABLE: Final = frozenset({VERSION})
"""Layouts that this code can go on with. It writes to a memory in the layout that it found, never in a newer one:
should an upgrade fail, the old code goes on with the same memory."""
_MAGIC: Final = b"fusevol\0"
_HEADER: Final = Struct("=8sQQQQ")  # magic version minor flags max_write
_USED_AT: Final = 40
"""How many nodes, files and intents were ever in use: a word for each."""
_COUNTERS_AT: Final = 64
_HEADER_SIZE: Final = mmap.PAGESIZE
_NODES: Final = 4 << 20
_FILES: Final = 1 << 18
_INTENTS: Final = 1024
_HANDLE_MOST: Final = 48
_NODE: Final = Struct(f"=QQQQQQqQ{_HANDLE_MOST}s")
"""Generation, device, inode, lookups, unlinked, moving, charged, size of the handle, handle."""
_FILE: Final = Struct("=QQQQ")
"""Node, flags, backing id, request."""
_INTENT: Final = Struct("=QQ")
"""Two numbers."""
_GENERATION, _DEVICE, _INODE, _LOOKUPS, _UNLINKED, _MOVING = range(1, 7)
"""Words in the record of a node; its key is word 0."""
_BACKING: Final = 3
"""The word in the record of a file."""


def counted(fd: int) -> Usage | None:
    """What the ledger of a session memory counts, without asking who counts; ``None`` where that is not known."""
    data = os.pread(fd, _COUNTERS_AT + COUNTERS_SIZE, 0)
    if len(data) < _COUNTERS_AT + COUNTERS_SIZE or _layout(data) not in READABLE:
        return None
    return glance(data[_COUNTERS_AT:])


def _layout(header: bytes) -> int | None:
    """The version of a memory that begins with *header*, ``None`` if it is none."""
    return _HEADER.unpack_from(header)[1] if len(header) >= _HEADER.size and header[:8] == _MAGIC else None


def _generation(record: NodeRecord) -> int:
    return record.generation


class SessionMemory:
    """See above. Implements :class:`fusevol.fs.memory.Memory`."""

    def __init__(self, fd: int, lot: tuple[socket.socket, socket.socket]) -> None:
        self.fd = fd
        self.lot = lot
        files = _HEADER_SIZE + Table.room(_NODE, _NODES)
        intents = files + Table.room(_FILE, _FILES)
        entries = intents + Table.room(_INTENT, _INTENTS)
        size = entries + ENTRIES * ENTRY_SIZE
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        self._memory = mmap.mmap(fd, size)
        self._nodes = Table(self._memory, _HEADER_SIZE, _NODE, _NODES, _USED_AT)
        self._files = Table(self._memory, files, _FILE, _FILES, _USED_AT + 8)
        self._intents = Table(self._memory, intents, _INTENT, _INTENTS, _USED_AT + 16)
        self._words = self._nodes.words
        self._intended = self._intents.places()
        self.journal = Journal(memoryview(self._memory), _COUNTERS_AT, entries, self._nodes)
        self._lock = threading.Lock()
        self._opening = threading.local()
        self._opened: dict[int, FileRecord] = {}
        self._superseded: list[NodeRecord] = []
        self._parking = ParkingLot(lot)

    @classmethod
    def create(cls) -> Self:
        """An empty memory."""
        fd = os.memfd_create("fusevol-session", os.MFD_CLOEXEC)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        memory = cls(fd, ParkingLot.pair())
        memory.set_agreement(0, 0, 0)
        return memory

    @classmethod
    def adopt(cls, fd: int, lot: tuple[int, int]) -> Self:
        """The memory of an earlier server. Raises :class:`UnavailableError` if its layout is another one, or if that
        server lives."""
        cls.check(fd)
        try:
            # of the process, not of the descriptor, of which others hold copies; it ends when all threads have
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UnavailableError("Another volume server serves the mount: there is nothing to take over.") from e
        return cls(fd, (socket.socket(fileno=lot[0]), socket.socket(fileno=lot[1])))

    @staticmethod
    def check(fd: int) -> None:
        """Raise :class:`UnavailableError` unless this code can go on with the memory behind *fd*."""
        found = _layout(os.pread(fd, _HEADER.size, 0))
        if found not in READABLE:
            raise UnavailableError(
                f"Its session memory has layout {found}, this version reads {', '.join(map(str, sorted(READABLE)))}: "
                "unmount the volume and mount it again."
            )

    # -- what was agreed on with the kernel ---------------------------------------------------------------------------

    def set_agreement(self, minor: int, flags: int, max_write: int) -> None:
        """Remember the answer to INIT."""
        _HEADER.pack_into(self._memory, 0, _MAGIC, VERSION, minor, flags, max_write)

    def agreement(self) -> tuple[int, int, int]:
        """Minor version, flags and size of the largest write; zeros before INIT."""
        _magic, _version, minor, flags, max_write = _HEADER.unpack_from(self._memory, 0)
        return minor, flags, max_write

    @property
    def longest_handle(self) -> int:
        """See :class:`fusevol.fs.memory.Memory`."""
        return _HANDLE_MOST

    # -- the filesystem's ---------------------------------------------------------------------------------------------

    def add_node(
        self, number: int, generation: int, key: tuple[int, int], lookups: int, charged: int, handle: bytes
    ) -> int:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            return self._nodes.add(number, generation, *key, lookups, 0, 0, charged, len(handle), handle)

    def set_lookups(self, where: int, count: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        self._words[(where >> 3) + _LOOKUPS] = count

    def set_unlinked(self, where: int, value: bool) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        self._words[(where >> 3) + _UNLINKED] = value

    def drop_node(self, where: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            self._nodes.drop(where)

    def add_file(self, fh: int, node: int, flags: int) -> int:
        """See :class:`fusevol.fs.memory.Memory`."""
        request = getattr(self._opening, "request", 0)
        with self._lock:
            return self._files.add(fh, node, flags, 0, request)

    def set_backing(self, where: int, backing: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        self._words[(where >> 3) + _BACKING] = backing

    def drop_file(self, where: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            self._files.drop(where)

    def nodes(self) -> dict[int, int]:
        """See :class:`fusevol.fs.memory.Memory`."""
        found = self._nodes.places()
        self._superseded = []
        for where in self._nodes.others(found):
            older, newer = sorted((self.node(where), self.node(found[self._nodes.key(where)])), key=_generation)
            found[newer.number] = newer.where
            self._superseded.append(older)
        return found

    def superseded(self) -> list[NodeRecord]:
        """See :class:`fusevol.fs.memory.Memory`."""
        return self._superseded

    def node(self, where: int) -> NodeRecord:
        """See :class:`fusevol.fs.memory.Memory`."""
        generation, device, inode, lookups, unlinked, moving, charged, size, handle = self._nodes.fields(where)
        number = self._nodes.key(where)
        return NodeRecord(
            where, number, generation, device, inode, lookups, bool(unlinked), bool(moving), charged, handle[:size]
        )

    def special(self) -> list[int]:
        """See :class:`fusevol.fs.memory.Memory`."""
        columns = (self._nodes.column(word) for word in (0, _LOOKUPS, _UNLINKED, _MOVING))
        return [
            number
            for number, lookups, unlinked, moving in zip(*columns, strict=True)
            if number and (not lookups or unlinked or moving)
        ]

    def last_generation(self) -> int:
        """See :class:`fusevol.fs.memory.Memory`."""
        return max(self._nodes.column(_GENERATION), default=0)

    def files(self) -> list[FileRecord]:
        """See :class:`fusevol.fs.memory.Memory`."""
        found = [FileRecord(where, fh, *self._files.fields(where)) for fh, where in self._files.places().items()]
        self._opened = {record.request: record for record in found}
        return found

    # -- what is about to be done (fusevol.transport.kernel.replay) ---------------------------------------------------

    def intend(self, request: int, first: int, second: int) -> int:
        """Remember two numbers for a request; returns where."""
        with self._lock:
            return self._intents.add(request, first, second)

    def intended(self, request: int) -> tuple[int, int, int] | None:
        """Where, and the two numbers, if an earlier server has written them down."""
        where = self._intended.get(request)
        return None if where is None else (where, *self._intents.fields(where))

    def drop_intent(self, where: int) -> None:
        """The request is answered."""
        with self._lock:
            self._intents.drop(where)

    def opening(self, request: int) -> None:
        """What this thread opens from here on, it opens for *request*."""
        self._opening.request = request

    def opened(self, request: int) -> FileRecord | None:
        """What an earlier server has opened for *request*, and maybe not answered."""
        return self._opened.pop(request, None)

    # -- inodes without a name ----------------------------------------------------------------------------------------

    def park(self, number: int, fd: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        self._parking.park(number, fd)

    def unpark(self, number: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        self._parking.unpark(number)

    def parked(self) -> dict[int, int]:
        """See :class:`fusevol.fs.memory.Memory`."""
        return self._parking.parked()
