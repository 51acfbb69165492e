"""The GroupController service: snapshots of several volumes, all of one moment.

While they are made nobody mounts or unmounts one of the volumes through CSI, and programs that use them wait. What a
group is stands in the labels of its members: a group of which one is missing was never finished, and is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Final

import trio

from agent.csi import csi_pb2 as pb
from agent.csi import fields, parameters
from agent.csi.refusal import Code, Refused, invalid
from agent.csi.snapshots import GROUP, GROUP_OF, refuse_parameters, shown
from agent.csi.sources import Jobs
from agent.csi.volumes import KIND, Handle, Locks, Volumes
from fusevol.pool import Volume

_NAME: Final = "group-name"
_Rpc = pb.GroupControllerServiceCapability.RPC
Members = list[tuple[Handle, Volume]]


class GroupController:
    """For the trio loop."""

    def __init__(self, volumes: Volumes, locks: Locks, jobs: Jobs[Members]) -> None:
        self._volumes = volumes
        self._locks = locks
        self._jobs = jobs

    async def group_controller_get_capabilities(
        self, _request: pb.GroupControllerGetCapabilitiesRequest
    ) -> pb.GroupControllerGetCapabilitiesResponse:
        """All that there is."""
        can = _Rpc(type=_Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        return pb.GroupControllerGetCapabilitiesResponse(capabilities=[pb.GroupControllerServiceCapability(rpc=can)])

    async def create_volume_group_snapshot(
        self, request: pb.CreateVolumeGroupSnapshotRequest
    ) -> pb.CreateVolumeGroupSnapshotResponse:
        """Keep what several volumes have at one moment; the same request again finds it kept."""
        name = fields.name(request.name)
        if not request.source_volume_ids:
            raise invalid("The request lacks source_volume_ids.")
        refuse_parameters(request.parameters)
        sources = sorted({self._source(text) for text in request.source_volume_ids})
        group, of = parameters.volume_id(name), json.dumps([str(source) for source in sources])
        async with self._locks.hold(f"group {group}"):
            found = await self._members(group, {source.pool for source in sources})
            if any(one.labels[GROUP_OF] != of or one.labels[_NAME] != name for _, one in found):
                raise Refused(Code.ALREADY_EXISTS, f"The group snapshot {name} exists, of other volumes.")
            if len(found) < len(sources):
                for source in sources:
                    await self._volumes.get(str(source))
                labels = {"kind": KIND, GROUP: group, _NAME: name, GROUP_OF: of}
                found = await self._jobs.result(f"group {group}", lambda: self._make(sources, found, labels))
        return pb.CreateVolumeGroupSnapshotResponse(group_snapshot=_group(group, found))

    def _source(self, text: str) -> Handle:
        handle = Handle.parse(fields.text(text, "a source_volume_id"))
        if handle is None or handle.pool not in self._volumes.pools.names:
            raise Refused(Code.NOT_FOUND, "There is no such volume.")
        return handle

    async def _make(self, sources: Sequence[Handle], unfinished: Members, labels: dict[str, str]) -> Members:
        await self._remove(unfinished)
        pools, made = self._volumes.pools, Members()
        try:
            async with contextlib.AsyncExitStack() as stack:
                for source in sources:
                    await stack.enter_async_context(self._locks.hold(source.volume))
                stills = [self._volumes.mounter.still(*source) for source in sources]
                for still in stills:
                    await stack.enter_async_context(still)
                for source in sources:
                    identity = f"csi-{hashlib.sha256(f'{labels[GROUP]} {source}'.encode()).hexdigest()[:40]}"
                    kept = await pools.snapshot(*source, identity, self._volumes.held_already(), labels)
                    made.append((Handle(source.pool, identity), kept))
                for still in stills:
                    await trio.to_thread.run_sync(still.end)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._remove(made)
            raise
        return made

    async def _remove(self, members: Members) -> None:
        for handle, _ in members:
            await self._volumes.pools.delete_snapshot(*handle)

    async def delete_volume_group_snapshot(
        self, request: pb.DeleteVolumeGroupSnapshotRequest
    ) -> pb.DeleteVolumeGroupSnapshotResponse:
        """Remove all snapshots of a group; nothing to do for one that is not there."""
        group = fields.text(request.group_snapshot_id, "group_snapshot_id")
        async with self._locks.hold(f"group {group}"):
            await self._remove(await self._members(group, self._pools(request.snapshot_ids)))
        return pb.DeleteVolumeGroupSnapshotResponse()

    async def get_volume_group_snapshot(
        self, request: pb.GetVolumeGroupSnapshotRequest
    ) -> pb.GetVolumeGroupSnapshotResponse:
        """A group."""
        group = fields.text(request.group_snapshot_id, "group_snapshot_id")
        found = await self._members(group, self._pools(request.snapshot_ids))
        if not found or len(found) < len(json.loads(found[0][1].labels[GROUP_OF])):
            raise Refused(Code.NOT_FOUND, "There is no such group snapshot.")
        return pb.GetVolumeGroupSnapshotResponse(group_snapshot=_group(group, found))

    def _pools(self, snapshots: Sequence[str]) -> set[str]:
        """Where the members of a group may be: a pool that hangs matters to its own only, if the CO says which."""
        known = {handle.pool for handle in map(Handle.parse, snapshots) if handle is not None}
        return known & set(self._volumes.pools.names) or set(self._volumes.pools.names)

    async def _members(self, group: str, pools: set[str]) -> Members:
        found: Members = []
        for pool in sorted(pools):
            kept = await self._volumes.pools.run(pool, lambda p: p.snapshots())
            found += [(Handle(pool, one.id), one) for one in kept if one.labels.get(GROUP) == group]
        return found


def _group(group: str, members: Members) -> pb.VolumeGroupSnapshot:
    snapshots = [shown(handle, one) for handle, one in sorted(members, key=lambda member: member[0])]
    return pb.VolumeGroupSnapshot(
        group_snapshot_id=group,
        snapshots=snapshots,
        creation_time=max((one.creation_time for one in snapshots), key=lambda time: time.seconds),
        ready_to_use=True,
    )
