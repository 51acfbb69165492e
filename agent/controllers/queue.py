"""A queue of keys to look at: each key once, never two tasks on one key, failures again later.

A key that is added while it is being worked on is worked on once more afterwards. A failure is tried again after a
back-off that doubles; :meth:`WorkQueue.add` (something related has changed) tries at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from agent.logs import about
from fusevol.errors import ConflictError, FusevolError

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
FIRST_DELAY = 0.5
"""Seconds until the first retry."""
LAST_DELAY = 60.0
"""The longest time between two tries, in seconds."""


class WorkQueue(Generic[K]):
    """Calls *handle* for each key that was added. *handle* may raise; a number that it returns is a delay in seconds
    after which it wants to be called again."""

    def __init__(self, name: str, handle: Callable[[K], Awaitable[float | None]], *, workers: int = 4) -> None:
        self.name = name
        self._handle = handle
        self._workers = workers
        self._waiting: dict[K, None] = {}
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, trio.CancelScope] = {}
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<WorkQueue {self.name} waiting={len(self._waiting)} running={len(self._running)}>"

    def add(self, key: K) -> None:
        """Have *key* looked at soon."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._running:
            self._again.add(key)
            return
        self._waiting[key] = None
        if self._idle.is_set():  # one that is not may have somebody waiting for it
            self._idle = trio.Event()
        self._wake.set()

    def hurry(self) -> None:
        """Have everything looked at now that waits for its next try: what it failed of may be over."""
        for key in list(self._timers):
            self.add(key)

    @property
    def depth(self) -> int:
        """Keys that wait or are worked on, without those that wait for their next try."""
        return len(self._waiting) + len(self._running)

    def settled(self) -> bool:
        """Whether nothing waits or runs (retries that are not due do not count)."""
        return not self._waiting and not self._running

    async def drained(self) -> None:
        """Return once nothing waits or runs."""
        while not self.settled():
            await self._idle.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(self._workers):
                nursery.start_soon(self._work)
            task_status.started()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._wake = trio.Event() if self._wake.is_set() else self._wake
                await self._wake.wait()
            key = next(iter(self._waiting))
            del self._waiting[key]
            self._running.add(key)
            delay: float | None = None
            try:
                with about(object="/".join(key) if isinstance(key, tuple) else str(key)):
                    delay = await self._handle(key)
                self._failures.pop(key, None)
            except ConflictError as e:
                log.debug("%s %s: %s", self.name, key, e)
                delay = self._backoff(key, first=0.02)
            except FusevolError as e:
                log.info("%s %s: %s", self.name, key, e)
                delay = self._backoff(key)
            except Exception:
                # one object's bug must not end the work on all others
                log.exception("%s: the work on %s failed", self.name, key)
                delay = self._backoff(key)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif delay is not None:
                self._later(key, delay)
            if self.settled():
                self._idle.set()

    def _backoff(self, key: K, first: float = FIRST_DELAY) -> float:
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        return float(min(LAST_DELAY, first * 2 ** min(count, 16)))

    def _later(self, key: K, delay: float) -> None:
        scope = self._timers[key] = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(delay)
                if self._timers.get(key) is scope:
                    self.add(key)

        if self._nursery is not None:
            self._nursery.start_soon(wait)
