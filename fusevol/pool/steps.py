"""The boundaries between the steps of a pool's changes: where a crash leaves something for the next one to find."""

from __future__ import annotations

from collections.abc import Callable

Step = Callable[[str], None]
"""Called with the name of each step after it is done, to see what a crash there leaves behind. On any thread."""


def no_step(name: str) -> None:
    """The :data:`Step` of a pool that nobody interrupts."""
