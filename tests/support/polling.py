"""Waiting for conditions, never for time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from tests.support.guest import INSIDE

T = TypeVar("T")
PATIENCE = 5.0 if INSIDE in os.environ else 1.0
"""How many times as long as elsewhere to wait: a guest's processors are emulated."""


def eventually(condition: Callable[[], T], timeout: float = 10.0, *, what: str = "", interval: float = 0.01) -> T:
    """The first true value of *condition*; ``AssertionError`` naming *what* when *timeout* seconds pass without
    one; in a guest, five times as many.

    An ``AssertionError`` or ``OSError`` of the condition counts as "not yet", and is the cause of the failure.
    """
    timeout *= PATIENCE
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
