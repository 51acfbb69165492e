"""A mounted volume whose requests are read from /dev/fuse: the crew's threads, the operations, the connection."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Final

from fusevol.fs import FileSystem
from fusevol.transport import mount
from fusevol.transport.crew import Crew, Worker
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel import uring
from fusevol.transport.kernel.connection import Connection, Wishes
from fusevol.transport.kernel.operations import SLOW, Operations
from fusevol.transport.kernel.passthrough import Passthrough
from fusevol.transport.kernel.ring import available

log = logging.getLogger(__name__)

_HEADER: Final = p.IN_HEADER.size
_DATA_THROUGH_SERVER: Final = 256 << 10
"""Bytes of the largest write where data comes to the server: each thread has a buffer of that size."""
_DATA_PASSED_BY: Final = 1 << 20
_LINGER: Final = 5.0
"""Seconds that operations may take to end when the mount is gone."""


class Reader(Crew):
    """Threads that read requests from /dev/fuse and carry them out."""

    def __init__(self, connection: Connection, operations: Operations, *, spin_us: int) -> None:
        super().__init__(spin_us=spin_us)
        self._connection = connection
        self._operations = operations

    def _work(self, worker: Worker) -> bool:
        fd, answer = self._connection.fd, self._connection.answer
        carry_out, sizes = self._operations.carry_out, self._operations.sizes
        lead, wait, began, unpack = self.lead, self.wait_readable, self.began, p.IN_HEADER.unpack_from
        buffer = bytearray(self._connection.buffer_size)
        view = memoryview(buffer)
        try:
            while True:
                lead()
                wait(fd)
                try:
                    size = os.readv(fd, (buffer,))
                except OSError as e:
                    if e.errno in {errno.EAGAIN, errno.EINTR, errno.ENOENT}:
                        continue  # its caller took the request back
                    if e.errno in {errno.ENODEV, errno.ECONNABORTED}:
                        break  # unmounted, or aborted
                    raise
                _size, op, unique, node, uid, gid, pid, _extensions = unpack(buffer)
                began(worker)
                if op in SLOW:
                    self.hand_over()
                start = _HEADER + (sizes[op] if op < len(sizes) else 0)
                found = carry_out(op, node, buffer, _HEADER, view[start:size], (uid, gid, pid))
                if found is not None:
                    answer(unique, found)
        except OSError:
            log.exception("reading a request failed")
            return self._may_go_on()
        self._over_if_leading(worker)
        return False


class Session:
    """A mounted filesystem. ``Session(...)`` mounts; :meth:`serve` answers until the mount is gone or :meth:`stop`."""

    transport: str = "kernel"

    def __init__(
        self,
        fs: FileSystem,
        mountpoint: str,
        *,
        fsname: str,
        passthrough: bool,
        read_only: bool = False,
        allow_other: bool = True,
        devices: bool = False,
        spin_us: int = 50,
        io_uring: bool = True,
        unwanted: frozenset[str] = frozenset(),
    ) -> None:
        """Mount. *passthrough*: the kernel may read and write backing files itself, past any quota of ours.

        Raises ``OSError`` or :class:`~fusevol.errors.UnavailableError`.
        """
        exclusive = fs.cache.keep_pages
        refused = set(unwanted)
        refused |= {"auto-inval-data"} if exclusive else {"explicit-inval-data", "cache-symlinks"}
        refused |= set() if passthrough else {"passthrough"}
        wishes = Wishes(
            fsname=fsname,
            read_only=read_only,
            allow_other=allow_other,
            devices=devices,
            unwanted=frozenset(
                refused if io_uring and uring.enabled() and available() else refused | {"over-io-uring"}
            ),
            max_write=_DATA_PASSED_BY if passthrough else _DATA_THROUGH_SERVER,
            stack_depth=2 if fs.backing_type == "overlay" else 1,
        )
        self._connection = Connection.open(mountpoint, wishes)
        agreed = self._connection.agreed
        self._passthrough = Passthrough(self._connection.fd) if agreed.has("passthrough") else None
        operations = Operations(fs, passthrough=self._passthrough, setxattr_ext=agreed.has("setxattr-ext"))
        self._rings = uring.Rings(self._connection, operations, mountpoint) if agreed.has("over-io-uring") else None
        # beside rings it has little to do, and spinning would keep them from their CPU
        self._reader = Reader(self._connection, operations, spin_us=0 if self._rings is not None else spin_us)

    def __repr__(self) -> str:
        return f"<Session {self._connection} {self._reader}>"

    def describe(self) -> dict[str, object]:
        """What is in use, for a status."""
        return {
            "io_uring": self._rings is not None,
            "under_way": self._reader.under_way + (self._rings.under_way if self._rings is not None else 0),
            "threads": self._reader.threads + (self._rings.threads if self._rings is not None else 0),
            "threads_peak": self._reader.peak,
            "protocol": f"{p.MAJOR}.{self._connection.agreed.minor}",
            "features": self._connection.agreed.names(),
            "backing_ids": len(self._passthrough) if self._passthrough is not None else 0,
        }

    def serve(self, ready: Callable[[], None]) -> bool:
        """Answer requests until the session is over; *ready* is called once the mount is usable.

        ``False``: operations still hang in the backing store.
        """
        self._reader.begin()
        if self._rings is not None:
            self._rings.begin()
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
