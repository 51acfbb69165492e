"""Brings attachments about: one FUSE mount per volume, a bind mount of it at each target, and both again after a crash.

The order is always the same, so that whatever is interrupted can be taken up again: the attachment is written down,
the server started, the target bound; and backwards: target unmounted, server stopped, volume (of an emptyDir)
deleted, attachment forgotten. Everything that one volume's targets share happens under that volume's lock.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import trio

from agent.hazard import Hazards
from agent.logs import about
from agent.patience import Patience
from agent.pools import Pools
from agent.steps import Step, no_step
from agent.supervisor import Supervisor
from agent.volumes import memory, places, targets
from agent.volumes.attachments import Attachment, Attachments, boot_id, mount_id
from agent.volumes.still import Still
from fusevol.errors import ConflictError, FusevolError, NotFoundError, UnavailableError
from fusevol.pool import Tenancy, Volume
from fusevol.server.spec import MountSpec, TransportChoice
from fusevol.transport import mount

DEATHS = 8
"""Deaths of one volume's servers within :data:`WINDOW` seconds after which it is left alone."""
WINDOW = 300.0

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

Tell = Callable[[Attachment, str, str, bool], Awaitable[None]]
"""Called with an attachment, a reason, a message and whether it is a warning."""
Changed = Callable[[Attachment], None]


class Mounter:
    """Makes and unmakes attachments. For the trio loop."""

    def __init__(
        self,
        *,
        directory: Path,
        servers: Path,
        attachments: Attachments,
        pools: Pools,
        supervisor: Supervisor,
        transport: TransportChoice,
        io_uring: bool,
        tell: Tell,
        changed: Changed,
        hazards: Hazards,
        patience: Patience,
        step: Step = no_step,
    ) -> None:
        """*directory* takes the FUSE mount points, *servers* is the supervisor's; *changed* is called after each
        attachment that came or went. *transport* is for attachments that do not name theirs."""
        self._hazards = hazards
        self._patience = patience
        self._directory = directory
        self._servers = servers
        self._own = tuple(Path(os.path.realpath(path.parent)) for path in (directory, servers))
        """The agent's directories of state and of runtime files."""
        self._attachments = attachments
        self._pools = pools
        self._supervisor = supervisor
        self._transport = transport
        self._io_uring = io_uring
        self._tell = tell
        self._changed = changed
        self._step = step
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._boots = {"", boot_id()}
        """Attachments of other boots of the machine are made when they are asked for again."""
        self._deaths: dict[str, deque[float]] = {}
        self._reserved: dict[str, str] = {}
        """Why the volume of a mount cannot be attached now."""

    def __repr__(self) -> str:
        return f"<Mounter {self._directory} attachments={len(list(self._attachments))}>"

    def check_target(self, target: str) -> None:
        """Raise :class:`InvalidError` where nobody from outside may have a volume mounted (``targets``)."""
        pools = (self._pools.path(name) for name in self._pools.names)
        targets.check(target, (*self._own, *pools))

    @property
    def attachments(self) -> Attachments:
        """What is or shall be mounted."""
        return self._attachments

    async def end_all(self, pool: str) -> None:
        """End every mount of a pool whose storage is another one now: each is made again as after a death."""
        names = {row.mount_id for row in self._attachments if row.pool == pool and row.mount_id}
        for name in sorted(names):
            found = await _thread(mount.root, self.point(name))
            if found is not None:
                minor = found.minor
                await self._hazards.of(f"The connection {minor}").run(lambda minor=minor: mount.abort(minor))  # type: ignore[misc]

    def point(self, name: str) -> Path:
        """Where the volume of a mount id is mounted once."""
        return self._directory / name

    def lock(self, wanted: Attachment) -> trio.Lock:
        """Guards everything that *wanted* shares with others: its volume, its claim, or its target for a hostPath."""
        return self._lock(wanted.mount_id or wanted.claim_uid or wanted.target)

    @asynccontextmanager
    async def reserved(self, name: str, reason: str) -> AsyncIterator[None]:
        """A context in which nobody can attach the volume of the mount *name*: who tries is told *reason*.

        Raises :class:`ConflictError` if it is attached.
        """
        async with self._lock(name):
            rows = self._attachments.of_mount(name)
            if rows:
                raise ConflictError(f"The volume {rows[0].volume} is mounted at {rows[0].target}.")
            self._reserved[name] = reason
        try:
            yield
        finally:
            del self._reserved[name]

    def _lock(self, name: str) -> trio.Lock:
        found = self._locks.get(name)
        if found is None:
            found = self._locks[name] = trio.Lock()
        return found

    async def attach(
        self,
        wanted: Attachment,
        prepare: Callable[[], Awaitable[object]] | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Attachment:
        """Have *wanted* mounted; the attachment as it is now. The same one again changes nothing.

        *prepare* makes what must exist first; it runs once the attachment is on record, so that nothing it makes is
        ever left without somebody who knows of it. *check* raises when others of the same claim forbid this one; it
        runs just before a new attachment is on record, while no other one of that claim can come.

        Raises :class:`ConflictError` if the target shows something else; when it fails, a new attachment is undone.
        """
        with about(volume=wanted.volume, target=wanted.target):
            return await self._attach(wanted, prepare, check)

    async def _attach(
        self,
        wanted: Attachment,
        prepare: Callable[[], Awaitable[object]] | None,
        check: Callable[[], None] | None,
    ) -> Attachment:
        async with self.lock(wanted):
            known = self._attachments.find(wanted.target)
            if known is not None and not known.same(wanted):
                what = known.claim or known.volume or known.path
                raise ConflictError(f"Something else ({what}) is mounted at {wanted.target}: unmount that first.")
            if wanted.mount_id in self._reserved:
                raise UnavailableError(self._reserved[wanted.mount_id])
            if known is None:
                if check is not None:
                    check()
                if await self._at(wanted.target, mount.is_mounted, wanted.target):
                    raise ConflictError(
                        f"Something that fusevol did not mount is at {wanted.target}: name another target."
                    )
                # before it is made: nobody could tell afterwards, if the agent died in between
                there = wanted.bare or await self._at(wanted.target, os.path.lexists, wanted.target)
                wanted = dataclasses.replace(wanted, created=not there)
                await self._attachments.put(wanted)
                self._step("attachment recorded")
                self._changed(wanted)
            elif known.boot != wanted.boot:
                known = dataclasses.replace(known, boot=wanted.boot)
                await self._attachments.put(known)
            try:
                if prepare is not None:
                    await prepare()
                return await self._mounted(known or wanted)
            except BaseException:
                if known is None:
                    with trio.CancelScope(shield=True):
                        await self._detached(wanted, keep_volume=True)
                raise

    async def detach(self, target: str) -> None:
        """Undo an attachment; nothing to do if there is none. Raises :class:`ConflictError` while it is in use."""
        row = self._attachments.find(target)
        if row is None:
            return
        with about(volume=row.volume, target=target):
            async with self.lock(row):
                if self._attachments.find(target) == row:
                    await self._detached(row)

    def died(self, name: str) -> None:
        """Take note of the death of a volume's server, which :meth:`heal` is to replace."""
        self._deaths.setdefault(name, deque(maxlen=DEATHS)).append(trio.current_time())

    async def heal(self, name: str) -> float | None:
        """Mount a volume again whose server has died; a delay in seconds when it dies too often.

        One that nothing uses any more is ended, if that could not be done before. *name* may also be the target of a
        hostPath, which is bound again.
        """
        bound = self._attachments.find(name)
        if bound is not None:
            await self.again(bound)
            return None
        rows = self._attachments.of_mount(name)
        if not rows:
            await self._supervisor.stop(name)
            await self._clear_dead(self._directory / name)
            return None
        async with self.lock(rows[0]):
            rows = [row for row in self._attachments.of_mount(name) if row.boot in self._boots]
            if name in self._supervisor.servers:
                for row in rows:  # who was first has had it served for a target of its own only
                    await self._mounted(row)
                return None
            if not rows:
                return None
            recent = self._deaths.get(name, deque())
            if len(recent) == DEATHS and recent[-1] - recent[0] < WINDOW:
                message = (
                    f"The volume server of {rows[0].volume} dies again and again: see its log in {self._servers}. "
                    "It is started again in 5 minutes."
                )
                for row in rows:
                    await self._tell(row, "VolumeServerFailed", message, True)
                recent.clear()
                return WINDOW
            # first: while the volume cannot be had, who writes at its targets gets errors, and no empty directories
            await self._held(rows[0])
            await self._detach_dead(rows)
            for row in rows:
                await self._mounted(row)
            for row in rows:
                message = f"The volume server of {row.volume} had ended; the volume is mounted again at {row.target}."
                await self._tell(row, "VolumeRemounted", message, True)
        return None

    async def tell_of_server(self, name: str, reason: str, what: str, warning: bool) -> None:
        """Tell all who use a mount what its volume server did: the rest of a sentence."""
        users = {(row.namespace, row.claim, row.pod): row for row in self._attachments.of_mount(name)}
        for row in users.values():
            await self._tell(row, reason, f"The volume server of {row.volume} {what}", warning)

    async def restore(self) -> list[str]:
        """After a start: what must go from the mount directory goes. Mounts that should be there come by :meth:`heal`.

        Call when the living servers have been adopted. Returns the mounts that could not be undone: for :meth:`heal`.
        """
        wanted = {row.mount_id for row in self._attachments if row.mount_id}
        left: list[str] = []

        async def undo(place: Path) -> None:
            try:
                if place.name in self._supervisor.servers:
                    log.info("Nothing uses the mount %s any more; its server ends.", place.name)
                    await self._supervisor.stop(place.name)
                await self._clear_dead(place)
                if place.name not in wanted:
                    await self._at(place, places.remove_target, place)
            except FusevolError as e:
                log.info("%s", e)
                left.append(place.name)

        here = {place.name for place in await _thread(_children, self._directory)} | set(self._supervisor.servers)
        async with trio.open_nursery() as nursery:
            for name in sorted(here):
                if name not in wanted or name not in self._supervisor.servers:
                    nursery.start_soon(undo, self._directory / name)
        return left

    async def missing(self) -> list[Attachment]:
        """The attachments whose targets show nothing, or a mount without its server."""
        table = {m.mountpoint: m for m in await _thread(mount.mounts)}
        found = []
        for row in self._attachments:
            if row.boot not in self._boots:
                continue
            root = table.get(str(self._directory / row.mount_id)) if row.mount_id else None
            alive = not row.mount_id or row.mount_id in self._supervisor.servers
            if not alive or not (row.bare or _shows(row, table.get(row.target), root)):
                found.append(row)
        return found

    async def again(self, row: Attachment) -> None:
        """Make an attachment again that :meth:`missing` found."""
        async with self.lock(row):
            if self._attachments.find(row.target) == row:
                await self._mounted(row)

    async def prepared(self, row: Attachment) -> None:
        """Remember that a volume has been given to its Pod's group. For whoever attaches and detaches it."""
        await self._attachments.put(dataclasses.replace(row, prepared=True))
        self._step("volume given to its group")

    async def _mounted(self, row: Attachment) -> Attachment:
        """Bring *row* about; its lock is held."""
        target = Path(row.target)
        if row.options:
            try:
                if await _thread(memory.mount_at, target, row.options):
                    self._step("tmpfs mounted")
            except OSError as e:
                raise UnavailableError(f"Mounting memory at {target} failed: {e.strerror or e}.") from e
            return row
        source = Path(row.path)
        if row.mount_id:
            point = await self._served(row)
            if row.bare:
                return row
            source = source if row.recursive else point
        existing = await self._at(target, mount.find, target)
        if existing is not None:
            root = await _thread(mount.find, source) if row.mount_id else None
            replaced = row.medium != "" and await _thread(places.stale, source, row.sub_path, target)
            if _shows(row, existing, root) and not replaced:
                return row
            await self._at(target, places.clear, target, lazy=True)
        try:
            await self._at(
                target,
                places.bind,
                source,
                row.sub_path,
                target,
                read_only=row.read_only,
                recursive=row.recursive,
            )
        except FileNotFoundError as e:
            raise NotFoundError(f"Mounting at {target} failed: {e.filename or 'the source'} does not exist.") from e
        except OSError as e:
            raise UnavailableError(f"Mounting at {target} failed: {e.strerror or e}.") from e
        self._step("target bound")
        return row

    async def _served(self, row: Attachment) -> Path:
        """The volume's FUSE mount, with a living server behind it."""
        point = self._directory / row.mount_id
        if row.mount_id in self._supervisor.servers:
            return point
        volume, lease = await self._held(row)
        await self._detach_dead(self._attachments.of_mount(row.mount_id))
        await _thread(lambda: point.mkdir(mode=0o755, parents=True, exist_ok=True))
        told = False

        async def progress(inodes: int) -> None:
            nonlocal told
            if not told and inodes > 1:  # 1 is a new volume's root
                told = True
                message = (
                    f"The usage of {row.volume} is being counted, since it has no counters of a clean unmount; "
                    "it is mounted when that is done."
                )
                await self._tell(row, "VolumeScan", message, False)
            log.info("%s: %d inodes counted", row.mount_id, inodes)

        await self._supervisor.start(self._spec(row, volume, point, lease), progress)
        return point

    async def _held(self, row: Attachment) -> tuple[Volume, Tenancy | None]:
        """The volume, with the lease on it, or a share, where other nodes can have it; no server of this one has it."""
        volume = await self._pools.volume(row.pool, row.volume)
        lease = await self._pools.lease(row.pool, row.volume, alone=row.alone) if not row.owned else None
        if lease is not None:
            self._step("lease taken")
        return volume, lease

    def _spec(self, row: Attachment, volume: Volume, point: Path, lease: Tenancy | None) -> MountSpec:
        labels = {
            "pool": row.pool,
            "volume": row.volume,
            "namespace": row.namespace,
            "claim": row.claim,
            "pod": row.pod,
        }
        return MountSpec(
            mount_id=row.mount_id,
            source=str(volume.data),
            mountpoint=str(point),
            control=str(self._servers / f"{row.mount_id}.sock"),
            log=str(self._servers / f"{row.mount_id}.log"),
            fsname=f"fusevol:{row.mount_id}",
            quota=volume.quota,
            meter=volume.driver if volume.quota == "kernel" else None,
            ledger=str(volume.ledger) if volume.quota == "ledger" else None,
            limit_bytes=volume.capacity_bytes if volume.quota == "ledger" else None,
            limit_inodes=volume.inode_limit if volume.quota == "ledger" else None,
            lease=str(lease.directory) if lease is not None else None,
            lease_share=lease.share if lease is not None else None,
            lease_epoch=lease.epoch if lease is not None else None,
            lease_s=lease.seconds if lease is not None else None,
            cache=row.cache,
            stuck_after_s=self._patience.report,
            abort_after_s=self._patience.abort,
            transport=row.transport or self._transport,
            passthrough=row.passthrough,
            io_uring=self._io_uring,
            labels={k: v for k, v in labels.items() if v},
        )

    async def _detach_dead(self, rows: list[Attachment]) -> None:
        """Take the remains of a dead server's mount out of the way: parts first, the mount itself last."""
        for row in reversed(rows):
            found = await self._at(row.target, mount.find, row.target)
            if found is not None and found.is_fuse:
                await self._clear_dead(Path(row.target))
        if rows:
            await self._clear_dead(self._directory / rows[0].mount_id)

    async def _clear_dead(self, place: Path) -> None:
        await self._at(place, places.clear_dead, place)

    async def _detached(self, row: Attachment, *, keep_volume: bool = False) -> None:
        """Undo *row*; its lock is held."""
        target = Path(row.target)
        alive = not row.mount_id or row.mount_id in self._supervisor.servers
        for place in await _thread(mount.below, target) if row.recursive else []:
            await self._at(place.mountpoint, places.clear, Path(place.mountpoint))
        if not row.bare:
            await self._at(target, places.clear, target, lazy=not alive)
            self._step("target unmounted")
        if row.created:
            await self._at(target, places.remove_target, target)
        if row.mount_id and self._attachments.of_mount(row.mount_id) in ([row], []):
            await self._supervisor.stop(row.mount_id)
            point = self._directory / row.mount_id
            await self._clear_dead(point)
            await self._at(point, places.remove_target, point)
            self._deaths.pop(row.mount_id, None)
            if not row.owned:
                await self._give_up_lease(row)
            elif not keep_volume:
                await self._pools.discard(row.pool, row.volume)
        await self._attachments.remove(row.target)
        self._step("attachment forgotten")
        self._changed(row)

    async def _give_up_lease(self, row: Attachment) -> None:
        """Of a server that could not do it itself: another node need not wait."""
        try:
            await self._pools.release(row.pool, row.volume)
        except FusevolError as e:
            log.info("The lease on %s is not given up, and ends by itself: %s", row.volume, e)

    async def _at(self, place: str | Path, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """*action*'s result, in a thread that may hang at *place* or in what is mounted there."""
        return await self._hazards.of(f"The mount at {place}").run(lambda: action(*args, **kwargs))

    async def usage(self, name: str) -> tuple[int, int | None] | None:
        """Used bytes and inodes of a mounted volume; None when its server does not say, or nobody counts."""
        try:
            answer = await self._supervisor.ask(name, {"op": "usage"}, seconds=5.0)
        except UnavailableError:
            return None
        usage = answer.get("usage") or {}
        if usage.get("used_bytes") is None:
            return None
        inodes = usage.get("used_inodes")
        return int(usage["used_bytes"]), None if inodes is None else int(inodes)

    def still(self, pool: str, volume: str) -> Still:
        """A context in which nobody changes a volume's files through its mount."""
        return Still(self._supervisor, mount_id(pool, volume))

    async def set_limits(
        self, pool: str, volume: str, name: str, capacity: int | None, inodes: int | Literal["keep"] | None = "keep"
    ) -> None:
        """Change a volume's limits on disk and, if it is mounted, in its server, which may keep them."""
        current = await self._pools.volume(pool, volume)
        if inodes == "keep":
            inodes = current.inode_limit
        await self._pools.resize(pool, volume, capacity, inodes)  # where the kernel keeps it, that is all
        self._step("limits recorded")
        if current.quota != "ledger" or name not in self._supervisor.servers:
            return
        request = {"op": "set-limits", "limit_bytes": capacity, "limit_inodes": inodes}
        answer = await self._supervisor.ask(name, request)
        if not answer.get("ok"):
            raise UnavailableError(str(answer.get("error") or f"The server of {volume} refuses the new limit."))


def _shows(row: Attachment, found: mount.MountInfo | None, root: mount.MountInfo | None) -> bool:
    """Whether *found*, the mount at the row's target, is what belongs there; *root* is the volume's own mount."""
    if found is None or (row.read_only and not found.read_only):
        # a bind becomes read-only in a second step (mount(2)): the agent may have died before it
        return False
    return not row.mount_id or (root is not None and (found.major, found.minor) == (root.major, root.minor))


def _children(directory: Path) -> list[Path]:
    # names only: a stat of a dead mount fails, of a hanging one hangs
    return [directory / name for name in sorted(os.listdir(directory))]


async def _thread(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """*action*'s result: one that looks at what is this agent's own, or at /proc, and cannot hang."""
    return await trio.to_thread.run_sync(lambda: action(*args, **kwargs))
