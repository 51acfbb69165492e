"""Brings volumes back that were deleted or that no object knows any more, or deletes them. For the trio loop."""

from __future__ import annotations

from typing import Any, Literal

import trio

from agent.controllers import salvage
from agent.controllers.provisioning import handle
from agent.controllers.salvage import Home, Known
from agent.pools import Pools
from agent.shares import Shares
from agent.store import Key, Store
from agent.volumes.attachments import Attachment
from agent.volumes.mounter import Mounter
from fusevol import objects
from fusevol.errors import AlreadyExistsError, FusevolError, InvalidError, NotFoundError, UsageError
from fusevol.pool import TrashEntry, Volume
from fusevol.pool.trash import retention_in

Obj = dict[str, Any]
Action = Literal["adopt", "purge"]


class Salvage:
    """The trash and the orphans of all pools."""

    def __init__(self, *, store: Store, pools: Pools, shares: Shares, mounter: Mounter, provisioner: str) -> None:
        self._store = store
        self._pools = pools
        self._shares = shares
        self._mounter = mounter
        self._provisioner = provisioner

    # trash

    async def trashed(self, only: str | None = None) -> Obj:
        """``items``, what is in the trash, of one pool or of all; and ``errors`` of pools that do not tell."""
        items: dict[str, list[Obj]] = {}
        errors: dict[str, Obj] = {}

        async def ask(pool: str) -> None:
            try:
                items[pool] = await self._pools.run(pool, lambda p: [_shown(pool, e) for e in p.trashed()])
            except FusevolError as e:
                if only is not None:
                    raise
                errors[pool] = {"pool": pool, "error": e.message}

        names = self._pools.names if only is None else [only]
        if only is not None:
            await ask(only)
        else:
            async with trio.open_nursery() as nursery:
                for pool in names:
                    nursery.start_soon(ask, pool)
        return {
            "items": [item for pool in names for item in items.get(pool, [])],
            "errors": [errors[pool] for pool in names if pool in errors],
        }

    async def _entry(self, pool: str, name: str) -> TrashEntry:
        for entry in await self._pools.trashed(pool):
            if entry.name == name:
                return entry
        raise NotFoundError(f"There is no {name} in the trash of pool {pool}: see `fusevol trash list`.")

    async def purge(self, pool: str, name: str) -> None:
        """Delete something in the trash for ever, before its time is over."""
        await self._pools.purge(pool, await self._entry(pool, name))

    async def restore(self, pool: str, name: str, claim: str, namespace: str) -> Obj:
        """Take a volume out of the trash, for a claim *claim* that is made. A CSI volume is for none.

        Raises :class:`AlreadyExistsError`, and what :meth:`Pool.restore` raises; then nothing has changed.
        """
        entry = await self._entry(pool, name)
        found = await self._pools.run(pool, lambda _: Volume.load(entry.path, entry.volume))
        if salvage.is_csi(found):
            if claim:
                raise InvalidError(
                    f"{name} is a CSI volume, whose objects are not here: restore it without --claim, and make a "
                    f"PersistentVolume with the volumeHandle {handle(pool, found.id)} for it where they are."
                )
            await self._pools.restore(pool, entry)
            return {"volume": found.id, "volumeHandle": handle(pool, found.id)}
        if not claim:
            raise UsageError(f"Say for which claim {name} is: give --claim NAME, a new one is made.")
        home = await self._home(pool)
        wanted = objects.admit(salvage.claim_for(found, home.total, namespace, claim))
        if self._store.find(objects.key(wanted)) is not None:
            raise AlreadyExistsError(f'There is a claim "{namespace}/{claim}" already: choose another name.')
        self._check_free(found.id)
        policy = salvage.policy_of(found, home.classes)
        unborn = {**wanted, "metadata": {**wanted["metadata"], "uid": ""}}
        volume = await self._pools.restore(pool, entry)
        try:
            home = await self._with_user(home, volume)
            obj = salvage.persistent_volume(volume, home, unborn, policy, self._provisioner)
            await self._store.create(objects.admit(obj))
            await self._store.create(wanted)
        except FusevolError as e:
            raise type(e)(
                f"The volume {volume.id} is in pool {pool} again, but not for that claim: {e.message} "
                f"`fusevol pool scan {pool}` finds it."
            ) from e
        return {"volume": volume.id, "claim": claim, "namespace": namespace}

    def _check_free(self, volume: str) -> None:
        if self._store.find(Key("PersistentVolume", "", volume)) is not None:
            raise AlreadyExistsError(
                f"There is a PersistentVolume {volume} (still, if the volume was deleted a moment ago): "
                "try again when it is gone."
            )

    async def _home(self, pool: str) -> Home:
        classes = self._store.list("StorageClass")
        share = salvage.share_with(pool, self._store.list("PersistentVolume"), classes)
        return Home(pool, classes, share, None, (await self._pools.room(pool)).total)

    async def _with_user(self, home: Home, volume: Volume) -> Home:
        """*home* with the Ceph user that may mount *volume* alone, where there are such."""
        if home.share is None:
            return home
        self._shares.attach(home.share)
        return home._replace(user=await self._shares.user_for(home.share, volume.id))

    # orphans

    async def scan(self, pool: str, action: Action | None, *, others: bool = False) -> list[Obj]:
        """The volumes of a pool that nobody knows, and what was done about each of them; *others*: also those that an
        agent of another node has made, which may know them."""
        before = self._known(pool, others)
        volumes = await self._pools.volumes(pool)
        after = self._known(pool, others)  # one that was being deleted meanwhile was known before
        found = []
        for volume in volumes:
            if before.has(volume) or after.has(volume):
                continue
            claim = after.claims.get(volume.id, "")
            item = {
                "volume": volume.id,
                "capacity": volume.capacity_bytes,
                "created": volume.created,
                "owner": volume.owner,
                "claim": claim,
                "retention": retention_in(volume.labels),
                "done": "",
                "error": "",
            }
            try:
                if action is not None:
                    item["done"] = await self._settle(pool, volume, action, others)
            except FusevolError as e:
                item["error"] = e.message
            found.append(item)
        return found

    async def _settle(self, pool: str, volume: Volume, action: Action, others: bool) -> str:
        row = Attachment(target="", kind="persistent", pool=pool, volume=volume.id)
        async with self._mounter.lock(row):  # nobody mounts it meanwhile
            known = self._known(pool, others)
            if known.has(volume):
                return ""
            if action == "adopt":
                return await self._adopt(pool, await self._pools.volume(pool, volume.id))
            if claim := known.claims.get(volume.id):
                raise InvalidError(f"The claim {claim} is of this volume: adopt it, or delete the claim first.")
            await self._pools.discard(pool, volume.id, "orphan")
            return "moved to the trash"

    async def _adopt(self, pool: str, volume: Volume) -> str:
        self._check_free(volume.id)
        home = await self._with_user(await self._home(pool), volume)
        former = salvage.former_claim(volume)
        obj = salvage.persistent_volume(volume, home, former, "Retain", self._provisioner)
        await self._store.create(objects.admit(obj))
        return f"persistentvolume/{volume.id} created"

    def _known(self, pool: str, others: bool) -> Known:
        return salvage.known(
            pool,
            volumes=self._store.list("PersistentVolume"),
            claims=self._store.list("PersistentVolumeClaim"),
            pods=self._store.list("Pod"),
            mounted=(row.volume for row in self._mounter.attachments if row.pool == pool),
            agent="" if others else self._pools.agent,
        )


def _shown(pool: str, entry: TrashEntry) -> Obj:
    try:
        capacity = Volume.load(entry.path, entry.volume).capacity_bytes
    except FusevolError:
        capacity = None
    return {
        "pool": pool,
        "name": entry.name,
        "volume": entry.volume,
        "capacity": capacity,
        "owner": entry.owner,
        "reason": entry.reason,
        "trashed": entry.trashed,
        "until": entry.until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "purging": entry.purging,
    }
