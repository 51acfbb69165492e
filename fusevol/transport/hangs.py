"""Requests that do not come to an end: which they are, for how long, and what is done about it.

A file operation waits for its backing store for as long as that takes: a failed disk, a network filesystem without its
server, a frozen device. Nothing can end such an operation from outside; what can be done is to say so, and, where
that is wished, to end the connection, so that the programs get errors instead of waiting.

No request pays for being watched. The threads that carry requests out keep them where they can be looked at
(a *source*), and a watchdog that looks every second remembers what it has seen before. So an age counts from the first
look that saw the request, and may be a second too low.

Looking never waits: not for the backing store, and not for a lock that a thread may hold while it waits for that.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

LOOK: Final = 1.0
"""Seconds between two looks."""
_SHOWN: Final = 8
"""Requests that are named one by one, in the log at the same time and in a status."""


class Request(NamedTuple):
    """What somebody waits for."""

    operation: str
    """As the FUSE protocol calls it, in small letters."""
    node: int
    """The inode's number; 0 if it is not known."""
    path: str | None
    """Where that is in the volume, if it can be told without asking the backing store."""
    pid: int
    """Process id of the caller, 0 if it is not known: the kernel's work, or a process of another pid namespace."""

    def __str__(self) -> str:
        where = repr(self.path) if self.path is not None else f"node {self.node}" if self.node else "an open file"
        return f"{self.operation} of {where} for {_process(self.pid)}"


Source = Callable[[], Mapping[Hashable, Callable[[], Request | None]]]
"""Gives a key for each operation that is under way, the same one until it ends, and how to look at it: ``None`` if it
has ended meanwhile."""


class _Seen:
    """A request that was under way at a look."""

    __slots__ = ("request", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.request: Request | None = None
        """Known once it is overdue."""


class Hangs:
    """Watches over the requests of one connection. Any thread may call its methods; none of them waits."""

    def __init__(
        self,
        report: float,
        abort_after: float | None,
        abort: Callable[[], object],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """A request is *stuck*, and reported, after *report* seconds; after *abort_after*, *abort* ends the connection.

        *abort* is called once, in a thread of its own.
        """
        self._report = report
        self._abort_after = abort_after
        self._abort: Callable[[], object] | None = abort
        self._clock = clock
        self._sources: list[Source] = []
        self._seen: dict[Hashable, _Seen] = {}
        self._last = -LOOK
        self._again = 0.0
        """Age of the oldest request at which it is next reported that it is still there."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Hangs report={self._report} abort_after={self._abort_after} under_way={len(self._seen)}>"

    def follow(self, source: Source) -> None:
        """Watch over the requests that *source* gives."""
        self._sources.append(source)

    def look(self) -> None:
        """Look at what is under way, if the last look is a second ago.

        For the watchdogs of the transports: as often as they like, and every second while something is under way.
        """
        now = self._clock()
        if now - self._last >= LOOK and self._lock.acquire(blocking=False):
            try:
                self._look(now)
            finally:
                self._lock.release()

    def status(self) -> dict[str, object]:
        """How many requests are stuck, the age of the oldest in seconds, and the oldest ones."""
        with self._lock:
            self._look(self._clock())
            now = self._last
            stuck = sorted((s for s in self._seen.values() if s.request is not None), key=lambda s: s.since)
            return {
                "count": len(stuck),
                "oldest": round(now - stuck[0].since, 1) if stuck else 0.0,
                "requests": [
                    {"age": round(now - s.since, 1), **s.request._asdict()} for s in stuck[:_SHOWN] if s.request
                ],
            }

    def _look(self, now: float) -> None:
        """Called with the lock."""
        self._last = now
        before, self._seen = self._seen, {}
        overdue: list[_Seen] = []
        for source in self._sources:
            for key, tell in source().items():
                seen = self._seen[key] = before.pop(key) if key in before else _Seen(now)
                if now - seen.since >= self._report and seen.request is None:
                    seen.request = tell()
                    if seen.request is not None:
                        overdue.append(seen)
        self._tell_ended([s for s in before.values() if s.request is not None], now)
        self._tell_stuck(overdue, now)

    def _tell_ended(self, ended: list[_Seen], now: float) -> None:
        for seen in ended[:_SHOWN]:
            log.info("%s has ended after %.0f s", seen.request, now - seen.since)
        if len(ended) > _SHOWN:
            log.info("%d more have ended", len(ended) - _SHOWN)

    def _tell_stuck(self, new: list[_Seen], now: float) -> None:
        stuck = [s for s in self._seen.values() if s.request is not None]
        if not stuck:
            self._again = 0.0
            return
        oldest = min(stuck, key=lambda s: s.since)
        age = now - oldest.since
        for seen in new[: max(0, _SHOWN - (len(stuck) - len(new)))]:
            log.warning(
                "%s has not ended for %.0f s: the backing store does not answer", seen.request, now - seen.since
            )
        if self._again == 0.0:
            self._again = 2 * self._report
        elif age >= self._again:
            self._again = 2 * age
            log.warning("%d requests do not end, the first one for %.0f s: %s", len(stuck), age, oldest.request)
        if self._abort is not None and self._abort_after is not None and age >= self._abort_after:
            abort, self._abort = self._abort, None
            log.error("the connection is aborted: %s has not ended for %.0f s", oldest.request, age)
            threading.Thread(target=abort, name="abort", daemon=True).start()


def _process(pid: int) -> str:
    if not pid:
        return "an unknown process"
    name = ""
    with contextlib.suppress(OSError):  # it has ended
        name = f" ({Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()})"
    return f"process {pid}{name}"
