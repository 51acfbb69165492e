"""A mounted volume: the connection, the operations, and the threads that carry requests out."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
from collections.abc import Callable
from time import sleep
from typing import Any, Final, NamedTuple, Protocol, Self

from fusevol.errors import UnavailableError
from fusevol.fs import FileSystem
from fusevol.transport import mount
from fusevol.transport.crew import Crew, Worker
from fusevol.transport.hangs import Hangs, Request
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel import uring
from fusevol.transport.kernel.connection import Connection, Wishes
from fusevol.transport.kernel.features import Agreement
from fusevol.transport.kernel.operations import SLOW, Operations
from fusevol.transport.kernel.passthrough import Passthrough
from fusevol.transport.kernel.protocol import Notify, Op
from fusevol.transport.kernel.replay import WITHOUT_TRACE, Intents, Replay
from fusevol.transport.kernel.ring import available

log = logging.getLogger(__name__)

_HEADER: Final = p.IN_HEADER.size
_DATA_THROUGH_SERVER: Final = 256 << 10
"""Bytes of the largest write where data comes to the server: each thread has a buffer of that size."""
_DATA_PASSED_BY: Final = 1 << 20
_TAKEN_BACK: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOENT})
"""There is no request any longer: another thread was quicker, or its caller took it back."""
_OVER: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})
"""Unmounted, or aborted."""
_FORGETS: Final = frozenset({Op.FORGET, Op.BATCH_FORGET})
_GATHER: Final = 0.005
"""Seconds for which forgotten nodes gather beside rings."""
_LINGER: Final = 5.0
"""Seconds that operations may take to end when the mount is gone."""
_LATER: Final = 30
"""Seconds by which the kernel ends a connection later than this server would, which can say why."""
_TIMEOUT_MOST: Final = 0xFFFF
"""The longest time that INIT has room for, in seconds: 18 hours."""


class Memory(Intents, Protocol):
    """What of a session must outlive the process."""

    def set_agreement(self, minor: int, flags: int, max_write: int) -> None:
        """Remember the answer to INIT."""

    def agreement(self) -> tuple[int, int, int]:
        """Minor version, flags and size of the largest write."""


class Options(NamedTuple):
    """How a volume is mounted and served."""

    mountpoint: str
    fsname: str
    passthrough: bool
    """Whether the kernel may read and write backing files itself, past any quota of ours."""
    read_only: bool = False
    allow_other: bool = True
    devices: bool = False
    spin_us: int = 50
    io_uring: bool = True
    unwanted: frozenset[str] = frozenset()
    """Features not to be used, though the kernel offers them."""
    abort_after: float | None = None
    """Seconds after which the kernel, too, ends the connection for a request that has no answer."""


class Reader(Crew):
    """Threads that read requests from /dev/fuse and carry them out."""

    def __init__(
        self,
        connection: Connection,
        operations: Operations,
        replay: Replay | None,
        hangs: Hangs,
        *,
        spin_us: int,
        seldom: bool,
    ) -> None:
        """*seldom*: requests come by rings, and only forgotten nodes and the like come here (see :meth:`_work`)."""
        super().__init__(hangs, spin_us=spin_us)
        self._connection = connection
        self._operations = operations
        self._replay = replay
        self._seldom = seldom
        self._at_once = 256 if seldom else 1
        """How many nodes to forget between two looks for a request."""

    def _untidy(self) -> bool:
        return self._operations.untidy

    def _tidy(self) -> None:
        self._operations.tidy(self._at_once)

    def _work(self, worker: Worker) -> bool:
        """Read and carry out.

        Beside rings, a forgotten node is rarely alone, and a wake-up for each would take the interpreter from the
        rings' threads: so they are left to gather, and the kernel gives many at once. Who needs the space that they
        take calls :meth:`sweep`.
        """
        fd = self._connection.fd
        lead, wait, began, carry_out = self.lead, self.wait_readable, self.began, self._carry_out
        buffer = mmap.mmap(-1, self._connection.buffer_size)  # pages that no request needs are never there
        view, into = memoryview(buffer), (buffer,)
        worker.request = view
        op = 0
        try:
            while True:
                lead()
                wait(fd)
                if self._seldom and op in _FORGETS:
                    sleep(_GATHER)
                try:
                    size = os.readv(fd, into)
                except OSError as e:
                    if e.errno in _TAKEN_BACK:
                        continue
                    if e.errno in _OVER:
                        break
                    raise
                began(worker)
                op = carry_out(buffer, view, size)
        except OSError:
            log.exception("reading a request failed")
            return self._may_go_on()
        self._over_if_leading(worker)
        return False

    def _carry_out(self, buffer: mmap.mmap | bytes, view: memoryview, size: int) -> int:
        """Carry out the request of *size* bytes in *buffer*, and answer it; returns its operation."""
        _size, op, unique, node, uid, gid, pid, _extensions = p.IN_HEADER.unpack_from(buffer)
        operations, replay, ids = self._operations, self._replay, (uid, gid, pid)
        sizes = operations.sizes
        if op in SLOW:
            self.hand_over()
        rest = view[_HEADER + (sizes[op] if op < len(sizes) else 0) : size]
        if replay is not None and unique & p.RESENT:
            found = replay.again(unique, op, node, buffer, _HEADER, rest, ids)
        elif replay is not None and op in WITHOUT_TRACE:
            found = replay.first_time(unique, op, node, buffer, _HEADER, rest, ids)
        else:
            found = operations.carry_out(op, node, buffer, _HEADER, rest, ids)
        if found is not None:
            self._connection.answer(unique, found)
        return int(op)

    def sweep(self) -> None:
        """Carry out on the calling thread what can be read at once."""
        with contextlib.suppress(OSError):
            while True:
                request = os.read(self._connection.fd, self._connection.buffer_size)
                self._carry_out(request, memoryview(request), len(request))

    def tell(self, worker: Worker) -> Request | None:
        """See :class:`Crew`. The request stays in the worker's buffer for as long as it is carried out."""
        buffer: Any = worker.request
        _size, op, _unique, node, _uid, _gid, pid, _extensions = p.IN_HEADER.unpack_from(buffer)
        at = _HEADER + (self._operations.sizes[op] if op < len(self._operations.sizes) else 0)
        return self._operations.tell(op, node, buffer[at:], pid)


def _request_timeout(abort_after: float | None) -> int:
    """What INIT says: the kernel looks every 15 seconds, whatever has become of the server's processes."""
    if abort_after is None or abort_after + _LATER > _TIMEOUT_MOST:
        return 0
    return int(abort_after) + _LATER


class Session:
    """A mounted filesystem. :meth:`mount` or :meth:`resume` makes one, :meth:`serve` answers until it is unmounted."""

    transport: str = "kernel"

    def __init__(
        self,
        fs: FileSystem,
        connection: Connection,
        options: Options,
        memory: Memory | None,
        rings: int,
        hangs: Hangs,
    ) -> None:
        self._connection = connection
        agreed = connection.agreed
        self._passthrough = Passthrough(connection.fd, fs.backings) if agreed.has("passthrough") else None
        operations = Operations(fs, passthrough=self._passthrough, setxattr_ext=agreed.has("setxattr-ext"))
        replay = Replay(fs, operations, memory) if memory is not None and fs.survives else None
        self._rings = (
            uring.Rings(connection, operations, replay, rings, options.mountpoint, hangs)
            if agreed.has("over-io-uring")
            else None
        )
        # beside rings it has little to do, and spinning would keep them from their CPU
        seldom, spin_us = self._rings is not None, options.spin_us if self._rings is None else 0
        self._reader = Reader(connection, operations, replay, hangs, spin_us=spin_us, seldom=seldom)
        if seldom:
            os.set_blocking(connection.fd, False)
        fs.sweep = self._reader.sweep if seldom else self._reader.hand_over
        self._ring_memory = rings
        self._resumed = False
        self.survives = replay is not None and agreed.has("has-resend")
        """Whether another process can go on where this one is killed."""

    @classmethod
    def mount(cls, fs: FileSystem, options: Options, memory: Memory | None, hangs: Hangs) -> Self:
        """Mount *fs*. Raises ``OSError`` or :class:`UnavailableError`; nothing is mounted then."""
        refused = set(options.unwanted)
        refused |= {"auto-inval-data"} if fs.cache.keep_pages else {"explicit-inval-data", "cache-symlinks"}
        refused |= set() if options.passthrough else {"passthrough"}
        refused |= set() if options.io_uring and uring.enabled() and available() else {"over-io-uring"}
        refused |= set() if options.abort_after is not None else {"request-timeout"}
        wishes = Wishes(
            fsname=options.fsname,
            read_only=options.read_only,
            allow_other=options.allow_other,
            devices=options.devices,
            unwanted=frozenset(refused),
            max_write=_DATA_PASSED_BY if options.passthrough else _DATA_THROUGH_SERVER,
            stack_depth=2 if fs.backing_type == "overlay" else 1,
            request_timeout=_request_timeout(options.abort_after),
        )
        connection = Connection.open(options.mountpoint, wishes)
        if memory is not None:
            memory.set_agreement(*connection.agreed, connection.max_write)
        return cls(fs, connection, options, memory, os.memfd_create("fusevol-rings", os.MFD_CLOEXEC), hangs)

    @classmethod
    def resume(cls, fs: FileSystem, options: Options, memory: Memory, device: int, rings: int, hangs: Hangs) -> Self:
        """Go on where another server has ended. *device* is the connection's descriptor.

        Raises :class:`UnavailableError` if that server had not yet agreed on anything with the kernel.
        """
        minor, flags, max_write = memory.agreement()
        if not max_write:
            raise UnavailableError(f"The mount at {options.mountpoint} was never ready: mount the volume anew.")
        connection = Connection.resume(device, options.mountpoint, Agreement(minor, flags), max_write)
        session = cls(fs, connection, options, memory, rings, hangs)
        session._resumed = True
        return session

    def __repr__(self) -> str:
        return f"<Session {self._connection} {self._reader} {self._rings}>"

    def left(self) -> tuple[int, int] | None:
        """The descriptors of /dev/fuse and of the rings' buffers by which another process can go on; if it can."""
        return (self._connection.fd, self._ring_memory) if self.survives else None

    def describe(self) -> dict[str, object]:
        """What is in use, for a status."""
        rings = self._rings
        return {
            "io_uring": rings is not None,
            "under_way": self._reader.under_way + (rings.under_way if rings is not None else 0),
            "threads": self._reader.threads + (rings.threads if rings is not None else 0),
            "threads_peak": self._reader.peak,
            "protocol": f"{p.MAJOR}.{self._connection.agreed.minor}",
            "features": self._connection.agreed.names(),
            "backing_ids": len(self._passthrough) if self._passthrough is not None else 0,
            "survives": self.survives,
        }

    def serve(self, ready: Callable[[], None]) -> bool:
        """Answer requests until the session is over; *ready* is called once the mount is usable.

        ``False``: operations still hang in the backing store.
        """
        self._reader.begin()
        if self._rings is not None:
            self._rings.begin()
        if self._resumed:
            with contextlib.suppress(OSError):  # the mount is gone: the reader finds out
                self._connection.notify(Notify.RESEND)
        ready()
        if not self._reader.wait():
            return False
        if self._rings is not None and not self._rings.close(_LINGER):
            return False
        self._connection.close()
        return True

    def stop(self) -> None:
        """End the session from any thread: no further request is read. A mount that is still there is dead then."""
        self._reader.close()
        if self._rings is not None:
            mount.abort(self._connection.minor)  # nothing else wakes a thread that waits in its ring
