"""Who is told of changes: a bounded history of what was committed, and the tasks that follow it.

A watcher asks for everything after a resource version. It is served from the history first and from then on as
changes come in, without a gap and without a copy per watcher. One that is too slow, or that asks for a version
which the history no longer holds, gets :class:`GoneError` and must list again (Kubernetes' 410 Gone).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import trio

from fusevol.errors import FusevolError

Obj = dict[str, Any]
HISTORY = 4096
"""Changes that are kept for watchers that come late or are slow."""


class GoneError(FusevolError):
    """The resource version to watch from is older than the history."""

    http_status = 410
    reason = "Expired"


class Change(NamedTuple):
    """One committed write. ``object`` is shared: it must not be changed."""

    version: int
    type: str
    """``ADDED``, ``MODIFIED`` or ``DELETED``."""
    object: Obj


class History:
    """The last changes and a way to wait for the next one. For use on the trio loop only."""

    def __init__(self, version: int, size: int = HISTORY) -> None:
        self.version = version
        """Version of the newest change."""
        self._forgotten = version
        self._changes: deque[Change] = deque()
        self._size = size
        self._more = trio.Event()

    def add(self, change: Change) -> None:
        """Record a change that has been committed, and wake all who wait."""
        self.version = change.version
        self._changes.append(change)
        if len(self._changes) > self._size:
            self._forgotten = self._changes.popleft().version
        self._more.set()
        self._more = trio.Event()

    def after(self, version: int) -> list[Change]:
        """The changes newer than *version*. Raises :class:`GoneError` if some of them are forgotten."""
        if version < self._forgotten:
            raise GoneError(
                f"The resource version {version} is too old to watch from (oldest: {self._forgotten}): list again."
            )
        newer: list[Change] = []
        for change in reversed(self._changes):  # from the end: who follows lacks one or two, out of thousands
            if change.version <= version:
                break
            newer.append(change)
        newer.reverse()
        return newer

    async def follow(self, version: int) -> AsyncIterator[Change]:
        """All changes after *version*, for ever. Raises :class:`GoneError` like :meth:`after`."""
        while True:
            more = self._more
            changes = self.after(version)
            for change in changes:
                yield change
                version = change.version
            if not changes:
                await more.wait()
