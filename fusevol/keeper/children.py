"""The volume servers that a keeper has started: who lives, and how the last ones ended. Plain data."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from fusevol.keeper.wire import Message

PAGE: Final = 128
"""Servers in one answer: with the longest names they fill two thirds of a message."""
REMEMBERED: Final = 32
"""How many ends are kept."""


@dataclass(frozen=True, slots=True)
class Child:
    """A living volume server."""

    mount_id: str
    pid: int
    pidfd: int
    started: float
    """Seconds since the epoch."""


class Children:
    """All servers of one keeper."""

    def __init__(self) -> None:
        self._living: dict[str, Child] = {}
        self._ended: deque[Message] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return len(self._living)

    def find(self, mount_id: str) -> Child | None:
        """The living server of a mount."""
        return self._living.get(mount_id)

    def add(self, mount_id: str, pid: int, pidfd: int) -> Child:
        """A server that was just started."""
        child = self._living[mount_id] = Child(mount_id, pid, pidfd, time.time())
        return child

    def remove(self, child: Child, status: int) -> None:
        """Record that *child* ended: an exit status, or the negative number of a signal."""
        del self._living[child.mount_id]
        self._ended.append(
            {
                "mount_id": child.mount_id,
                "pid": child.pid,
                "started": child.started,
                "ended": time.time(),
                "status": status,
            }
        )

    def page(self, after: str) -> Message:
        """The answer to ``list``: servers by mount id, those behind *after*; and the last ends, the latest last.

        ``restarts`` counts the remembered ends of servers of the same mount that were not orderly.
        """
        names = sorted(name for name in self._living if name > after)
        failed = [end["mount_id"] for end in self._ended if end["status"] != 0]
        shown = [
            {"mount_id": c.mount_id, "pid": c.pid, "started": c.started, "restarts": failed.count(c.mount_id)}
            for c in (self._living[name] for name in names[:PAGE])
        ]
        return {"servers": shown, "more": len(names) > PAGE, "ended": list(self._ended)}
