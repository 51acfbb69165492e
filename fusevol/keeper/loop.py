"""One thread's events: descriptors that can be read, and moments that have come."""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections.abc import Callable
from typing import Final

Callback = Callable[[], object]
_READ: Final = selectors.EVENT_READ


class Timer:
    """A callback whose moment has not come yet."""

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """It will not be called."""
        self.callback = None


class Loop:
    """See above. Callbacks must not block; only :meth:`turn` does."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def watch(self, descriptor: int, callback: Callback) -> None:
        """Call *callback* for as long as *descriptor* can be read."""
        self._selector.register(descriptor, _READ, callback)

    def unwatch(self, descriptor: int) -> None:
        """The end of :meth:`watch`; before *descriptor* is closed."""
        self._selector.unregister(descriptor)

    def later(self, seconds: float, callback: Callback) -> Timer:
        """Call *callback* once, in *seconds*."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def turn(self) -> None:
        """Wait for the next event, and call what is to be called."""
        wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        known = self._selector.get_map()
        for key, _ in self._selector.select(wait):
            if known.get(key.fd) is key:  # not let go of by a callback before
                key.data()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()
