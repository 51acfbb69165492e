"""Carries out what the decisions ask for. Every action may be interrupted and carried out again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, assert_never

from agent.controllers import matching, provisioning
from agent.controllers.binding import volume_name
from agent.controllers.view import (
    BACKEND_FINALIZER,
    Action,
    Delete,
    Discard,
    Event,
    Expand,
    Provision,
    Put,
    Reclaim,
    being_deleted,
    class_of,
    finalizers,
    phase,
)
from agent.events import Recorder
from agent.pools import Pools
from agent.shares import Shares
from agent.steps import Step, no_step
from agent.store import Store
from agent.volumes.attachments import mount_id
from agent.volumes.mounter import Mounter
from fusevol import objects, quantity
from fusevol.errors import AlreadyExistsError, FusevolError, InvalidError, NotFoundError
from fusevol.pool import VolumeRequest

Obj = dict[str, Any]


class Effects:
    """Carries out actions, in order. For the trio loop."""

    def __init__(
        self,
        *,
        store: Store,
        events: Recorder,
        pools: Pools,
        shares: Shares,
        mounter: Mounter,
        provisioner: str,
        step: Step = no_step,
    ) -> None:
        self._store = store
        self._events = events
        self._pools = pools
        self._shares = shares
        self._mounter = mounter
        self._provisioner = provisioner
        self._step = step

    async def carry_out(self, actions: Sequence[Action]) -> None:
        """Do *actions*; an object that is put twice is put in its newer form. Raises what the first failure raises."""
        for action in actions:
            match action:
                case Put(obj):
                    await self._store.update(obj)
                    self._step(f"put {obj['kind']}")
                case Delete(obj):
                    await self._delete(obj)
                case Event(regarding, reason, message, warning):
                    tell = self._events.warning if warning else self._events.normal
                    await tell(regarding, reason, message)
                case Provision(claim, storage_class):
                    await self._provision(claim, storage_class)
                case Reclaim(volume):
                    await self._reclaim(volume)
                case Discard(claim):
                    await self._discard(claim)
                case Expand(claim, volume):
                    await self._expand(claim, volume)
                case _:
                    assert_never(action)

    async def _delete(self, obj: Obj) -> None:
        try:
            await self._store.delete(objects.key(obj), uid=obj["metadata"]["uid"])
        except NotFoundError:
            return
        self._step(f"delete {obj['kind']}")

    async def _provision(self, claim: Obj, storage_class: Obj) -> None:
        name = volume_name(claim)
        if self._store.find(objects.Key("PersistentVolume", "", name)) is not None:
            return
        try:
            made = provisioning.plan(claim, storage_class)
            if made.share is not None:
                self._shares.attach(made.share)
            self._pools.path(made.pool)
            message = f'fusevol makes a volume for claim "{"/".join((made.owner["namespace"], made.owner["claim"]))}"'
            await self._events.normal(claim, "Provisioning", message)
            self._step("provisioning announced")
            volume = await self._pools.provision(
                made.pool,
                VolumeRequest(
                    id=made.volume,
                    capacity_bytes=made.capacity,
                    inode_limit=made.inodes,
                    enforced=made.enforced,
                    owner=made.owner,
                    mode=made.mode,
                    labels={"kind": "claim"},
                    shared=made.shared,
                ),
            )
            self._step("volume made")
            user = None if made.share is None else await self._shares.user_for(made.share, made.volume)
        except (FusevolError, OSError) as e:
            text = f'failed to provision volume with StorageClass "{storage_class["metadata"]["name"]}": {e}'
            await self._events.warning(claim, "ProvisioningFailed", text)
            raise e if isinstance(e, FusevolError) else FusevolError(text) from e
        capacity = volume.capacity_bytes or made.capacity
        new = objects.admit(
            provisioning.persistent_volume(
                claim, storage_class, made, capacity, str(storage_class["provisioner"]), user
            )
        )
        try:
            await self._store.create(new)
        except AlreadyExistsError:
            return
        self._step("PersistentVolume made")
        await self._events.normal(claim, "ProvisioningSucceeded", f"Successfully provisioned volume {name}")

    async def _reclaim(self, volume: Obj) -> None:
        key = objects.key(volume)
        try:
            pool, made = provisioning.parse_handle(str(provisioning.handle_of(volume)))
            await self._shares.forget_user(volume)
            await self._pools.discard(pool, made)
        except (FusevolError, OSError) as e:
            reason = str(e)

            def fail(current: Obj) -> None:
                failed = {"phase": "Failed", "reason": "VolumeFailedDelete", "message": reason}
                current["status"] = {**(current.get("status") or {}), **failed}

            if phase(volume) != "Failed" or volume["status"].get("message") != reason:
                await self._store.change(key, fail, uid=volume["metadata"]["uid"])
            await self._events.warning(volume, "VolumeFailedDelete", reason)
            raise e if isinstance(e, FusevolError) else FusevolError(reason) from e
        self._step("volume in the trash")

        def let_go(current: Obj) -> None:
            current["metadata"]["finalizers"] = [f for f in finalizers(current) if f != BACKEND_FINALIZER]

        if not being_deleted(volume):
            await self._delete(volume)
        try:
            await self._store.change(key, let_go, uid=volume["metadata"]["uid"])
        except NotFoundError:
            return
        self._step("PersistentVolume let go")

    async def _discard(self, claim: Obj) -> None:
        storage_class = self._store.find(objects.Key("StorageClass", "", class_of(claim) or ""))
        likely = str(((storage_class or {}).get("parameters") or {}).get("pool") or self._pools.preferred)
        with contextlib.suppress(InvalidError):
            share = None if storage_class is None else provisioning.share_of(storage_class)
            likely = likely if share is None else share.pool
        await self._pools.discard_leftover(likely, volume_name(claim))
        self._step("unfinished volume in the trash")

    async def _expand(self, claim: Obj, volume: Obj) -> None:
        wanted = matching.requested(claim)
        pool, made = provisioning.parse_handle(str(provisioning.handle_of(volume)))
        try:
            await self._mounter.set_limits(pool, made, mount_id(pool, made), wanted)
        except (FusevolError, OSError) as e:
            await self._events.warning(claim, "VolumeResizeFailed", str(e))
            raise e if isinstance(e, FusevolError) else FusevolError(str(e)) from e
        size = {"storage": quantity.format_bytes(wanted)}

        def grown(current: Obj) -> None:
            current["spec"]["capacity"] = size

        def granted(current: Obj) -> None:
            current["status"] = {**current["status"], "capacity": size}

        await self._store.change(objects.key(volume), grown, uid=volume["metadata"]["uid"])
        await self._store.change(objects.key(claim), granted, uid=claim["metadata"]["uid"])
        await self._events.normal(claim, "VolumeResizeSuccessful", f"The volume now holds {size['storage']}.")
