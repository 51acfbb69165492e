"""The Controller service: volumes made, grown, listed and removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.wrappers_pb2 import Int64Value

from agent.controllers import provisioning
from agent.csi import csi_pb2 as pb
from agent.csi import fields, paging, parameters, topology
from agent.csi.refusal import Code, Refused, invalid
from agent.csi.snapshots import Snapshots
from agent.csi.sources import Jobs, Source
from agent.csi.volumes import KIND, Handle, Locks, Volumes
from fusevol.errors import CorruptError, InvalidError, NotFoundError
from fusevol.pool import Volume, VolumeRequest

_Rpc = pb.ControllerServiceCapability.RPC
_CAN: Final = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.GET_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.MODIFY_VOLUME,
)
_FINDS_ITS_NODE: Final = {_Rpc.EXPAND_VOLUME, _Rpc.MODIFY_VOLUME}
"""What external-resizer asks of one driver for all nodes. Without them it leaves the growing to NodeExpandVolume, and
there is no VolumeAttributesClass."""


class Controller:
    """For the trio loop."""

    def __init__(
        self, volumes: Volumes, locks: Locks, jobs: Jobs[Volume], node: str, *, per_node: bool = False
    ) -> None:
        """*per_node*: other nodes have drivers of their own, and a call about a volume may come to the wrong one."""
        self._jobs = jobs
        self._snapshots = Snapshots(volumes, locks, jobs)
        self._can = [one for one in _CAN if not (per_node and one in _FINDS_ITS_NODE)]
        self._volumes = volumes
        self._locks = locks
        self._node = node

    async def controller_get_capabilities(
        self, _request: pb.ControllerGetCapabilitiesRequest
    ) -> pb.ControllerGetCapabilitiesResponse:
        """What is here."""
        return pb.ControllerGetCapabilitiesResponse(
            capabilities=[pb.ControllerServiceCapability(rpc=_Rpc(type=one)) for one in self._can]
        )

    # -- made and removed

    async def create_volume(self, request: pb.CreateVolumeRequest) -> pb.CreateVolumeResponse:
        """Make a volume; the same request again finds it made."""
        name = fields.name(request.name)
        fields.capabilities(request.volume_capabilities, Code.INVALID_ARGUMENT)
        size = fields.capacity_range(request.capacity_range, present=request.HasField("capacity_range"))
        wanted = parameters.wanted(request.parameters, request.mutable_parameters)
        source = None
        if request.HasField("volume_content_source"):
            source = Source.read(request.volume_content_source, self._volumes.pools.names)
        pool = wanted.pool or (source.handle.pool if source is not None else self._volumes.pools.preferred)
        if pool not in self._volumes.pools.names:
            raise invalid(f'There is no pool "{pool}" on this node.')
        if not topology.reachable(self._node, request.accessibility_requirements):
            raise Refused(Code.RESOURCE_EXHAUSTED, f"This is {self._node}: its pools cannot be reached from elsewhere.")
        handle = Handle(pool, parameters.volume_id(name))
        async with self._locks.hold(handle.volume):
            found = await self._volumes.find(*handle)
            if found is None:
                other = await self._volumes.elsewhere(pool, lambda p: p.volume(handle.volume))
                if other is not None:
                    raise Refused(Code.ALREADY_EXISTS, f"The volume {name} exists in the pool {other}.")
                found = await self._provision(handle, name, size, wanted, source)
            _check_same(found, name, size, wanted, source)
        return pb.CreateVolumeResponse(volume=self._shown(handle, found))

    async def _provision(
        self, handle: Handle, name: str, size: fields.Range, wanted: parameters.Wanted, source: Source | None
    ) -> Volume:
        pools = self._volumes.pools
        content = await source.find(self._volumes) if source is not None else None
        capacity = size.choose(content.capacity_bytes or 0 if content is not None else 0)
        total = (await pools.room(handle.pool)).total
        if capacity > total:
            raise Refused(
                Code.RESOURCE_EXHAUSTED, f"The pool {handle.pool} has {total} bytes in all: it cannot hold {capacity}."
            )
        request = VolumeRequest(
            id=handle.volume,
            capacity_bytes=capacity,
            inode_limit=wanted.inodes,
            enforced=wanted.enforced,
            owner=wanted.owner,
            mode=wanted.mode,
            labels={
                "kind": KIND,
                "name": name,
                "asked": wanted.asked,
                **({"source": str(source)} if source else {}),
                **provisioning.retention_label(wanted.retention),
            },
        )
        if source is None:
            return await pools.provision(handle.pool, request)
        where, still = source.handle, self._volumes.mounter.still(*source.handle)

        async def copy() -> Volume:
            return await pools.fill(
                handle.pool, request, where.pool, where.volume, snapshot=source.is_snapshot, still=still
            )

        return await self._jobs.result(f"volume {handle}", copy)

    async def delete_volume(self, request: pb.DeleteVolumeRequest) -> pb.DeleteVolumeResponse:
        """Remove a volume that nobody uses; nothing to do for one that is not there."""
        handle = Handle.parse(fields.text(request.volume_id, "volume_id"))
        if handle is None or handle.pool not in self._volumes.pools.names:
            return pb.DeleteVolumeResponse()
        async with self._locks.hold(handle.volume):
            try:
                await self._volumes.get(str(handle))
            except Refused as e:
                if e.code == Code.NOT_FOUND:
                    return pb.DeleteVolumeResponse()
                raise
            except CorruptError:
                pass  # its maker wants it gone, and that works for a damaged one as well
            if used := self._volumes.attachments(handle):
                raise Refused(
                    Code.FAILED_PRECONDITION, f"The volume is in use at {used[0].target}: unpublish it first."
                )
            try:
                await self._volumes.pools.discard(*handle)
            except (NotFoundError, InvalidError):
                return pb.DeleteVolumeResponse()
        return pb.DeleteVolumeResponse()

    # -- looked at

    async def validate_volume_capabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        """Whether a volume can be used as is asked. That it cannot is an answer, not an error."""
        fields.text(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise invalid("The request lacks volume_capabilities.")
        _, volume = await self._volumes.get(request.volume_id)
        try:
            fields.capabilities(request.volume_capabilities, Code.INVALID_ARGUMENT)
            _check_parameters(volume, request.parameters, request.mutable_parameters)
        except Refused as e:
            return pb.ValidateVolumeCapabilitiesResponse(message=str(e))
        return pb.ValidateVolumeCapabilitiesResponse(
            confirmed=pb.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
                mutable_parameters=request.mutable_parameters,
            )
        )

    async def list_volumes(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        """The volumes that were made here, in the order of their handles."""
        found: list[tuple[Handle, Volume]] = []
        for pool in self._volumes.pools.names:
            listed = await self._volumes.pools.volumes(pool)
            found += [(Handle(pool, v.id), v) for v in listed if v.labels.get("kind") == KIND]
        page, token = paging.page(found, request.max_entries, request.starting_token, self._volumes.pools.names)
        return pb.ListVolumesResponse(
            entries=[
                pb.ListVolumesResponse.Entry(
                    volume=self._shown(handle, volume),
                    status=pb.ListVolumesResponse.VolumeStatus(
                        volume_condition=well(self._volumes.glance(handle.pool, handle.mount_id))
                    ),
                )
                for handle, volume in page
            ],
            next_token=token,
        )

    async def controller_get_volume(self, request: pb.ControllerGetVolumeRequest) -> pb.ControllerGetVolumeResponse:
        """A volume, and how it is."""
        fields.text(request.volume_id, "volume_id")
        handle, volume = await self._volumes.get(request.volume_id)
        condition = await self._volumes.condition(handle.pool, handle.mount_id)
        return pb.ControllerGetVolumeResponse(
            volume=self._shown(handle, volume),
            status=pb.ControllerGetVolumeResponse.VolumeStatus(volume_condition=well(condition.message)),
        )

    async def get_capacity(self, request: pb.GetCapacityRequest) -> pb.GetCapacityResponse:
        """What is free in a pool; nothing for a volume that this node could not make."""
        nothing = pb.GetCapacityResponse(available_capacity=0)
        try:
            wanted = parameters.wanted(request.parameters, {})
            if request.volume_capabilities:
                fields.capabilities(request.volume_capabilities, Code.INVALID_ARGUMENT)
        except Refused:
            return nothing
        pool = wanted.pool or self._volumes.pools.preferred
        if pool not in self._volumes.pools.names or not topology.matches(self._node, request.accessible_topology):
            return nothing
        # no maximum_volume_size: a scheduler would look at that alone, and a full pool seem as good as an empty one
        available = (await self._volumes.pools.room(pool)).available
        return pb.GetCapacityResponse(
            available_capacity=available, minimum_volume_size=Int64Value(value=fields.SMALLEST)
        )

    # -- snapshots

    async def create_snapshot(self, request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
        """See :meth:`Snapshots.create`."""
        return await self._snapshots.create(request)

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest) -> pb.DeleteSnapshotResponse:
        """See :meth:`Snapshots.delete`."""
        return await self._snapshots.delete(request)

    async def list_snapshots(self, request: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        """See :meth:`Snapshots.listed`."""
        return await self._snapshots.listed(request)

    # -- changed

    async def controller_expand_volume(
        self, request: pb.ControllerExpandVolumeRequest
    ) -> pb.ControllerExpandVolumeResponse:
        """Raise the limit, of a mounted volume too: nothing is left for the node to do."""
        fields.text(request.volume_id, "volume_id")
        size = fields.capacity_range(request.capacity_range, present=request.HasField("capacity_range"), required=True)
        if request.HasField("volume_capability"):
            fields.capability(request.volume_capability, unsupported=Code.INVALID_ARGUMENT)
        capacity = await expand(self._volumes, self._locks, request.volume_id, size)
        return pb.ControllerExpandVolumeResponse(capacity_bytes=capacity, node_expansion_required=False)

    async def controller_modify_volume(
        self, request: pb.ControllerModifyVolumeRequest
    ) -> pb.ControllerModifyVolumeResponse:
        """Change limits beside the size."""
        fields.text(request.volume_id, "volume_id")
        limits = parameters.mutable_limits(request.mutable_parameters)
        handle, _ = await self._volumes.get(request.volume_id)
        async with self._locks.hold(handle.volume):
            _, volume = await self._volumes.get(request.volume_id)
            if limits and volume.quota == "none":
                raise invalid(f'The volume {handle} was made with quota "none": nobody counts its inodes.')
            if limits:
                await self._volumes.mounter.set_limits(
                    *handle, handle.mount_id, volume.capacity_bytes, limits["inodes"]
                )
        return pb.ControllerModifyVolumeResponse()

    def _shown(self, handle: Handle, volume: Volume) -> pb.Volume:
        return pb.Volume(
            volume_id=str(handle),
            capacity_bytes=volume.capacity_bytes or 0,
            accessible_topology=[topology.of(self._node)],
            content_source=source.shown() if (source := Source.remembered(volume.labels.get("source", ""))) else None,
        )


async def expand(volumes: Volumes, locks: Locks, volume_id: str, size: fields.Range) -> int:
    """Have a volume at least as large as is required; the bytes that it has then."""
    handle, _ = await volumes.get(volume_id)
    async with locks.hold(handle.volume):
        _, volume = await volumes.get(volume_id)
        current = volume.capacity_bytes or 0
        capacity = max(current, size.required)
        if not size.allows(capacity):
            raise Refused(Code.OUT_OF_RANGE, f"The volume has {current} bytes already, and does not shrink.")
        total = (await volumes.pools.room(handle.pool)).total
        if capacity > current and capacity > total:
            raise Refused(Code.OUT_OF_RANGE, f"The pool {handle.pool} has {total} bytes in all.")
        # also when it is large enough: who wrote that down may have died before the server was told
        await volumes.mounter.set_limits(*handle, handle.mount_id, capacity)
    return capacity


def _check_same(found: Volume, name: str, size: fields.Range, wanted: parameters.Wanted, source: Source | None) -> None:
    """Raise ALREADY_EXISTS unless *found* is what a CreateVolume request asks for."""
    labels = found.labels
    if labels.get("kind") != KIND or labels.get("name") != name:
        raise Refused(Code.ALREADY_EXISTS, f"Another volume has the id {found.id}.")
    if not size.allows(found.capacity_bytes or 0):
        raise Refused(Code.ALREADY_EXISTS, f"The volume {name} exists with {found.capacity_bytes} bytes.")
    if labels.get("source", "") != (str(source) if source is not None else ""):
        raise Refused(Code.ALREADY_EXISTS, f"The volume {name} exists, and was not made of the same source.")
    if labels.get("asked") != wanted.asked:
        raise Refused(Code.ALREADY_EXISTS, f"The volume {name} exists with other parameters.")


def _check_parameters(volume: Volume, given: Mapping[str, str], mutable: Mapping[str, str]) -> None:
    if not given and not mutable:
        return
    if parameters.wanted(given, mutable).asked != volume.labels.get("asked"):
        raise invalid("The volume was made with other parameters.")


def well(message: str) -> pb.VolumeCondition:
    """A condition; abnormal if there is a *message*."""
    return pb.VolumeCondition(abnormal=bool(message), message=message or "The volume is well.")
