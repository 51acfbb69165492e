"""The Node service: volumes staged and published on this node.

Both are attachments, as the mounts of Pods and of ``fusevol mount`` are: a volume has one FUSE mount in the state
directory, and each target path is a bind mount of that. So all that survives a kill does here, too. What ends
with the boot is forgotten at the first start after it (a kubelet stages and publishes again), but for inline volumes,
whose data is the Pod's.

A staged volume is served, and nothing is mounted at its staging path: a kubelet unstages no volume of which there is
another mount outside of its own directory (``HasMountRefs``), and the one in the state directory is such a mount.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from pathlib import Path
from typing import Final

from agent.csi import csi_pb2 as pb
from agent.csi import fields, inline, topology
from agent.csi.controller import expand, well
from agent.csi.fields import Capability, Mode, Terms
from agent.csi.refusal import Code, Refused, invalid
from agent.csi.settings import Settings
from agent.csi.volumes import Condition, Handle, Locks, Volumes
from agent.hazard import Hazard, Hazards
from agent.poolplace import Room
from agent.steps import Step, no_step
from agent.volumes import ownership, places
from agent.volumes.attachments import Attachment, boot_id
from agent.volumes.ownership import Group
from fusevol.errors import FusevolError, UnavailableError

_Rpc = pb.NodeServiceCapability.RPC
_CAN: Final = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.VOLUME_MOUNT_GROUP,
)
_NODE_ID_LIMIT: Final = 256
"""Bytes."""

log = logging.getLogger(__name__)


class Node:
    """For the trio loop."""

    def __init__(
        self,
        *,
        volumes: Volumes,
        locks: Locks,
        hazards: Hazards,
        settings: Settings,
        node: str,
        step: Step = no_step,
    ) -> None:
        self._volumes = volumes
        self._mounter = volumes.mounter
        self._locks = locks
        self._hazards = hazards
        self._settings = settings
        self._node = node
        self._boot = boot_id()
        self._step = step

    async def node_get_info(self, _request: pb.NodeGetInfoRequest) -> pb.NodeGetInfoResponse:
        """Who this node is, and where its volumes can be reached."""
        return pb.NodeGetInfoResponse(
            node_id=self._node.encode()[:_NODE_ID_LIMIT].decode(errors="ignore"),
            max_volumes_per_node=self._settings.max_volumes,
            accessible_topology=topology.of(self._node),
        )

    async def node_get_capabilities(self, _request: pb.NodeGetCapabilitiesRequest) -> pb.NodeGetCapabilitiesResponse:
        """What is here."""
        return pb.NodeGetCapabilitiesResponse(
            capabilities=[pb.NodeServiceCapability(rpc=_Rpc(type=one)) for one in _CAN]
        )

    # -- staged

    async def node_stage_volume(self, request: pb.NodeStageVolumeRequest) -> pb.NodeStageVolumeResponse:
        """Serve a volume; its staging path stays empty (see above)."""
        fields.text(request.volume_id, "volume_id")
        fields.text(request.staging_target_path, "staging_target_path", fields.PATH_LIMIT)
        how = fields.capability(
            request.volume_capability,
            present=request.HasField("volume_capability"),
            unsupported=Code.FAILED_PRECONDITION,
        )
        handle, _ = await self._volumes.get(request.volume_id)
        path = fields.absolute(request.staging_target_path, "staging_target_path")
        async with self._locks.hold(handle.volume):
            target = await self._resolved(path)
            wanted = self._attachment(handle, target, how, "stage", read_only=how.read_only)
            wanted = dataclasses.replace(wanted, bare=True)
            self._check_taken(wanted)
            await self._mounter.attach(wanted)
            await self._give_to_group(wanted, how)
        return pb.NodeStageVolumeResponse()

    async def node_unstage_volume(self, request: pb.NodeUnstageVolumeRequest) -> pb.NodeUnstageVolumeResponse:
        """Undo that; the directory is the CO's and stays."""
        fields.text(request.volume_id, "volume_id")
        path = fields.absolute(request.staging_target_path, "staging_target_path")
        async with self._locks.hold(_lock_name(request.volume_id)):
            await self._detach(request.volume_id, await self._resolved(path), "stage")
        return pb.NodeUnstageVolumeResponse()

    # -- published

    async def node_publish_volume(self, request: pb.NodePublishVolumeRequest) -> pb.NodePublishVolumeResponse:
        """Show a staged volume, or one that a Pod has inline, at a target."""
        fields.text(request.volume_id, "volume_id")
        fields.text(request.target_path, "target_path", fields.PATH_LIMIT)
        how = fields.capability(
            request.volume_capability,
            present=request.HasField("volume_capability"),
            unsupported=Code.FAILED_PRECONDITION,
        )
        context = fields.mapping(request.volume_context, "volume_context")
        read_only = request.readonly or how.read_only
        if inline.is_inline(context):
            await self._publish_inline(request, context, how, read_only=read_only)
            return pb.NodePublishVolumeResponse()
        handle, _ = await self._volumes.get(request.volume_id)
        path = fields.absolute(request.target_path, "target_path")
        if not request.staging_target_path:
            raise Refused(Code.FAILED_PRECONDITION, "The request lacks staging_target_path: stage the volume first.")
        staging = fields.absolute(request.staging_target_path, "staging_target_path")
        async with self._locks.hold(handle.volume):
            staged = self._mounter.attachments.find(await self._resolved(staging))
            if staged is None or not _is(staged, request.volume_id, "stage"):
                raise Refused(Code.FAILED_PRECONDITION, f"The volume is not staged at {staging}.")
            target = await self._resolved(path)
            wanted = self._attachment(handle, target, how, "publish", read_only=read_only or staged.read_only)
            self._check_taken(wanted)
            self._check_alone(handle, wanted, how)
            await self._mounter.attach(wanted)
            await self._give_to_group(wanted, how)
        return pb.NodePublishVolumeResponse()

    async def node_unpublish_volume(self, request: pb.NodeUnpublishVolumeRequest) -> pb.NodeUnpublishVolumeResponse:
        """Undo that, and remove the target; an inline volume ends."""
        fields.text(request.volume_id, "volume_id")
        path = fields.absolute(request.target_path, "target_path")
        async with self._locks.hold(_lock_name(request.volume_id)):
            target = await self._resolved(path)
            if await self._detach(request.volume_id, target, "publish"):
                # also where it was there before: it must be gone (an empty directory, with nothing mounted on it)
                await self._at(target).run(lambda: places.remove_target(Path(target)))
        return pb.NodeUnpublishVolumeResponse()

    async def _publish_inline(
        self, request: pb.NodePublishVolumeRequest, context: dict[str, str], how: Capability, *, read_only: bool
    ) -> None:
        asked = inline.read(request.volume_id, context, self._settings.host_paths)
        path = fields.absolute(request.target_path, "target_path")
        async with self._locks.hold(_lock_name(request.volume_id)):
            target = await self._resolved(path)
            terms = how.terms(request.volume_id, "publish")
            if isinstance(asked, inline.HostPath):
                await self._hazards.of(f"The path {asked.root}").run(lambda: inline.check(asked))
                row = Attachment(
                    target=target,
                    kind="hostPath",
                    path=str(asked.root),
                    sub_path=asked.inside,
                    read_only=read_only,
                    user=target,
                    csi=terms,
                    boot=self._boot,
                )
                self._check_taken(row)
                await self._mounter.attach(row)
                return
            pools = self._volumes.pools
            pool = asked.pool or pools.preferred
            if pool not in pools.names:
                raise invalid(f'There is no pool "{pool}" on this node.')
            handle = Handle(pool, asked.request.id)
            row = self._attachment(handle, target, how, "publish", read_only=read_only, terms=terms)
            self._check_taken(row)
            if others := [r for r in self._volumes.attachments(handle) if r.target != target]:
                raise Refused(Code.FAILED_PRECONDITION, f"The Pod's volume is published at {others[0].target} already.")
            await self._mounter.attach(row, lambda: pools.provision(pool, asked.request))
            await self._give_to_group(row, how)

    # -- asked about

    async def node_get_volume_stats(self, request: pb.NodeGetVolumeStatsRequest) -> pb.NodeGetVolumeStatsResponse:
        """What a volume uses of what it may, and how it is."""
        fields.text(request.volume_id, "volume_id")
        fields.text(request.volume_path, "volume_path", fields.PATH_LIMIT)
        row = await self._row(request.volume_id, request.volume_path, request.staging_target_path)
        if not row.mount_id:
            room = Room.of(await self._at(row.target).run(lambda: os.statvfs(row.target)))
            return pb.NodeGetVolumeStatsResponse(usage=_usage(room, Condition()), volume_condition=well(""))
        seen = await self._volumes.condition(row.pool, row.mount_id)
        try:
            # not of the mount, which nobody of the agent looks into: what its server and its pool say is the same
            usage = _usage(await self._volumes.pools.room(row.pool), seen)
        except UnavailableError as e:
            return pb.NodeGetVolumeStatsResponse(volume_condition=well(seen.message or e.message))
        return pb.NodeGetVolumeStatsResponse(usage=usage, volume_condition=well(seen.message))

    async def node_expand_volume(self, request: pb.NodeExpandVolumeRequest) -> pb.NodeExpandVolumeResponse:
        """The controller's part has told the server already; what is left is to see that the volume is large enough."""
        fields.text(request.volume_id, "volume_id")
        fields.text(request.volume_path, "volume_path", fields.PATH_LIMIT)
        size = fields.capacity_range(request.capacity_range, present=request.HasField("capacity_range"))
        if request.HasField("volume_capability"):
            fields.capability(request.volume_capability, unsupported=Code.INVALID_ARGUMENT)
        await self._volumes.get(request.volume_id)
        await self._row(request.volume_id, request.volume_path, request.staging_target_path)
        return pb.NodeExpandVolumeResponse(
            capacity_bytes=await expand(self._volumes, self._locks, request.volume_id, size)
        )

    # -- after a reboot

    async def forget_earlier_boots(self) -> None:
        """What was staged and published before the machine was started is so no longer, whatever the CO does next.

        An inline volume is kept until its Pod's directory is gone: the same Pod may come back, and then has its data.
        """
        for row in self._mounter.attachments:
            if row.boot in {"", self._boot}:
                continue
            if row.owned:
                parent = Path(row.target).parent
                try:
                    there = await self._hazards.of(f"The directory {parent}").run(parent.exists)
                except FusevolError:
                    there = True
                if there:
                    continue
                with contextlib.suppress(FusevolError):
                    await self._mounter.detach(row.target)
            else:
                await self._mounter.attachments.remove(row.target)
            log.info("What was at %s ended with the last boot.", row.target)

    # -- common

    def _attachment(
        self, handle: Handle, target: str, how: Capability, role: str, *, read_only: bool, terms: str = ""
    ) -> Attachment:
        return Attachment(
            target=target,
            kind="emptyDir" if terms else "persistent",
            pool=handle.pool,
            volume=handle.volume,
            read_only=read_only,
            cache=how.cache,
            alone=how.mode in fields.ONE_NODE and not terms,
            transport=how.transport,
            passthrough=how.passthrough,
            user=target,
            owned=bool(terms),
            csi=terms or how.terms(str(handle), role),
            boot=self._boot,
        )

    def _check_taken(self, wanted: Attachment) -> None:
        """Raise INVALID_ARGUMENT where nothing may be mounted, and ALREADY_EXISTS if the target shows something else or
        in another way."""
        self._mounter.check_target(wanted.target)
        known = self._mounter.attachments.find(wanted.target)
        if known is not None and not known.same(wanted):
            raise Refused(
                Code.ALREADY_EXISTS, f"{wanted.target} shows this volume in another way, or another volume, already."
            )

    def _check_alone(self, handle: Handle, wanted: Attachment, how: Capability) -> None:
        """Raise FAILED_PRECONDITION where the access mode lets a volume have one target only, and it has another."""
        for row in self._volumes.attachments(handle):
            terms = Terms.read(row.csi)
            if row.target == wanted.target or (terms is not None and terms.role == "stage"):
                continue
            alone = not {how.mode, terms.mode if terms is not None else how.mode} <= fields.SHARED
            if alone:
                raise Refused(
                    Code.FAILED_PRECONDITION,
                    f"The access mode {Mode.Mode.Name(how.mode)} allows one target, and the volume is at {row.target}.",
                )

    async def _detach(self, volume_id: str, target: str, role: str) -> bool:
        """Undo what a volume has at a target; whether the target is now free, as far as CSI goes."""
        row = self._mounter.attachments.find(target)
        if row is None:
            return True
        if not _is(row, volume_id, role):
            return False
        await self._mounter.detach(target)
        return True

    async def _row(self, volume_id: str, *paths: str) -> Attachment:
        """What a volume has at one of *paths*. Raises NOT_FOUND."""
        for path in filter(None, paths):
            if path.startswith("/"):
                row = self._mounter.attachments.find(await self._resolved(fields.absolute(path, "volume_path")))
                if row is not None and _is(row, volume_id, "stage", "publish"):
                    return row
        raise Refused(Code.NOT_FOUND, "There is no such volume at that path.")

    async def _resolved(self, path: str) -> str:
        """*path* with the symbolic links of its parent resolved; the last component may be a mount that hangs."""
        parent, name = os.path.split(path)
        where = self._hazards.of(f"The directory {parent}")
        return os.path.join(await where.run(lambda: os.path.realpath(parent)), name)

    def _at(self, target: str) -> Hazard:
        return self._hazards.of(f"The mount at {target}")

    async def _give_to_group(self, row: Attachment, how: Capability) -> None:
        """Let a group use the volume. All that is in it is walked through once for each new group: what is made in it
        later is the group's, so a root directory that is the group's tells that nothing is left to do.

        Through the volume's own mount, whose kernel keeps attributes for as long as it likes.
        """
        if how.group is None or not row.mount_id:
            return
        point, group = str(self._mounter.point(row.mount_id)), Group(how.group, "OnRootMismatch")

        def give() -> None:
            root = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                ownership.give(root, group, read_only=row.read_only)
            finally:
                os.close(root)

        try:
            await self._at(point).run(give)
        except OSError as e:
            raise UnavailableError(f"The volume cannot be given to the group {how.group}: {e.strerror}.") from e
        self._step("given to the group")


def _is(row: Attachment, volume_id: str, *roles: str) -> bool:
    terms = Terms.read(row.csi)
    return terms is not None and terms.id == volume_id and terms.role in roles


def _lock_name(volume_id: str) -> str:
    """The lock of a volume that may not exist any more, or be a Pod's own."""
    handle = Handle.parse(volume_id)
    return handle.volume if handle is not None else volume_id


def _usage(room: Room, seen: Condition) -> list[pb.VolumeUsage]:
    """A volume's own numbers where it has limits and is counted, else those of the filesystem that it is on."""

    def one(
        unit: pb.VolumeUsage.Unit, used: int | None, limit: int | None, room: tuple[int, int, int]
    ) -> pb.VolumeUsage:
        total, available, on_filesystem = room
        if limit is not None and used is not None:
            total, available = limit, min(available, max(0, limit - used))
        shown = on_filesystem if used is None else used
        return pb.VolumeUsage(unit=unit, total=total, available=available, used=shown)

    return [
        one(pb.VolumeUsage.BYTES, seen.used_bytes, seen.limit_bytes, room[:3]),
        one(pb.VolumeUsage.INODES, seen.used_inodes, seen.limit_inodes, room[3:]),
    ]
