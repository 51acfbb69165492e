"""Snapshots, the part of the Controller service that is about them."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from agent.csi import csi_pb2 as pb
from agent.csi import fields, paging, parameters
from agent.csi.refusal import Code, Refused, invalid
from agent.csi.sources import Jobs
from agent.csi.volumes import KIND, Handle, Locks, Volumes
from fusevol.errors import InvalidError, NotFoundError
from fusevol.pool import Volume
from fusevol.pool.record import SNAPSHOT_OF

GROUP: Final = "group"
"""The label of a snapshot that was made with others (``agent.csi.groups``)."""
GROUP_OF: Final = "group-of"
"""And that of all volumes of its group, as JSON."""


class Snapshots:
    """For the trio loop."""

    def __init__(self, volumes: Volumes, locks: Locks, jobs: Jobs[Volume]) -> None:
        self._volumes = volumes
        self._locks = locks
        self._jobs = jobs

    async def create(self, request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
        """Keep what a volume has now; the same request again finds it kept."""
        name = fields.name(request.name)
        fields.text(request.source_volume_id, "source_volume_id")
        refuse_parameters(request.parameters)
        source = Handle.parse(request.source_volume_id)
        if source is None or source.pool not in self._volumes.pools.names:
            raise Refused(Code.NOT_FOUND, "There is no such volume.")
        handle = Handle(source.pool, parameters.volume_id(name))
        async with self._locks.hold(f"snapshot {handle.volume}"):
            made = await self._find(handle)
            if made is None:
                other = await self._volumes.elsewhere(handle.pool, lambda p: p.find_snapshot(handle.volume))
                if other is not None:
                    raise Refused(Code.ALREADY_EXISTS, f"The snapshot {name} exists in the pool {other}.")
                await self._volumes.get(request.source_volume_id)
                still, labels = self._volumes.mounter.still(*source), {"kind": KIND, "name": name}
                pools = self._volumes.pools
                made = await self._jobs.result(
                    f"snapshot {handle}", lambda: pools.snapshot(*source, handle.volume, still, labels)
                )
            if _source(handle, made) != source or made.labels.get("name") != name:
                raise Refused(Code.ALREADY_EXISTS, f"The snapshot {name} exists, of another volume.")
        return pb.CreateSnapshotResponse(snapshot=shown(handle, made))

    async def _find(self, handle: Handle) -> Volume | None:
        try:
            return await self._volumes.pools.find_snapshot(*handle)
        except (NotFoundError, InvalidError):
            return None

    async def delete(self, request: pb.DeleteSnapshotRequest) -> pb.DeleteSnapshotResponse:
        """Remove a snapshot; nothing to do for one that is not there."""
        handle = Handle.parse(fields.text(request.snapshot_id, "snapshot_id"))
        if handle is None or handle.pool not in self._volumes.pools.names:
            return pb.DeleteSnapshotResponse()
        async with self._locks.hold(f"snapshot {handle.volume}"):
            found = await self._find(handle)
            if found is None:
                return pb.DeleteSnapshotResponse()
            if group := found.labels.get(GROUP):
                raise invalid(f"The snapshot is of the group {group}: delete that.")
            if found.labels.get("kind") != KIND:
                raise Refused(Code.FAILED_PRECONDITION, f"The snapshot {handle} is one that the agent keeps.")
            await self._volumes.pools.delete_snapshot(*handle)
        return pb.DeleteSnapshotResponse()

    async def listed(self, request: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        """The snapshots that were made here, in the order of their handles, or those that a filter lets through."""
        wanted = (request.source_volume_id, request.snapshot_id)
        found = [
            (handle, one)
            for handle, one in await self._all()
            if wanted[0] in {"", str(_source(handle, one))} and wanted[1] in {"", str(handle)}
        ]
        page, token = paging.page(found, request.max_entries, request.starting_token, self._volumes.pools.names)
        entry = pb.ListSnapshotsResponse.Entry
        return pb.ListSnapshotsResponse(
            entries=[entry(snapshot=shown(handle, one)) for handle, one in page], next_token=token
        )

    async def _all(self) -> list[tuple[Handle, Volume]]:
        found = []
        for pool in self._volumes.pools.names:
            kept = await self._volumes.pools.run(pool, lambda p: p.snapshots())
            found += [(Handle(pool, one.id), one) for one in kept if one.labels.get("kind") == KIND]
        of_group = Counter(one.labels.get(GROUP) for _, one in found)
        return [  # without those of a group that was never finished
            (handle, one)
            for handle, one in found
            if GROUP not in one.labels or of_group[one.labels[GROUP]] == len(json.loads(one.labels[GROUP_OF]))
        ]


def _source(handle: Handle, kept: Volume) -> Handle:
    return Handle(handle.pool, kept.labels.get(SNAPSHOT_OF, ""))


def refuse_parameters(given: Mapping[str, str]) -> None:
    """Raise INVALID_ARGUMENT for parameters of a VolumeSnapshotClass: there are none."""
    unknown = sorted(k for k in fields.mapping(given, "parameters") if not k.startswith(parameters.RESERVED))
    if unknown:
        raise invalid(f"A snapshot has no parameters; unknown are {', '.join(unknown)}.")


def shown(handle: Handle, kept: Volume) -> pb.Snapshot:
    """A snapshot as a CO sees it."""
    created = Timestamp()
    created.FromDatetime(dt.datetime.fromisoformat(kept.created))
    return pb.Snapshot(
        snapshot_id=str(handle),
        source_volume_id=str(_source(handle, kept)),
        size_bytes=kept.capacity_bytes or 0,
        creation_time=created,
        ready_to_use=True,
        group_snapshot_id=kept.labels.get(GROUP, ""),
    )
