"""From handles to volumes of pools, and what is known of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import trio

from agent.controllers import provisioning
from agent.csi.refusal import Code, Refused
from agent.pools import Pools
from agent.supervisor import Supervisor
from agent.volumes.attachments import Attachment, mount_id
from agent.volumes.mounter import Mounter
from agent.volumes.still import Still
from fusevol.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from fusevol.pool import Pool, Volume

KIND: Final = "csi"
"""The label ``kind`` of volumes that CreateVolume makes."""
INLINE: Final = "csi-inline"
"""That of volumes which end with their Pod."""
_PATIENCE: Final = 10.0
"""Seconds that a call waits for another one on the same volume."""
_WAITING: Final = 8
"""Calls that wait for one volume at the same time."""
_GLANCE: Final = 0.5
"""Seconds in which another pool may say that it has a volume of the same name."""
_ANSWER: Final = 3.0
"""Seconds that a volume server may take to say how it is."""


class Handle(NamedTuple):
    """Which volume a CO means."""

    pool: str
    volume: str

    def __str__(self) -> str:
        return provisioning.handle(self.pool, self.volume)

    @property
    def mount_id(self) -> str:
        """The name of its mount."""
        return mount_id(self.pool, self.volume)

    @classmethod
    def parse(cls, text: str) -> Handle | None:
        """None for what is no handle of ours."""
        try:
            return cls(*provisioning.parse_handle(text))
        except InvalidError:
            return None


class Condition(NamedTuple):
    """How a volume is; an empty message says that all is well."""

    message: str = ""
    used_bytes: int | None = None
    limit_bytes: int | None = None
    used_inodes: int | None = None
    limit_inodes: int | None = None


class Locks:
    """One call at a time for each volume; others wait a little, and are then told to come again. For the trio loop."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Hold the lock of *name*. Raises ABORTED when it cannot be had soon."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = trio.Lock()
        taken = False
        if lock.statistics().tasks_waiting < _WAITING:
            with trio.move_on_after(_PATIENCE):
                await lock.acquire()
                taken = True
        if not taken:
            raise Refused(Code.ABORTED, f"Another call is at work on the volume {name}: try again.")
        try:
            yield
        finally:
            lock.release()


class Volumes:
    """The volumes that a CO can name. For the trio loop."""

    def __init__(self, pools: Pools, mounter: Mounter, supervisor: Supervisor) -> None:
        self.pools = pools
        self.mounter = mounter
        self._supervisor = supervisor

    async def get(self, text: str) -> tuple[Handle, Volume]:
        """The volume with a handle. Raises NOT_FOUND for whatever is none.

        That is also one of the agent's own claims: nobody else may know of a mount, or end what a claim stands for.
        """
        handle = Handle.parse(text)
        volume = None
        if handle is not None:
            with contextlib.suppress(NotFoundError, InvalidError):
                volume = await self.pools.volume(*handle)
        if handle is None or volume is None or volume.labels.get("kind") != KIND:
            raise Refused(Code.NOT_FOUND, "There is no such volume.")
        return handle, volume

    async def find(self, pool: str, volume: str) -> Volume | None:
        """A volume of a pool, None if there is none."""
        try:
            return await self.pools.volume(pool, volume)
        except NotFoundError:
            return None

    async def elsewhere(self, pool: str, look: Callable[[Pool], object]) -> str | None:
        """The other pool that has what *look* looks for. One that does not answer soon is passed over."""
        found: list[str] = []

        async def ask(other: str) -> None:
            with contextlib.suppress(UnavailableError, CorruptError):
                if await self.pools.has(other, look, _GLANCE):
                    found.append(other)

        async with trio.open_nursery() as nursery:
            for other in self.pools.names:
                if other != pool and not self.pools.hangs(other):
                    nursery.start_soon(ask, other)
        return found[0] if found else None

    def held_already(self) -> Still:
        """For a copy of which somebody else holds all users up."""
        return Still(self._supervisor, "")

    def attachments(self, handle: Handle) -> list[Attachment]:
        """Where a volume is mounted."""
        return self.mounter.attachments.of_mount(handle.mount_id)

    def glance(self, pool: str, name: str) -> str:
        """What is wrong with a volume (or nothing), as far as that can be said without asking anybody."""
        if self.pools.hangs(pool):
            return f"The pool {pool} does not answer."
        if self.mounter.attachments.of_mount(name) and name not in self._supervisor.servers:
            return "The volume server has ended, and is not replaced yet."
        return ""

    async def condition(self, pool: str, name: str) -> Condition:
        """What is wrong with a volume, and what it uses if it is mounted and counted."""
        message = self.glance(pool, name)
        if name not in self._supervisor.servers:
            return Condition(message)
        try:
            status = await self._supervisor.ask(name, {"op": "status"}, seconds=_ANSWER)
        except UnavailableError:
            return Condition(message or "The volume server does not answer.")
        stuck = int((status.get("stuck") or {}).get("count", 0))
        if stuck and not message:
            message = f"{stuck} requests of programs wait for storage that does not answer."
        usage = status.get("usage") or {}
        words = ("used_bytes", "limit_bytes", "used_inodes", "limit_inodes")
        return Condition(message, *(usage.get(word) for word in words))
