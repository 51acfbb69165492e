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
from fusevol.transport.ending import Ending
from fusevol.transport.hangs import Hangs, Request
from fusevol.transport.in_use import InUse
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel import uring
from fusevol.transport.kernel.connection import Connection, Wishes
from fusevol.transport.kernel.features import Agreement
from fusevol.transport.kernel.operations import SLOW, Operations
from fusevol.transport.kernel.passthrough import Passthrough
from fusevol.transport.kernel.protocol import Notify, Op
from fusevol.transport.kernel.replay import WITHOUT_TRACE, Intents, Replay

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
    no_passthrough: str = ""
    """Why file data may not go past the server; empty: it shall, where the kernel can do that."""
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

    def __init__(
        self,
        fs: FileSystem,
        connection: Connection,
        options: Options,
        memory: Memory | None,
        ring_memory: int,
        hangs: Hangs,
        lever: uring.Lever | None,
    ) -> None:
        """*lever* is None where another server was before. Raises ``OSError`` or :class:`UnavailableError`."""
        self._fs = fs
        self._connection = connection
        self._memory = memory
        self._ring_memory = ring_memory
        agreed = connection.agreed
        self._passthrough = Passthrough(connection.fd, fs.backings) if agreed.has("passthrough") else None
        operations = Operations(fs, passthrough=self._passthrough, setxattr_ext=agreed.has("setxattr-ext"))
        replay = Replay(fs, operations, memory) if memory is not None and fs.survives else None
        self._why_not = self._missing(options, lever)
        self._rings: uring.Rings | None = None
        if agreed.has("over-io-uring"):
            try:
                self._rings = uring.Rings(connection, operations, replay, ring_memory, options.mountpoint, hangs)
                self._rings.begin()
            except OSError as e:
                self._rings = None
                self._give_up_io_uring(lever, e.strerror or str(e))
        # beside rings it has little to do, and spinning would keep them from their CPU
        seldom, spin_us = self._rings is not None, options.spin_us if self._rings is None else 0
        self._operations = operations
        self._reader = Reader(connection, operations, replay, hangs, spin_us=spin_us, seldom=seldom)
        if self._rings is not None:
            self._reader.gate = self._rings.gate
            os.set_blocking(connection.fd, False)
        fs.sweep = self._reader.sweep if seldom else self._reader.hand_over
        self._resumed = lever is None
        self._leaving = False

    def _missing(self, options: Options, lever: uring.Lever | None) -> dict[str, str]:
        """What is not in use, and why."""
        agreed, found = self._connection.agreed, {}
        if not agreed.has("over-io-uring"):
            found["io_uring"] = (lever.why_not if lever else "") or "it was not agreed on when this was mounted"
        if not agreed.has("passthrough"):
            found["passthrough"] = options.no_passthrough or "this kernel has none (Linux 6.9 has)"
        if not self._fs.survives:
            found["takeover"] = (
                "nobody holds on to the connection" if self._memory is None else "the files cannot be opened by handle"
            )
        elif not agreed.has("has-resend"):
            found["takeover"] = "this kernel does not repeat requests (Linux 6.9 does)"
        return found

    def _give_up_io_uring(self, lever: uring.Lever | None, why: str) -> None:
        """Go on over /dev/fuse. Raises :class:`UnavailableError` where that is not possible."""
        if lever is None:
            raise UnavailableError(f"requests come over io_uring, which the system refuses: {why}")
        lever.pull(self._connection)
        agreed = self._connection.agreed = self._connection.agreed.without("over-io-uring")
        if self._memory is not None:
            self._memory.set_agreement(*agreed, self._connection.max_write)
        self._why_not["io_uring"] = f"the system refuses it: {why}"
        log.warning("requests come over /dev/fuse, since the system refuses io_uring: %s", why)

    @classmethod
    def mount(cls, fs: FileSystem, options: Options, memory: Memory | None, hangs: Hangs) -> Self:
        """Mount *fs*. Raises ``OSError`` or :class:`UnavailableError`; nothing is mounted then."""
        with uring.Lever(wanted=options.io_uring) as lever:
            refused = set(options.unwanted)
            refused |= {"auto-inval-data"} if fs.cache.keep_pages else {"explicit-inval-data", "cache-symlinks"}
            refused |= {"passthrough"} if options.no_passthrough else set()
            refused |= {"over-io-uring"} if lever.why_not else set()
            refused |= set() if options.abort_after is not None else {"request-timeout"}
            wishes = Wishes(
                fsname=options.fsname,
                read_only=options.read_only,
                allow_other=options.allow_other,
                devices=options.devices,
                unwanted=frozenset(refused),
                max_write=_DATA_THROUGH_SERVER if options.no_passthrough else _DATA_PASSED_BY,
                stack_depth=2 if fs.backing_type == "overlay" else 1,
                request_timeout=_request_timeout(options.abort_after),
            )
            connection = Connection.open(options.mountpoint, wishes)
            try:
                if memory is not None:
                    memory.set_agreement(*connection.agreed, connection.max_write)
                rings = _ring_memory()
                return cls(fs, connection, options, memory, rings, hangs, lever)
            except BaseException:
                with contextlib.suppress(OSError):
                    mount.unmount(options.mountpoint, lazy=True)
                connection.close()
                raise

    @classmethod
    def resume(
        cls, fs: FileSystem, options: Options, memory: Memory, device: int, rings: int, number: int, hangs: Hangs
    ) -> Self:
        """Go on where another server has ended, by what :meth:`left` was there; *number* is the connection's.

        Raises :class:`UnavailableError` if that server had not yet agreed on anything with the kernel.
        """
        minor, flags, max_write = memory.agreement()
        if not max_write:
            raise UnavailableError(f"The mount at {options.mountpoint} was never ready: mount the volume anew.")
        connection = Connection(device, number, Agreement(minor, flags), max_write)
        return cls(fs, connection, options, memory, rings if rings >= 0 else _ring_memory(), hangs, None)

    def __repr__(self) -> str:
        return f"<Session {self._connection} {self._reader} {self._rings}>"

    def left(self) -> tuple[int, int] | None:
        """The descriptors of /dev/fuse and of the rings' buffers (-1: none) by which another process can go on; if it
        can."""
        if "takeover" in self._why_not:
            return None
        return self._connection.fd, self._ring_memory if self._rings is not None else -1

    def in_use(self) -> InUse:
        """How requests and data travel now."""
        refused = self._passthrough.refused if self._passthrough is not None else ""
        why_not = {**self._why_not, "passthrough": refused} if refused else self._why_not
        return InUse(
            "kernel",
            io_uring="io_uring" not in why_not,
            passthrough="passthrough" not in why_not,
            takeover="takeover" not in why_not,
            why_not=why_not,
        )

    def describe(self) -> dict[str, object]:
        """What goes on, for a status."""
        rings = self._rings
        return {
            "operations": self._reader.served + (rings.served if rings is not None else 0),
            "refused": self._operations.refused,
            "under_way": self._under_way(),
            "threads": self._reader.threads + (rings.threads if rings is not None else 0),
            "threads_peak": self._reader.peak,
            "protocol": f"{p.MAJOR}.{self._connection.agreed.minor}",
            "features": self._connection.agreed.names(),
            "backing_ids": len(self._passthrough) if self._passthrough is not None else 0,
        }

    def _under_way(self) -> int:
        return self._reader.under_way + (self._rings.under_way if self._rings is not None else 0)

    def hold(self, patience: float, limit: float) -> bool:
        """Hold requests up; see :class:`Gate`."""
        return self._reader.gate.hold(self._under_way, patience, limit)

    def release(self) -> bool:
        """Let requests through again; whether they were held up until now."""
        return self._reader.gate.open()

    @property
    def passing_by(self) -> int:
        """How many files are open whose data the kernel reads and writes past this server."""
        return len(self._passthrough) if self._passthrough is not None else 0

    def serve(self, ready: Callable[[], None]) -> Ending:
        """Answer requests until the session is over, or left; *ready* is called once the mount is usable."""
        self._reader.begin()
        if self._resumed:
            with contextlib.suppress(OSError):  # the mount is gone: the reader finds out
                self._connection.notify(Notify.RESEND)
        ready()
        ended = self._reader.wait()
        while self._leaving and not self._connection.over():
            self._leaving = False
            if ended or self._rings is not None:
                return Ending.LEFT
            log.info("operations hang in the backing store: this server goes on")
            self._reader.reopen()
            ended = self._reader.wait()
        if not ended or (self._rings is not None and not self._rings.close(_LINGER)):
            return Ending.HANGING
        self._connection.close()
        return Ending.OVER

    def leave(self) -> None:
        """Let another process go on, from any thread: what was read is finished, and no further request is read. If
        that takes longer than a few seconds, this session goes on.

        Requests in rings are not waited for: the kernel hands over the next while it takes the answer to the last, and
        who goes on finds them there.
        """
        self._leaving = True
        self._reader.close()

    def stop(self) -> None:
        """End the session from any thread: no further request is read. A mount that is still there is dead then."""
        # whoever holds the descriptor beside us would keep it alive, and nothing else wakes a thread in its ring
        self._connection.abort()
        self._reader.close()


def _ring_memory() -> int:
    """Room for the rings' buffers; it takes none until it is used."""
    return os.memfd_create("fusevol-rings", os.MFD_CLOEXEC)
