"""Carries out what the decisions ask for. Every action may be interrupted and carried out again."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import Any, assert_never

from agent.controllers import matching, provisioning, snapshots
from agent.controllers.moving import move_of
from agent.controllers.view import (
    BACKEND_FINALIZER,
    Action,
    Create,
    Delete,
    Discard,
    DropSnapshot,
    Event,
    Expand,
    Provision,
    Put,
    Reclaim,
    Source,
    TakeSnapshot,
    being_deleted,
    class_of,
    finalizers,
    phase,
    volume_name,
)
from agent.events import Recorder
from agent.pools import Pools
from agent.shares import Shares
from agent.steps import Step, no_step
from agent.store import Store, now
from agent.volumes.attachments import mount_id
from agent.volumes.mounter import Mounter
from fusevol import objects, quantity
from fusevol.errors import AlreadyExistsError, FusevolError, InvalidError, NotFoundError, UnavailableError
from fusevol.pool import Volume, VolumeRequest

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
                case Create(obj):
                    await self._create(obj)
                case Delete(obj):
                    await self._delete(obj)
                case Event(regarding, reason, message, warning):
                    tell = self._events.warning if warning else self._events.normal
                    await tell(regarding, reason, message)
                case Provision(claim, storage_class, source):
                    await self._provision(claim, storage_class, source)
                case Reclaim(volume):
                    await self._reclaim(volume)
                case Discard(claim):
                    await self._discard(claim)
                case Expand(claim, volume):
                    await self._expand(claim, volume)
                case TakeSnapshot(content):
                    await self._take_snapshot(content)
                case DropSnapshot(content):
                    await self._drop_snapshot(content)
                case _:
                    assert_never(action)

    async def _create(self, obj: Obj) -> None:
        try:
            await self._store.create(objects.admit(obj))
        except AlreadyExistsError:
            return
        self._step(f"create {obj['kind']}")

    async def _delete(self, obj: Obj) -> None:
        try:
            await self._store.delete(objects.key(obj), uid=obj["metadata"]["uid"])
        except NotFoundError:
            return
        self._step(f"delete {obj['kind']}")

    async def _provision(self, claim: Obj, storage_class: Obj, source: Source | None) -> None:
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
            request = VolumeRequest(
                id=made.volume,
                capacity_bytes=made.capacity,
                inode_limit=made.inodes,
                enforced=made.enforced,
                owner=made.owner,
                mode=made.mode,
                labels=made.labels,
                shared=made.shared,
            )
            volume = await self._made(made.pool, request, source, claim)
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

    async def _made(self, pool: str, request: VolumeRequest, source: Source | None, claim: Obj) -> Volume:
        if source is None:
            return await self._pools.provision(pool, request)
        where, name = provisioning.parse_handle(source.handle)
        still = self._mounter.still(where, name)
        made = await self._pools.fill(pool, request, where, name, snapshot=source.kind == "snapshot", still=still)
        if still.warning:
            await self._events.warning(claim, "CloneNotAtomic", still.warning)
        return made

    async def _take_snapshot(self, content: Obj) -> None:
        """Take a content's snapshot, or find the one that it names, and tell in its status how that went."""
        key, uid, named = objects.key(content), content["metadata"]["uid"], content["spec"]["source"]
        try:
            if "snapshotHandle" in named:
                pool, name = provisioning.parse_handle(named["snapshotHandle"])
                made = await self._pools.find_snapshot(pool, name)
            else:
                pool, volume = provisioning.parse_handle(named["volumeHandle"])
                still = self._mounter.still(pool, volume)
                made = await self._pools.snapshot(pool, volume, snapshots.snapshot_id(content), still)
                if still.warning:
                    await self._events.warning(content, "SnapshotNotAtomic", still.warning)
        except (FusevolError, OSError) as e:
            reason = f"Failed to create snapshot: {e}"

            def fail(current: Obj) -> None:
                current["status"] = {"readyToUse": False, "error": {"message": reason, "time": now()}}

            if ((content.get("status") or {}).get("error") or {}).get("message") != reason:
                await self._store.change(key, fail, uid=uid)
                await self._events.warning(content, "SnapshotCreationFailed", reason)
            raise e if isinstance(e, FusevolError) else FusevolError(reason) from e
        self._step("snapshot taken")
        status = {
            "snapshotHandle": provisioning.handle(pool, made.id),
            "creationTime": int(dt.datetime.fromisoformat(made.created).timestamp()) * 1_000_000_000,
            "restoreSize": made.capacity_bytes or 0,
            "readyToUse": True,
        }

        def ready(current: Obj) -> None:
            current["status"] = status

        await self._store.change(key, ready, uid=uid)
        self._step("snapshot told")

    async def _drop_snapshot(self, content: Obj) -> None:
        """Delete a content's snapshot, then let the content go."""
        handle = (content.get("status") or {}).get("snapshotHandle") or content["spec"]["source"].get("snapshotHandle")
        if handle:
            pool, name = provisioning.parse_handle(handle)
        else:  # it may have been taken and not told
            pool, _ = provisioning.parse_handle(content["spec"]["source"]["volumeHandle"])
            name = snapshots.snapshot_id(content)
        try:
            await self._pools.delete_snapshot(pool, name)
        except (FusevolError, OSError) as e:
            await self._events.warning(content, "SnapshotDeleteError", f"Failed to delete snapshot: {e}")
            raise e if isinstance(e, FusevolError) else FusevolError(str(e)) from e
        self._step("snapshot in the trash")

        def let_go(current: Obj) -> None:
            kept = [f for f in finalizers(current) if f != snapshots.CONTENT_PROTECTION]
            current["metadata"]["finalizers"] = kept

        try:
            await self._store.change(objects.key(content), let_go, uid=content["metadata"]["uid"])
        except NotFoundError:
            return
        self._step("content let go")

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
        current = self._store.find(objects.key(volume))
        pool, made = provisioning.parse_handle(str(provisioning.handle_of(volume)))
        try:
            if current is not None and move_of(current) is not None:
                raise UnavailableError("The volume is being moved to another pool: it grows when that is done.")
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
