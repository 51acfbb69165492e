"""Waiting for conditions, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 10.0, *, what: str = "", interval: float = 0.01) -> T:
    """The first true value of *condition*; ``AssertionError`` naming *what* when *timeout* seconds pass without one.

    An ``AssertionError`` or ``OSError`` of the condition counts as "not yet", and is the cause of the failure.
    """
    end = time.monotonic() + timeout
    while True:
        cause: Exception | None = None
        try:
            value = condition()
        except (AssertionError, OSError) as e:
            cause = e
        else:
            if value:
                return value
        if time.monotonic() >= end:
            name = what or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"not within {timeout:g} s: {name}") from cause
        time.sleep(interval)
