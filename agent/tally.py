"""What the agent counts of itself, for its metrics: cheap, and without the library that shows it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds: upper bounds of the classes that durations are counted in; a last one has the rest."""


class Durations:
    """How long things took, in classes."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0
        """Seconds."""

    def add(self, seconds: float) -> None:
        """One more."""
        self.sum += seconds
        self.counts[next((i for i, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))] += 1


class Timings:
    """How long something took, by what it was done to and how it ended. For the trio loop."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Durations] = {}
        """By name and result, which is ``ok`` or ``error``."""

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what is done in this context, however it ends."""
        began, result = time.monotonic(), "error"
        try:
            yield
            result = "ok"
        finally:
            self.found.setdefault((name, result), Durations()).add(time.monotonic() - began)


class Requests:
    """Requests by method, operation and status, and how long the calls of all doors took. For any thread."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str, int]] = Counter()
        """Those of the API."""
        self.took: dict[tuple[str, str, str], Durations] = {}
        """By door (``api``, ``csi``, ``plugin``), operation and code."""
        self._lock = threading.Lock()

    def add(self, method: str, operation: str, code: int, seconds: float) -> None:
        """One more that the API has answered."""
        self.found[method, operation, code] += 1
        self.call("api", operation, str(code), seconds)

    def call(self, door: str, operation: str, code: str, seconds: float) -> None:
        """One more call that was answered."""
        with self._lock:
            self.took.setdefault((door, operation, code), Durations()).add(seconds)
