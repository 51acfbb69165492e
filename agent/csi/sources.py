"""What a volume begins with, if not empty: a snapshot or another volume. Copying may outlast the call that wants it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import trio

from agent.csi import csi_pb2 as pb
from agent.csi import fields
from agent.csi.refusal import Code, Refused, invalid
from agent.csi.volumes import Handle, Volumes
from fusevol.errors import InvalidError, NotFoundError
from fusevol.pool import Volume

T = TypeVar("T")


class Source(NamedTuple):
    """A snapshot or volume that another one is made of."""

    handle: Handle
    is_snapshot: bool

    def __str__(self) -> str:
        return f"{'snapshot' if self.is_snapshot else 'volume'} {self.handle}"

    @classmethod
    def read(cls, given: pb.VolumeContentSource, pools: Sequence[str]) -> Source:
        """From a request. Raises NOT_FOUND for what is no handle of ours, in one of *pools*."""
        match given.WhichOneof("type"):
            case "snapshot":
                text, is_snapshot = given.snapshot.snapshot_id, True
            case "volume":
                text, is_snapshot = given.volume.volume_id, False
            case _:
                raise invalid("volume_content_source names neither a snapshot nor a volume.")
        handle = Handle.parse(fields.text(text, "the id of the content source"))
        if handle is None or handle.pool not in pools:
            raise Refused(Code.NOT_FOUND, "There is no such volume or snapshot to begin with.")
        return cls(handle, is_snapshot)

    @classmethod
    def remembered(cls, text: str) -> Source | None:
        """From what was remembered with a volume; None if it began empty."""
        kind, _, handle = text.partition(" ")
        found = Handle.parse(handle)
        return cls(found, kind == "snapshot") if found is not None else None

    def shown(self) -> pb.VolumeContentSource:
        """As it is echoed."""
        if self.is_snapshot:
            return pb.VolumeContentSource(snapshot=pb.VolumeContentSource.SnapshotSource(snapshot_id=str(self.handle)))
        return pb.VolumeContentSource(volume=pb.VolumeContentSource.VolumeSource(volume_id=str(self.handle)))

    async def find(self, volumes: Volumes) -> Volume:
        """The volume or snapshot. Raises NOT_FOUND."""
        if not self.is_snapshot:
            return (await volumes.get(str(self.handle)))[1]
        try:
            return await volumes.pools.find_snapshot(*self.handle)
        except (NotFoundError, InvalidError) as e:
            raise Refused(Code.NOT_FOUND, "There is no such snapshot to begin with.") from e


class Jobs(Generic[T]):
    """Work that goes on when whoever wants it gives up, and is found under way by the next who wants the same."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._running: dict[str, _Job[T]] = {}

    async def result(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """What the work *name* has as its result. Raises what it raises."""
        job = self._running.get(name)
        if job is None:
            job = self._running[name] = _Job()
            self._nursery.start_soon(self._do, name, job, work)
        await job.done.wait()
        if job.error is not None:
            raise job.error
        if not job.results:
            raise Refused(Code.UNAVAILABLE, "The agent is ending: try again.")
        return job.results[0]

    async def _do(self, name: str, job: _Job[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            job.results.append(await work())
        except Exception as e:  # noqa: BLE001 - whoever wants the result gets it
            job.error = e
        finally:
            self._running.pop(name, None)
            job.done.set()


class _Job(Generic[T]):
    def __init__(self) -> None:
        self.done = trio.Event()
        self.results: list[T] = []
        self.error: Exception | None = None
