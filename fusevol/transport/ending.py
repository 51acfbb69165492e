"""How a session ends."""

from __future__ import annotations

from enum import Enum


class Ending(Enum):
    """See above."""

    OVER = "over"
    """The mount is gone, or the connection was aborted."""
    HANGING = "hanging"
    """As over, but operations still hang in the backing store."""
    LEFT = "left"
    """As it was wanted: the connection lives on, for another process."""
