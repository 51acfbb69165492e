"""Moves volumes from one pool to another, while nobody uses them. For the trio loop.

The order of things, so that one of the two volumes is always whole and named by the PersistentVolume: the move is
written down there, the volume copied, the copy compared with it, the PersistentVolume's handle changed, the old volume
deleted, the note of the move removed. An agent that begins where another one was killed deletes what was copied until
then and copies again; once the handle is the new one, it only has to clear away.
"""

from __future__ import annotations

import logging
from typing import Any

from agent.controllers import moving, salvage
from agent.controllers.moving import Move, move_of
from agent.controllers.provisioning import handle, handle_of, parse_handle
from agent.events import Recorder
from agent.pools import Pools
from agent.steps import Step, no_step
from agent.store import Key, Store
from agent.volumes.attachments import mount_id
from agent.volumes.mounter import Mounter
from fusevol import objects
from fusevol.errors import ConflictError, FusevolError, InvalidError, NotFoundError

Obj = dict[str, Any]

log = logging.getLogger(__name__)


class Moves:
    """All moves of one agent."""

    def __init__(self, *, store: Store, events: Recorder, pools: Pools, mounter: Mounter, step: Step = no_step) -> None:
        self._store = store
        self._events = events
        self._pools = pools
        self._mounter = mounter
        self._step = step

    async def begin(self, named: Key, pool: str) -> Obj:
        """Have the volume of a claim, or of a PersistentVolume, moved to *pool*; its PersistentVolume as it is now.

        The same again changes nothing. Raises :class:`NotFoundError`, :class:`InvalidError` for what cannot be moved,
        and :class:`ConflictError` for what cannot be moved now.
        """
        volume = self._volume_of(named)
        name = volume["metadata"]["name"]
        where = handle_of(volume)
        if where is None:
            raise InvalidError(f"The PersistentVolume {name} is in no pool: copy its data into a claim instead.")
        source, made = parse_handle(where)
        wanted = Move(where, handle(pool, made))
        under_way = move_of(volume)
        if under_way == wanted:
            return volume
        if under_way is not None:
            raise ConflictError(f"The volume {made} is being moved to {under_way.target}: wait until that is done.")
        self._pools.path(pool)
        if pool == source:
            raise InvalidError(f"The volume {made} is in pool {pool} already: choose another pool.")
        for end in (source, pool):
            driver, can = await self._pools.capabilities(end)
            if can.shared:
                raise InvalidError(
                    f"The pool {end} ({driver}) may be in use by other nodes, where nobody would learn of the move: "
                    "make a new claim and copy the data."
                )
        self._check_alone(volume, where)
        found = await self._pools.volume(source, made)
        if salvage.is_csi(found):
            raise InvalidError(
                f"The volume {made} was made for a CSI caller, whose objects would name the old one: make a new volume."
            )
        self._check_unused(source, made)
        if await self._is_in(pool, made):
            raise ConflictError(f"There is a volume {made} in pool {pool} already: see `fusevol pool scan {pool}`.")

        def write(current: Obj) -> None:
            if move_of(current) is not None or handle_of(current) != where:
                raise ConflictError(f"The PersistentVolume {name} was changed meanwhile: look at it, and try again.")
            wanted.begin(current)

        changed = await self._store.change(objects.key(volume), write, uid=volume["metadata"]["uid"])
        self._step("move begun")
        await self._tell(changed, "Moving", f"The volume is moved from pool {source} to pool {pool}")
        return changed

    def _volume_of(self, named: Key) -> Obj:
        found = self._store.get(named)
        if named.kind == "PersistentVolume":
            return found
        name = str(found["spec"].get("volumeName") or "")
        volume = self._store.find(Key("PersistentVolume", "", name)) if name else None
        if volume is None:
            raise ConflictError(
                f'The claim "{named.namespace}/{named.name}" has no volume yet: wait until it is bound.'
            )
        return volume

    def _check_alone(self, volume: Obj, where: str) -> None:
        """Raises :class:`ConflictError` if the handle is, or will be, of use to another object."""
        for other in self._store.list("PersistentVolume"):
            if handle_of(other) == where and other["metadata"]["uid"] != volume["metadata"]["uid"]:
                raise ConflictError(
                    f"The PersistentVolume {other['metadata']['name']} names {where}, too: delete one of them."
                )
        for content in self._store.list("VolumeSnapshotContent"):
            taken = (content.get("status") or {}).get("snapshotHandle")
            if content["spec"]["source"].get("volumeHandle") == where and not taken:
                raise ConflictError(
                    f"The snapshot {content['metadata']['name']} is not taken yet: wait until it is ready."
                )

    def _check_unused(self, pool: str, volume: str) -> None:
        row = next(iter(self._mounter.attachments.of_mount(mount_id(pool, volume))), None)
        if row is not None:
            raise ConflictError(f"The volume {volume} is mounted at {row.target}: end what uses it, and try again.")

    async def _is_in(self, pool: str, volume: str) -> bool:
        try:
            await self._pools.volume(pool, volume)
        except NotFoundError:
            return False
        return True

    async def go_on(self, key: Key) -> None:
        """Bring the move of a PersistentVolume to its end, if it is in one.

        One that cannot be done is undone, and an event says why. Raises what undoing it or clearing away raises.
        """
        volume = self._store.find(key)
        move = move_of(volume) if volume is not None else None
        if volume is None or move is None:
            return
        if handle_of(volume) != move.target:
            try:
                await self._carry_out(volume, move)
            except (FusevolError, OSError) as e:
                now = self._store.find(key)
                if now is not None and handle_of(now) == move.target:
                    raise  # the copy is the volume already: the next try clears away
                log.info("%s is not moved to %s: %s", move.source, move.target, e)
                await self._clear(move.target, "not moved")
                await self._over(volume)
                await self._tell(volume, "MoveFailed", f"The volume stays in its pool: {e}", warning=True)
                return
        await self._clear(move.source, "moved")
        await self._over(volume)
        await self._tell(volume, "Moved", f"The volume is in pool {parse_handle(move.target)[0]} now")

    async def _carry_out(self, volume: Obj, move: Move) -> None:
        where, made = parse_handle(move.source)
        pool, _ = parse_handle(move.target)
        reason = f"The volume {made} is being moved to pool {pool}; it can be used when that is done."
        async with self._mounter.reserved(mount_id(where, made), reason):
            await self._clear(move.target, "not moved")  # whoever copied it was killed, and the volume used since then
            await self._pools.copy_to(pool, where, made)
            self._step("volume copied")
            await self._store.change(objects.key(volume), move.switch, uid=volume["metadata"]["uid"])
            self._step("handle changed")

    async def _clear(self, place: str, reason: str) -> None:
        pool, made = parse_handle(place)
        await self._pools.discard(pool, made, reason, 0)
        self._step(f"{reason} cleared")

    async def _over(self, volume: Obj) -> None:
        await self._store.change(objects.key(volume), moving.over, uid=volume["metadata"]["uid"])
        self._step("move over")

    async def _tell(self, volume: Obj, reason: str, message: str, *, warning: bool = False) -> None:
        """An event on the PersistentVolume, and one on its claim."""
        ref = volume["spec"].get("claimRef") or {}
        claim = self._store.find(
            Key("PersistentVolumeClaim", str(ref.get("namespace") or ""), str(ref.get("name") or ""))
        )
        bound = claim is not None and claim["metadata"]["uid"] == ref.get("uid")
        for obj in (volume, *([claim] if bound and claim is not None else [])):
            await (self._events.warning if warning else self._events.normal)(obj, reason, message)
