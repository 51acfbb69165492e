"""Where a pool builds what it will have: aside, below ``tmp``, and in its place by one rename when it is whole.

So a crash leaves all of it or none, and what was half made is cleared away by the next one that opens the pool.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from fusevol.errors import ConflictError
from fusevol.files import sync_directory
from fusevol.pool import place, removal
from fusevol.pool.drivers import Driver
from fusevol.pool.record import DATA, Volume
from fusevol.pool.steps import Step

log = logging.getLogger(__name__)


class Workshop:
    """Thread-safe. Raises ``OSError`` for what the filesystem says."""

    def __init__(
        self, tmp: Path, pool: str, driver: Driver, mutex: threading.Lock, step: Step, agent: str = ""
    ) -> None:
        """*tmp*: the directory; *pool*: the name of its pool; *driver* takes away what was half made.

        *mutex* guards the names where things are moved to. *agent* is whose work this is, where others have the pool,
        too.
        """
        self._agent = agent
        self._tmp = tmp
        self._pool = pool
        self._driver = driver
        self._mutex = mutex
        self._step = step
        self.building: set[str] = set()
        """Names below ``tmp`` that a living thread works on. For others to read, after they have listed ``tmp``."""

    def build(
        self, what: str, final: Path, make: Callable[[Path], Volume], existing: Callable[[], Volume | None]
    ) -> Volume:
        """Have *make* make data in a directory aside, and move that to *final*, unless *existing* is faster."""
        self._step(f"{what}: begun")
        whose = f"{self._agent}." if self._agent else ""
        temporary = self._tmp / f"{final.name[:64]}.{whose}{uuid.uuid4().hex}"
        self.building.add(temporary.name)
        try:
            temporary.mkdir(mode=0o700)
            self._step(f"{what}: directory made")
            made = make(temporary)
            self._step(f"{what}: data made")
            made.save(temporary)
            self._step(f"{what}: record written")
            try:
                with self._mutex:
                    temporary.rename(final)
            except OSError as e:
                if e.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                self._discard(temporary)
                found = existing()  # another thread was faster
                if found is None:
                    raise
                return found
            self._step(f"{what}: renamed")
            sync_directory(final.parent)
            sync_directory(self._tmp)
            self._step(f"{what}: durable")
        except BaseException:
            with contextlib.suppress(OSError):
                self._discard(temporary)
            raise
        finally:
            self.building.discard(temporary.name)
        return Volume.load(final, final.name)

    def _discard(self, temporary: Path) -> None:
        if temporary.is_dir():
            self._driver.remove(temporary / DATA, {})
            removal.empty(temporary)
            temporary.rmdir()

    def left(self) -> list[str]:
        """Names of what dead builders have left, as far as it was this agent's."""
        # listed first: what is in neither set was left, or has just been finished
        names = sorted(set(os.listdir(self._tmp)) - self.building)
        return [name for name in names if not self._agent or name.split(".")[-2:-1] == [self._agent]]

    def clear(self) -> list[str]:
        """Remove what dead builders have left; returns the names. What living threads build is left alone."""
        cleared = []
        for name in self.left():
            leftover = self._tmp / name
            try:
                if leftover.is_symlink() or not leftover.is_dir():
                    leftover.unlink(missing_ok=True)  # finished meanwhile
                else:
                    place.refuse_mounts(leftover)
                    self._discard(leftover)
                    cleared.append(name)
            except (ConflictError, OSError) as e:  # no reason to leave the pool closed
                log.warning("pool %s: %s cannot be cleared away: %s", self._pool, leftover, e)
        return cleared
