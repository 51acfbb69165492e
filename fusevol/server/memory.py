"""The session memory: a memfd that outlives the volume server where somebody else holds it too, and what is in it.

Layout, version 1: a page with the header, then tables of fixed-size records. A record is in use if its first word is
not 0. That word is written last and cleared first, as one 8-byte store, so that a kill at any moment leaves a record
that is whole or not there. The file is sparse: what was never used takes no memory.

Inodes without a name are kept alive by descriptors in a *parking lot*: a pair of sockets in whose queue they wait as
messages that nobody reads (SCM_RIGHTS of unix(7)). Whoever holds the pair holds the inodes.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import socket
import threading
from collections.abc import Iterator
from struct import Struct
from typing import Any, Final, Self

from fusevol.errors import UnavailableError
from fusevol.fs.memory import FileRecord, NodeRecord

log = logging.getLogger(__name__)

VERSION: Final = 1
"""The layout of new memories."""
READABLE: Final = frozenset({VERSION})
"""Layouts that this code can go on with. It writes to a memory in the layout that it found, never in a newer one:
should an upgrade fail, the old code goes on with the same memory."""
_MAGIC: Final = b"fusevol\0"
_HEADER: Final = Struct("=8sQQQQQQ")  # magic version minor flags max_write nodes files
_NODES_USED_AT: Final = 40
_FILES_USED_AT: Final = 48
_HEADER_SIZE: Final = mmap.PAGESIZE
_WORD: Final = Struct("=Q")
_NODES: Final = 4 << 20
_FILES: Final = 1 << 18
_INTENTS: Final = 1024
_HANDLE_MOST: Final = 48
_NODE: Final = Struct(f"=QQQQQHxxxxxx{_HANDLE_MOST}s")  # generation device inode lookups unlinked handle_size handle
_FILE: Final = Struct("=QQQ")  # node flags backing_id
_INTENT: Final = Struct("=QQ")  # two numbers
_LOOKUPS_AT: Final = 8 + 24
_UNLINKED_AT: Final = 8 + 32
_BACKING_AT: Final = 8 + 16
_REPACK: Final = 64
"""Parked descriptors that nobody needs any longer from which on the lot is emptied and filled anew."""


class Table:
    """Records of one size at one place. Callers hold a lock where two could take or free at once."""

    def __init__(self, memory: mmap.mmap, start: int, layout: Struct, capacity: int) -> None:
        self._memory = memory
        self._start = start
        self._layout = layout
        self._size = 8 + layout.size + -layout.size % 8
        self._capacity = capacity
        self._next = 0
        self._free: list[int] = []

    @staticmethod
    def room(layout: Struct, capacity: int) -> int:
        """Bytes that such a table takes."""
        return (8 + layout.size + -layout.size % 8) * capacity

    def add(self, key: int, *fields: object) -> int:
        """A new record; returns where it is. Raises ``OSError(ENFILE)``."""
        if self._free:
            index = self._free.pop()
        elif self._next < self._capacity:
            index = self._next
            self._next += 1
        else:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        where = self._start + index * self._size
        self._layout.pack_into(self._memory, where + 8, *fields)
        _WORD.pack_into(self._memory, where, key)
        return where

    def drop(self, where: int) -> None:
        """The record at *where* is free."""
        _WORD.pack_into(self._memory, where, 0)
        self._free.append((where - self._start) // self._size)

    def load(self, used: int) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
        """Place, key and fields of each record among the first *used*, which another process has written."""
        self._next = used
        self._free = []
        for index in range(used):
            where = self._start + index * self._size
            key = _WORD.unpack_from(self._memory, where)[0]
            if key:
                yield where, key, self._layout.unpack_from(self._memory, where + 8)
            else:
                self._free.append(index)

    @property
    def high(self) -> int:
        """How many records have ever been in use."""
        return self._next


class SessionMemory:
    """See above. Implements :class:`fusevol.fs.memory.Memory`."""

    def __init__(self, fd: int, lot: tuple[socket.socket, socket.socket]) -> None:
        self.fd = fd
        self.lot = lot
        files = _HEADER_SIZE + Table.room(_NODE, _NODES)
        intents = files + Table.room(_FILE, _FILES)
        size = intents + Table.room(_INTENT, _INTENTS)
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        self._memory = mmap.mmap(fd, size)
        self._nodes = Table(self._memory, _HEADER_SIZE, _NODE, _NODES)
        self._files = Table(self._memory, files, _FILE, _FILES)
        self._intents = Table(self._memory, intents, _INTENT, _INTENTS)
        self._intended: dict[int, tuple[int, int, int]] = {}
        for where, key, (first, second) in self._intents.load(_INTENTS):
            self._intended[key] = (where, first, second)
        self._lock = threading.Lock()
        self._parked: dict[int, None] = {}
        self._left = 0

    @classmethod
    def create(cls) -> Self:
        """An empty memory."""
        fd = os.memfd_create("fusevol-session", os.MFD_CLOEXEC)
        lot = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in lot:
            end.setblocking(False)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        memory = cls(fd, lot)
        memory._write_header(0, 0, 0)
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
        header = os.pread(fd, _HEADER.size, 0)
        found = _HEADER.unpack(header)[1] if len(header) == _HEADER.size and header[:8] == _MAGIC else None
        if found not in READABLE:
            raise UnavailableError(
                f"Its session memory has layout {found}, this version reads {', '.join(map(str, sorted(READABLE)))}: "
                "unmount the volume and mount it again."
            )

    # -- what was agreed on with the kernel ---------------------------------------------------------------------------

    def _write_header(self, minor: int, flags: int, max_write: int) -> None:
        _HEADER.pack_into(self._memory, 0, _MAGIC, VERSION, minor, flags, max_write, self._nodes.high, self._files.high)

    def set_agreement(self, minor: int, flags: int, max_write: int) -> None:
        """Remember the answer to INIT."""
        self._write_header(minor, flags, max_write)

    def agreement(self) -> tuple[int, int, int]:
        """Minor version, flags and size of the largest write; zeros before INIT."""
        _magic, _version, minor, flags, max_write, _nodes, _files = _HEADER.unpack_from(self._memory, 0)
        return minor, flags, max_write

    @property
    def longest_handle(self) -> int:
        """See :class:`fusevol.fs.memory.Memory`."""
        return _HANDLE_MOST

    # -- the filesystem's ---------------------------------------------------------------------------------------------

    def add_node(self, number: int, generation: int, key: tuple[int, int], lookups: int, handle: bytes) -> int:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            before = self._nodes.high
            where = self._nodes.add(number, generation, *key, lookups, 0, len(handle), handle)
            if self._nodes.high != before:
                _WORD.pack_into(self._memory, _NODES_USED_AT, self._nodes.high)
        return where

    def set_lookups(self, where: int, count: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        _WORD.pack_into(self._memory, where + _LOOKUPS_AT, count)

    def set_unlinked(self, where: int, value: bool) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        _WORD.pack_into(self._memory, where + _UNLINKED_AT, value)

    def drop_node(self, where: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            self._nodes.drop(where)

    def add_file(self, fh: int, node: int, flags: int) -> int:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            before = self._files.high
            where = self._files.add(fh, node, flags, 0)
            if self._files.high != before:
                _WORD.pack_into(self._memory, _FILES_USED_AT, self._files.high)
        return where

    def set_backing(self, where: int, backing: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        _WORD.pack_into(self._memory, where + _BACKING_AT, backing)

    def drop_file(self, where: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            self._files.drop(where)

    def nodes(self) -> Iterator[NodeRecord]:
        """See :class:`fusevol.fs.memory.Memory`."""
        used = _HEADER.unpack_from(self._memory, 0)[5]
        for where, number, fields in self._nodes.load(used):
            generation, device, inode, lookups, unlinked, size, handle = fields
            yield NodeRecord(where, number, generation, device, inode, lookups, bool(unlinked), handle[:size])

    def files(self) -> Iterator[FileRecord]:
        """See :class:`fusevol.fs.memory.Memory`."""
        used = _HEADER.unpack_from(self._memory, 0)[6]
        for where, fh, fields in self._files.load(used):
            yield FileRecord(where, fh, *fields)

    # -- what is about to be done (fusevol.transport.kernel.replay) ---------------------------------------------------

    def intend(self, request: int, first: int, second: int) -> int:
        """Remember two numbers for a request; returns where."""
        with self._lock:
            return self._intents.add(request, first, second)

    def intended(self, request: int) -> tuple[int, int, int] | None:
        """Where, and the two numbers, if an earlier server has written them down."""
        return self._intended.get(request)

    def drop_intent(self, where: int) -> None:
        """The request is answered."""
        with self._lock:
            self._intents.drop(where)

    # -- the parking lot ----------------------------------------------------------------------------------------------

    def park(self, number: int, fd: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            if number not in self._parked:
                try:
                    self._send(number, fd)
                except OSError as e:  # the queue is full: a few hundred inodes
                    log.info("inode of node %d would not survive this server: %s", number, e.strerror)
                else:
                    self._parked[number] = None

    def _send(self, number: int, fd: int) -> None:
        socket.send_fds(self.lot[0], [_WORD.pack(number)], [fd])

    def unpark(self, number: int) -> None:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            if number not in self._parked:
                return
            del self._parked[number]
            self._left += 1
            if self._left >= _REPACK:
                self._left = 0
                for kept, fd in self._take_out().items():
                    if kept in self._parked:
                        self._send(kept, fd)
                    os.close(fd)

    def parked(self) -> dict[int, int]:
        """See :class:`fusevol.fs.memory.Memory`."""
        with self._lock:
            found = self._take_out()
            for number, fd in found.items():
                self._send(number, fd)
            self._parked = dict.fromkeys(found)
            return found

    def _take_out(self) -> dict[int, int]:
        found: dict[int, int] = {}
        while True:
            try:
                message, fds, _flags, _address = socket.recv_fds(self.lot[1], _WORD.size, 1)
            except BlockingIOError:
                return found
            if len(message) < _WORD.size or not fds:
                return found
            number = _WORD.unpack(message)[0]
            if number in found:
                os.close(fds[0])
            else:
                found[number] = fds[0]
