"""Looks after the volumes that programs wait for: says so in events, and ends servers that cannot do it themselves.

Whether anybody waits is asked of the kernel, which disturbs no server: a thousand idle volumes cost next to nothing.
Where a request is still there at the next look, the server is asked; it knows what is stuck and for how long, and
ends the connection itself if it is told to (``fusevol.transport.hangs``). One that does not answer (it is stopped, or
hangs as a whole) can do neither. After the same time it is killed here, so that another one follows or the mount is
made again; if it does not even die, its connection is ended.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import trio

from agent.hazard import Hazards
from agent.patience import Patience
from agent.server import Server
from agent.supervisor import Supervisor
from agent.volumes.mounter import Mounter, Tell
from fusevol.errors import FusevolError
from fusevol.transport import mount

Obj = dict[str, Any]
PERIOD: Final = 5.0
"""Seconds between two looks."""
_ANSWER: Final = 5.0
"""Seconds that a server may take to answer."""
_DEATH: Final = 5.0
"""Seconds that a killed server may take to end."""

log = logging.getLogger(__name__)

Action = Literal["storage hangs", "server hangs", "recovered", "end"]
_EVENTS: Final[dict[Action, tuple[str, str]]] = {
    "storage hangs": (
        "VolumeHangs",
        "Programs wait for the storage of {}, which does not answer.",
    ),
    "server hangs": ("VolumeServerHangs", "Programs wait for the volume server of {}, which does not answer."),
    "recovered": ("VolumeAnswers", "Programs wait for {} no longer."),
    "end": ("VolumeServerKilled", "The volume server of {} did not answer for too long: it is killed."),
}
"""Reason and message of each event; what is missing is the volume."""


class Seen(NamedTuple):
    """One look at a volume."""

    waiting: int | None
    """Requests that have no answer; ``None`` if the kernel does not tell."""
    stuck: int | None
    """How many of them are stuck, by the server; ``None`` if that does not answer."""


class State(NamedTuple):
    """What is known of a volume from earlier looks."""

    waiting: bool = False
    silent_since: float | None = None
    told: Action | None = None
    ended: bool = False


def judge(state: State, seen: Seen, now: float, patience: Patience) -> tuple[State, list[Action]]:
    """What is known now, and what is to be done. Pure; times in seconds."""
    if seen.waiting == 0 or seen.stuck == 0:
        return State(waiting=seen.waiting != 0), ["recovered"] if state.told else []
    if seen.stuck is not None:
        told: list[Action] = [] if state.told == "storage hangs" else ["storage hangs"]
        return State(waiting=True, told="storage hangs"), told
    since = now if state.silent_since is None else state.silent_since
    state = state._replace(waiting=True, silent_since=since)
    actions: list[Action] = []
    if now - since >= patience.report and state.told != "server hangs":
        state = state._replace(told="server hangs")
        actions.append("server hangs")
    if patience.abort is not None and now - since >= patience.abort and not state.ended:
        state = state._replace(ended=True)
        actions.append("end")
    return state, actions


class HangWatch:
    """The watch over all volumes. For the trio loop."""

    def __init__(
        self, *, supervisor: Supervisor, mounter: Mounter, hazards: Hazards, tell: Tell, patience: Patience
    ) -> None:
        self._supervisor = supervisor
        self._mounter = mounter
        self._hazards = hazards
        self._tell = tell
        self._patience = patience
        self._states: dict[str, State] = {}
        self._minors: dict[tuple[str, int], int] = {}
        """The connections of the servers that were seen, by mount id and pid."""

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await trio.sleep(PERIOD)
            await self.look()

    async def look(self) -> None:
        """Look once."""
        servers = dict(self._supervisor.servers)
        waiting = await trio.to_thread.run_sync(self._waiting, servers)
        self._states = {name: state for name, state in self._states.items() if name in servers}
        async with trio.open_nursery() as nursery:
            for name, server in servers.items():
                if waiting[name] == 0 and name not in self._states:
                    continue
                nursery.start_soon(self._look_at, server, waiting[name])

    def _waiting(self, servers: Mapping[str, Server]) -> dict[str, int | None]:
        """For each server how many requests have no answer. Reads of /proc and /sys only, which do not hang."""
        keys = {(name, server.pid) for name, server in servers.items()}
        self._minors = {key: minor for key, minor in self._minors.items() if key in keys}
        for name, pid in keys - set(self._minors):
            found = mount.root(self._mounter.point(name))
            if found is not None:
                self._minors[name, pid] = found.minor
        return {
            name: mount.waiting(self._minors[name, server.pid]) if (name, server.pid) in self._minors else 0
            for name, server in servers.items()
        }

    async def _look_at(self, server: Server, waiting: int | None) -> None:
        name = server.mount_id
        state = self._states.get(name, State())
        stuck: int | None = 0
        # a request that is there at one look only is none that takes long
        if waiting != 0 and (state.waiting or waiting is None):
            stuck = await self._ask(name)
        new, actions = judge(state, Seen(waiting, stuck), trio.current_time(), self._patience)
        if waiting == 0:
            self._states.pop(name, None)
        else:
            self._states[name] = new
        for action in actions:
            await self._carry_out(action, server)

    async def _ask(self, name: str) -> int | None:
        try:
            answer = await self._supervisor.ask(name, {"op": "status"}, seconds=_ANSWER)
        except FusevolError:
            return None
        return int((answer.get("stuck") or {}).get("count", 0))

    async def _carry_out(self, action: Action, server: Server) -> None:
        name = server.mount_id
        rows = self._mounter.attachments.of_mount(name)
        if rows:
            reason, message = _EVENTS[action]
            await self._tell(rows[0], reason, message.format(rows[0].volume), action != "recovered")
        if action == "end":
            await self._end(server)

    async def _end(self, server: Server) -> None:
        """Kill a server; what it cannot die of is its connection. Who follows it is judged anew."""
        pid, gone = server.pid, server.gone
        server.kill(signal.SIGKILL)
        with trio.move_on_after(_DEATH):
            await gone.wait()
            self._states[server.mount_id] = State(waiting=True, told="server hangs")
            return
        minor = self._minors.get((server.mount_id, pid))
        if minor is None:
            return
        log.warning("The volume server of %s does not die: its connection is ended.", server.mount_id)
        try:
            await self._hazards.of(f"The connection {minor}").run(lambda: mount.abort(minor))
        except FusevolError as e:
            log.warning("%s", e)
