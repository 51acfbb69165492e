"""How soon a server that died is followed by another one, and when no more. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CALM: Final = 1.0
"""A server that lived for so many seconds says nothing about the next one."""
PAUSES: Final = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before the next server, after so many short lives in a row; after more there is none. What ends every server
at once (a request that it cannot stand is delivered to its successor, too) will not get better."""


@dataclass(frozen=True, slots=True)
class Lives:
    """The lives of one mount's servers so far."""

    short: int = 0
    """Short ones, since the last that was not."""

    def after(self, seconds: float) -> Lives:
        """With one more that lasted for *seconds*."""
        return Lives(self.short + 1 if seconds < CALM else 0)

    @property
    def pause(self) -> float | None:
        """Seconds until the next one begins; ``None``: never."""
        if self.short > len(PAUSES):
            return None
        return PAUSES[self.short - 1] if self.short else 0.0
