"""One pool of this node, opened when something is done with it, behind threads that may hang; and its trash."""

from __future__ import annotations

import datetime as dt
import logging
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

import trio

from agent.config import PoolSettings
from agent.hazard import Hazard, Recoveries
from agent.steps import Step
from fusevol.errors import FusevolError, UnavailableError
from fusevol.lease import Holder
from fusevol.pool import Failure, Pool, TrashEntry, failure_at

log = logging.getLogger(__name__)
T = TypeVar("T")
_TRASH_AGAIN = 60.0
"""Seconds after which a trash that could not be emptied is tried again: its pool may have come back."""
_TRASH_LOOK = 3600.0
"""The most seconds without a look at a trash that is kept: the clock by which it is kept may be set meanwhile."""


class Mounted(Protocol):
    """Where a pool is that must be mounted before it is there. Called in the pool's threads."""

    @property
    def pool(self) -> Path:
        """The pool's directory."""

    @property
    def renewable(self) -> bool:
        """Whether a filesystem that has failed is mounted anew by :meth:`unmount` and :meth:`renew`."""

    def renew(self) -> bool:
        """See to it that it is mounted; whether it had to be mounted now. Raises a :class:`FusevolError`."""

    def unmount(self) -> None:
        """Have it mounted anew next time. Raises a :class:`FusevolError`."""


class NotMountedError(UnavailableError):
    """A pool cannot be mounted, so nothing hangs there and nothing is done."""


class Room(NamedTuple):
    """What a filesystem has: bytes and inodes."""

    total: int
    available: int
    used: int
    inodes: int
    available_inodes: int
    used_inodes: int

    @classmethod
    def of(cls, found: os.statvfs_result) -> Self:
        """From statvfs(3); available is what an ordinary user may have."""
        size = found.f_frsize
        # CephFS has no limit of inodes and says that -1 are free
        inodes = (found.f_files, found.f_favail, found.f_files - found.f_ffree) if found.f_ffree >= 0 else (0, 0, 0)
        return cls(
            found.f_blocks * size,
            found.f_bavail * size,
            (found.f_blocks - found.f_bfree) * size,
            *inodes,
        )


class Place:
    """One pool. It is opened by whatever is done with it first: it may not have answered at the start."""

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        patience: float,
        recoveries: Recoveries | None,
        step: Step,
        mounted: Mounted | None = None,
        *,
        made: bool = False,
        holder: Holder | None = None,
    ) -> None:
        """*made*: `fusevol pool create` has made it. *holder*: who this is, for other nodes that have the pool."""
        self._holder = holder
        self.name = name
        self.settings = settings
        self.path = settings.path
        self.made = made
        self._mounted = mounted
        self._step = step
        self._hazard = Hazard(f'The pool "{name}" ({self.path})', patience=patience, recoveries=recoveries)
        self._pool: Pool | None = None
        self._was_there = False
        """A pool that has been here is not made a second time: an empty directory is what its filesystem was on."""
        self._opening = threading.Lock()
        self.discarded = trio.Event()
        """Set when something was put into the trash."""
        self.closing = trio.CancelScope()
        self._purging = trio.Lock()
        """Held while something is deleted for ever: by one at a time."""

    async def run(self, action: Callable[[Pool], T]) -> T:
        """The result of *action*. Raises what it raises, and :class:`UnavailableError` while the pool hangs."""
        return await self._hazard.run(lambda: action(self._opened()))

    async def run_long(self, action: Callable[[Pool], T]) -> T:
        """The result of *action*, which may take long; never given up."""
        return await self._hazard.run_long(lambda: action(self._opened()))

    def _opened(self) -> Pool:
        with self._opening:
            if self._mounted is not None and self._renewed(self._mounted) and self._pool is not None:
                self._pool.close()  # what it has open is on a mount that is no more
                self._pool = None
            if self._pool is None:
                self._pool = Pool.open(
                    self.path,
                    self.name,
                    create=not self._was_there,
                    step=self._step,
                    driver=self.settings.driver,
                    overcommit=self.settings.overcommit,
                    holder=self._holder,
                )
                self._was_there = True
                self._pool.sweep()
            return self._pool

    def close(self) -> None:
        """Let go of it, in the thread of an action."""
        with self._opening:
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    async def failure(self) -> Failure | None:
        """Why it cannot be used; ``None`` if it can, or nobody has used it yet. What we have mounted and has failed
        can only be mounted anew.

        Raises :class:`UnavailableError` if it does not say, since it hangs or is busy.
        """

        ours = self._mounted is not None and self._mounted.renewable
        if not (self._was_there or ours):
            return None  # to look at it could mean to mount a cluster's filesystem that nobody wants

        def look() -> Failure | None:
            try:
                self._opened()
            except NotMountedError as e:
                return Failure(e.message, True)
            except FusevolError as e:
                return failure_at(self.path) or Failure(e.message, ours)
            found = failure_at(self.path)
            return found and found._replace(dead=found.dead or ours)

        return await self._hazard.run(look)

    async def let_go(self) -> None:
        """Have nothing open in it; it is opened, and if need be mounted, by whatever is done next."""

        def close() -> None:
            self.close()
            if self._mounted is not None:
                self._mounted.unmount()

        await self._hazard.run(close)

    @staticmethod
    def _renewed(mounted: Mounted) -> bool:
        try:
            return mounted.renew()
        except UnavailableError as e:
            raise NotMountedError(e.message) from e

    async def glance(self, action: Callable[[Pool], T], seconds: float) -> T:
        """The result of *action*, if there is one within *seconds*. Raises :class:`UnavailableError`."""
        return await self._hazard.glance(lambda: action(self._opened()), seconds)

    @property
    def hangs(self) -> bool:
        """Whether it does not answer now."""
        return self._hazard.hangs

    async def open(self) -> None:
        """Open or create the pool, and clear away what died half-made in it; one that hangs is opened later."""
        try:
            await self.run(lambda _pool: None)
        except UnavailableError:
            if not self._hazard.hangs:
                raise

    async def empty_trash(self) -> None:
        """Delete what is in the trash, for ever, as soon as its time is over. A pool without space changes nothing."""
        with self.closing:
            await self._empty_trash()

    async def _empty_trash(self) -> None:
        told = ""
        while True:
            self.discarded = trio.Event()
            try:
                kept = []
                for entry in await self.run_long(lambda pool: pool.trashed()):
                    if entry.purging or entry.until <= dt.datetime.now(dt.UTC):
                        await self.purge(entry)
                    else:
                        kept.append(entry.until)
                told = ""
                with trio.move_on_after(_until(min(kept)) if kept else math.inf):
                    await self.discarded.wait()
            except (FusevolError, OSError) as e:
                if str(e) != told:  # once, however often that is tried
                    told = str(e)
                    # that a pool cannot be mounted is told by whoever wanted something of it
                    level = logging.INFO if isinstance(e, NotMountedError) else logging.WARNING
                    log.log(level, "The trash of pool %s cannot be emptied: %s", self.name, e)
                with trio.move_on_after(_TRASH_AGAIN):
                    await self.discarded.wait()

    async def purge(self, entry: TrashEntry) -> None:
        """Delete something in the trash for ever; gone already is fine. May take long."""
        async with self._purging:
            await self.run_long(lambda pool: pool.purge(entry))


def _until(moment: dt.datetime) -> float:
    """Seconds to sleep for something that is due at *moment*."""
    return min(max((moment - dt.datetime.now(dt.UTC)).total_seconds(), 0.0), _TRASH_LOOK)
