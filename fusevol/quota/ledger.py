"""The ledger: counts a volume's allocated space and inodes, and says no before the limit would be passed.

Every change is reserved with the most that it can cost, made, and settled with what it did cost. A plain lock around
integers is all there is: reserve and settle together take less than a microsecond and a half, far below any system
call that they guard. The disk knows only "in use" or, after a clean end, what the counters were; while a volume is in
use they live in memory, and where somebody keeps that for a killed process (*counters*) the next one goes on with them.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from fusevol.files import sync_filesystem
from fusevol.quota.checkpoint import Checkpoint, Identity
from fusevol.quota.scan import ScanProgress, scan
from fusevol.usage import Entry, Usage


class Counters(Protocol):
    """Where counters and limits outlive the process."""

    def load(self) -> Usage | None:
        """What an earlier process had counted, to the last operation that it had settled; ``None`` if not known."""

    def start(self, counted: Usage) -> None:
        """Begin with these values: what is in the tree was counted, and nothing is under way."""

    def set_limits(self, limit_bytes: int | None, limit_inodes: int | None) -> None:
        """The limits have changed."""


class Ledger:
    """The counters of one volume that is in use. Thread-safe. Implements ``fusevol.usage.Quota``."""

    __slots__ = (
        "_checkpoint",
        "_closed",
        "_counters",
        "_identity",
        "_limit_bytes",
        "_limit_inodes",
        "_lock",
        "_reserved_bytes",
        "_reserved_inodes",
        "_source",
        "_used_bytes",
        "_used_inodes",
    )

    def __init__(
        self,
        checkpoint: Path,
        source: Path,
        identity: Identity,
        counted: Usage,
        counters: Counters | None,
    ) -> None:
        """Use :meth:`open`, which finds the counters."""
        self._checkpoint = checkpoint
        self._source = source
        self._identity = identity
        self._counters = counters
        self._lock = threading.Lock()
        self._used_bytes, self._used_inodes, self._limit_bytes, self._limit_inodes = counted
        self._reserved_bytes = 0
        self._reserved_inodes = 0
        self._closed = False

    @classmethod
    def open(
        cls,
        checkpoint: Path,
        source: Path,
        *,
        limit_bytes: int | None,
        limit_inodes: int | None,
        progress: Callable[[ScanProgress], None] | None = None,
        counters: Counters | None = None,
    ) -> Self:
        """The ledger of the tree at *source*, which nobody may change but through it until :meth:`close`.

        What *counters* know of an earlier process is taken as it is, with the limits as they were then. Otherwise a
        checkpoint from a clean end is trusted, or the tree is counted, with *progress*; *counters* start with that.
        Before this returns, the checkpoint is durably marked as in use. Raises ``OSError``.
        """
        identity = Identity.of(source)
        found = Checkpoint.load(checkpoint)
        if found is None or found.clean:
            # before a scan too: should this process die, the next one counts again
            Checkpoint(False, 0, 0, identity).save(checkpoint)
        counted = counters.load() if counters is not None else None
        if counted is None:
            if found is not None and found.clean and found.source == identity:
                nbytes, inodes = found.used_bytes, found.used_inodes
            else:
                nbytes, inodes = scan(source, progress)
            counted = Usage(nbytes, inodes, limit_bytes, limit_inodes)
            if counters is not None:
                counters.start(counted)
        return cls(checkpoint, source, identity, counted, counters)

    def reserve(self, nbytes: int, inodes: int) -> None:
        """Set *nbytes* and *inodes* aside. Raises ``OSError(ENOSPC)`` and reserves nothing if that is too much.

        What is not asked for is not checked: a volume over its byte limit may still make an empty file.
        """
        with self._lock:
            limit = self._limit_bytes
            if nbytes > 0 and limit is not None and self._used_bytes + self._reserved_bytes + nbytes > limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            limit = self._limit_inodes
            if inodes > 0 and limit is not None and self._used_inodes + self._reserved_inodes + inodes > limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._reserved_bytes += nbytes
            self._reserved_inodes += inodes

    def reserve_upto(self, nbytes: int, granule: int) -> int:
        """Set aside as much of *nbytes* as there is room for, a multiple of *granule*; returns it, 0 for none."""
        with self._lock:
            if self._limit_bytes is not None:
                nbytes = min(nbytes, self._limit_bytes - self._used_bytes - self._reserved_bytes)
            if nbytes <= 0:
                return 0
            nbytes -= nbytes % granule
            self._reserved_bytes += nbytes
            return nbytes

    def settle(
        self, reserved_bytes: int, reserved_inodes: int, nbytes: int, inodes: int, entry: Entry | None = None
    ) -> None:
        """Give a reservation back and add what was really used: *nbytes* and *inodes*, negative where freed.

        *entry* is committed with the counters as they are then.
        """
        with self._lock:
            self._reserved_bytes -= reserved_bytes
            self._reserved_inodes -= reserved_inodes
            self._used_bytes += nbytes
            self._used_inodes += inodes
            if entry is not None:
                entry.commit(self._used_bytes, self._used_inodes)

    def usage(self) -> Usage:
        """The counters now, without what is only reserved."""
        with self._lock:
            return Usage(self._used_bytes, self._used_inodes, self._limit_bytes, self._limit_inodes)

    def reserved(self) -> tuple[int, int]:
        """Bytes and inodes that are reserved now; both 0 when no operation is under way."""
        with self._lock:
            return self._reserved_bytes, self._reserved_inodes

    def set_limits(self, limit_bytes: int | None, limit_inodes: int | None) -> None:
        """Change the limits, ``None`` for none. Below what is used is allowed: growth fails until enough is freed."""
        with self._lock:
            self._limit_bytes = limit_bytes
            self._limit_inodes = limit_inodes
            if self._counters is not None:
                self._counters.set_limits(limit_bytes, limit_inodes)

    def recount(self, source: Path) -> Usage:
        """Count the tree at *source* anew and return that, beside the limits. The own counters stay as they are."""
        nbytes, inodes = scan(source)
        with self._lock:
            return Usage(nbytes, inodes, self._limit_bytes, self._limit_inodes)

    def close(self) -> None:
        """Write the checkpoint of a clean end; nothing may change the tree afterwards. A second call does nothing.

        The tree's filesystem is synced before (syncfs), so that the checkpoint is true of what a machine that then
        loses its power will find. Raises ``OSError``; the next :meth:`open` counts then.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            nbytes, inodes = self._used_bytes, self._used_inodes
            settled = self._reserved_bytes == 0 and self._reserved_inodes == 0
        if not settled or nbytes < 0 or inodes < 0:
            return  # an operation never ended, or something was miscounted: the mark "in use" makes the next one count
        sync_filesystem(self._source)
        Checkpoint(True, nbytes, inodes, self._identity).save(self._checkpoint)

    def __repr__(self) -> str:
        """Shows the counters."""
        return f"<Ledger {self.usage()} reserved={self.reserved()}>"
