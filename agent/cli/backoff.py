"""When a container that has ended is started again: kubelet's rules. Pure.

The first time at once, then after 10 s, 20 s, 40 s ... up to five minutes, counted from the container's end. One that
then ran for long (twice the longest time) begins anew.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 10.0
LONGEST: Final = 300.0


def restarts(policy: str, code: int) -> bool:
    """Whether a container that ended with *code* is started again under a Pod's ``restartPolicy``."""
    return policy == "Always" or (policy == "OnFailure" and code != 0)


class Backoff:
    """The delays of one container. Times in seconds, on any clock."""

    def __init__(self, longest: float = LONGEST) -> None:
        """*longest*: the most that is ever waited (kubelet's ``maxContainerRestartPeriod``)."""
        self._first = min(FIRST, longest)
        self._longest = longest
        self._delay = 0.0
        self._started = 0.0

    def due(self, ended: float) -> float:
        """When a container that ended at the time *ended* may be started again."""
        if ended - self._started > 2 * self._longest:
            self._delay = 0.0
        return ended + self._delay

    def started(self, at: float) -> None:
        """It was started again."""
        self._delay = min(self._delay * 2, self._longest) if self._delay else self._first
        self._started = at
