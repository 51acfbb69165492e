"""The mounts of a keeper: who serves each, what is held of it, and how the last servers ended. Plain data."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from fusevol.keeper.lives import Lives
from fusevol.keeper.loop import Timer
from fusevol.keeper.ready import Ready
from fusevol.keeper.wire import Message
from fusevol.server.held import MOST, Held

PAGE: Final = 128
"""Servers in one answer: with the longest names they fill two thirds of a message."""
REMEMBERED: Final = 32
"""How many ends are kept."""
DESCRIPTORS: Final = MOST + 1
"""What a mount costs its keeper: what holds it, and the pidfd of its server."""

State = Literal["serving", "starting", "waiting", "leaving", "given", "moved"]
"""``starting``: a successor that is not ready yet; ``waiting``: its turn has not come yet. While another keeper takes
over: the server was asked to leave, the mount is in the other keeper's hands, its server has passed all checks."""


@dataclass(frozen=True, slots=True)
class Server:
    """A volume server that was alive when it was last looked at."""

    pid: int
    pidfd: int
    ours: bool
    """Whether it is a child of this keeper, which then learns how it ended."""
    started: float = field(default_factory=time.time)
    """Seconds since the epoch; when it was adopted, for another keeper's."""
    born: float = field(default_factory=time.monotonic)


@dataclass(eq=False, slots=True)
class Mount:
    """A mount that has a server, or will have the next one."""

    mount_id: str
    spec: str
    log: str
    server: Server | None = None
    state: State = "serving"
    held: Held | None = None
    """By which another server can go on where this one ends; ``None``: it cannot, or not yet."""
    lives: Lives = field(default_factory=Lives)
    restarts: int = 0
    """How many servers have followed the first, as far as this keeper knows."""
    died: float = 0.0
    """When (time.monotonic) the server died that the next one follows."""
    last: tuple[int, int | None] = (0, None)
    """Its pid, and its exit status or the negative number of a signal, if known."""
    words: str = ""
    """Why the last one could not go on, in its own words."""
    timer: Timer | None = None
    ready: Ready | None = None
    heir: Callable[[], object] | None = None
    """Called when the server has ended, in place of having another one go on."""
    news: Literal["replaced", "stayed"] = "replaced"
    """What is told when the next server is ready."""
    pause: int = 0
    """Milliseconds for which nobody served it the last time."""

    def describe(self) -> Message:
        """What a client is told of it, in the words of :mod:`fusevol.keeper.wire`."""
        state: str = self.state
        if state in {"leaving", "given", "moved"}:
            state = "serving" if self.server is not None else "starting"
        return {
            "mount_id": self.mount_id,
            "state": state,
            "pid": self.server.pid if self.server is not None else None,
            "started": self.server.started if self.server is not None else None,
            "restarts": self.restarts,
        }


class Mounts:
    """All mounts of one keeper."""

    def __init__(self) -> None:
        self._mounts: dict[str, Mount] = {}
        self._ended: deque[Message] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return len(self._mounts)

    def __iter__(self) -> Iterator[Mount]:
        return iter(list(self._mounts.values()))

    def find(self, mount_id: str) -> Mount | None:
        """The mount of that id."""
        return self._mounts.get(mount_id)

    def add(self, mount: Mount) -> None:
        """A new one."""
        self._mounts[mount.mount_id] = mount

    def remove(self, mount: Mount) -> None:
        """It is gone."""
        del self._mounts[mount.mount_id]

    def note_end(self, mount: Mount, server: Server, status: int | None) -> None:
        """*server* has ended: an exit status, the negative number of a signal, or unknown."""
        self._ended.append(
            {
                "mount_id": mount.mount_id,
                "pid": server.pid,
                "started": server.started,
                "ended": time.time(),
                "status": status,
            }
        )

    def page(self, after: str) -> Message:
        """The answer to ``list``: mounts by id, those behind *after*; and the last ends of servers, the latest last."""
        names = sorted(name for name in self._mounts if name > after)
        shown = [self._mounts[name].describe() for name in names[:PAGE]]
        return {"servers": shown, "more": len(names) > PAGE, "ended": list(self._ended)}
