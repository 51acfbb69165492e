"""A pool of volumes in a directory.

Layout: ``pool.json``, ``lock``, ``volumes/<id>/{volume.json,data/,ledger.json}``, ``trash/<id>.<n>/``, ``tmp/``, and
``snapshots/<id>/{volume.json,data/}``. What ``data`` is on its filesystem is its driver's business
(``fusevol.pool.drivers``). Every change is built aside and becomes true by one rename, so that a crash leaves a whole
volume or none (``workshop``); what is deleted goes through ``bin``. The pool describes itself: another node or a new
agent opens it and has all volumes. One process holds it at a time.

Methods are thread-safe, block on the disk, and raise children of :class:`FusevolError`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

from fusevol.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptError,
    FusevolError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from fusevol.files import sync_directory, temporary_name
from fusevol.lease import Holder
from fusevol.pool import copying, drivers, place, trash
from fusevol.pool.bin import Bin
from fusevol.pool.drivers import NO_LIMITS, Driver, Limits
from fusevol.pool.drivers.base import Made
from fusevol.pool.inspection import Finding, inspect
from fusevol.pool.leases import Leases
from fusevol.pool.promises import Promises
from fusevol.pool.record import AGENT, DATA, RECORD, SNAPSHOT_OF, Volume, VolumeRequest, check_id, check_limits
from fusevol.pool.shelf import Shelf
from fusevol.pool.steps import Step, no_step
from fusevol.pool.trash import TrashEntry
from fusevol.pool.workshop import Workshop
from fusevol.usage import Enforcer, Measured

__all__ = ["Finding", "Pool", "PoolCapacity"]

log = logging.getLogger(__name__)


def _nothing() -> None:
    """For who need not know when something is copied."""


class PoolCapacity(NamedTuple):
    """What a pool has. Bytes, and a count of volumes."""

    total: int
    available: int
    """Free for who is not root, as ``df`` shows it."""
    provisioned: int
    """Sum of the volumes' capacities; may be more than ``total``."""
    volumes: int


class Tenancy(NamedTuple):
    """A lease that was taken on a volume, or a share of it, for a server (``fusevol.server.tenure``)."""

    directory: Path
    """The volume's, in its pool."""
    epoch: int
    seconds: float
    """For how long a renewal holds."""
    share: str | None
    """Whose share it is; ``None``: it is the lease itself, and nobody else has the volume."""


class Pool:
    """An open pool. Made by :meth:`open`, given back by :meth:`close` (or by the process's end)."""

    def __init__(
        self,
        path: Path,
        name: str,
        lock: int,
        step: Step,
        driver: Driver,
        overcommit: float | None = None,
        leases: Leases | None = None,
    ) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.name = name
        self.driver = driver
        """What volumes are made with; older ones may have another one."""
        self._held = lock
        self._mutex = threading.Lock()
        """Guards names below ``volumes`` and ``trash``, and rewriting of records."""
        self._volumes = Shelf(path / place.VOLUMES, name, "volume")
        self._snapshots = Shelf(path / place.SNAPSHOTS, name, "snapshot")
        self._leases = leases
        """Where several nodes have the pool."""
        agent = leases.holder.agent if leases is not None else ""
        self._workshop = Workshop(path / place.TMP, name, driver, self._mutex, step, agent)
        self._bin = Bin(path / place.TRASH, name, driver, self._mutex, step)
        self._promises = Promises(name, overcommit, self._total) if overcommit is not None else None

    @classmethod
    def open(
        cls,
        path: Path,
        name: str,
        *,
        create: bool = False,
        step: Step = no_step,
        driver: str | None = None,
        overcommit: float | None = None,
        holder: Holder | None = None,
    ) -> Self:
        """Open the pool at *path*, whoever made it; with *create*, make it in an empty or missing directory.

        *driver* makes its volumes from now on; ``None``: as before, and for a new pool what fits its filesystem.
        *overcommit*: how many times the filesystem's size may be promised to volumes; ``None``: as much as is asked.
        *holder*: who this is, for the others that have a pool on a shared filesystem; ``None``: there are none.

        Raises :class:`InvalidError` (relative, the root, no directory, not empty and no pool), :class:`NotFoundError`,
        :class:`UnavailableError` (read-only), :class:`ForbiddenError`, :class:`CorruptError`, :class:`ConflictError`
        (another process holds it).
        """
        place.check_name(name)
        real = place.resolve(path)
        place.prepare(real, create=create)
        with place.explained(real, "looking at its filesystem"):
            shared = holder is not None and drivers.probe(real).capabilities().shared
        leases = Leases(holder) if holder is not None and shared else None
        lock = place.hold(real, holder.agent if holder is not None and shared else "")
        try:
            chosen = place.furnish(real, name, driver)
        except BaseException:
            os.close(lock)
            raise
        return cls(real, name, lock, step, chosen, overcommit, leases)

    def close(self) -> None:
        """Let another process open the pool."""
        held, self._held = self._held, -1
        if held >= 0:
            with contextlib.suppress(OSError):  # closed it is in any case; a dead client of CephFS answers ENOTCONN
                os.close(held)

    # volumes

    def provision(
        self, request: VolumeRequest, source: Volume | None = None, copied: Callable[[], None] = _nothing
    ) -> Volume:
        """Make a volume, durably; the same request again returns it.

        With *source*, a volume or a snapshot of this or of another pool, it begins with what that has. Where that takes
        time (see :meth:`clones_at_once`), that nobody writes to it until *copied* is called is the caller's duty. What
        *copied* raises undoes everything.

        Raises :class:`AlreadyExistsError` if it exists with another size, :class:`NoSpaceError`, and
        :class:`InvalidError`, also for less than *source* has.
        """
        request.check()
        self._check_open()
        if self._leases is not None:
            request = replace(request, labels={**request.labels, AGENT: self._leases.holder.agent})
        if source is not None:
            _check_fits(request, source)

        def make(directory: Path) -> Volume:
            enforcer = self._enforcer(request)
            limits = Limits(request.capacity_bytes, request.inode_limit) if enforcer == "kernel" else NO_LIMITS
            data = directory / DATA
            if source is None:
                backing = self.driver.make(data, limits)
                data.chmod(request.mode)  # mkdir's mode is subject to the umask
                sync_directory(data)
            elif self._clones(source):
                backing = self.driver.clone(source.data, source.backing, data, limits)
                copied()
            else:
                backing = self.driver.make(data, limits)
                copying.copy_tree(source.data, data)
                copied()
            if enforcer == "ledger":
                self.driver.second_line(data, backing, Limits(request.capacity_bytes, request.inode_limit))
            return Volume.from_request(request, directory, quota=enforcer, driver=self.driver.name, backing=backing)

        with place.explained(self.path, f"volume {request.id}"):
            found = self._existing(request)
            if found is not None:
                return found
            with self._promised(request.id, request.capacity_bytes):
                return self._workshop.build(
                    "provision", self._volumes.at(request.id), make, lambda: self._existing(request)
                )

    def _total(self) -> int:
        st = os.statvfs(self.path)
        return st.f_blocks * st.f_frsize

    def _promised(self, volume: str, nbytes: int | None) -> contextlib.AbstractContextManager[None]:
        if self._promises is None:
            return contextlib.nullcontext()
        return self._promises.promised(volume, nbytes, lambda: ((v.id, v.capacity_bytes) for v in self.volumes()))

    def _forget(self, volume: str) -> None:
        if self._promises is not None:
            self._promises.forget(volume)

    def _existing(self, request: VolumeRequest) -> Volume | None:
        try:
            found = self.volume(request.id)
        except NotFoundError:
            return None
        if (found.capacity_bytes, found.inode_limit) != (request.capacity_bytes, request.inode_limit):
            raise AlreadyExistsError(
                f"Volume {request.id} exists in pool {self.name} with "
                f"{_size(found.capacity_bytes, found.inode_limit)}, "
                f"not {_size(request.capacity_bytes, request.inode_limit)}: resize it, or choose another id."
            )
        self._volumes.sync()  # whoever made it may have died before this
        return found

    def _enforcer(self, request: VolumeRequest) -> Enforcer:
        limits = Limits(request.capacity_bytes, request.inode_limit)
        if not request.enforced or limits == NO_LIMITS:
            return "none"
        can = self.driver.capabilities()
        return "kernel" if can.enforces(limits) or (request.shared and can.quota_shared) else "ledger"

    def volume(self, volume: str) -> Volume:
        """A volume. Raises :class:`NotFoundError`, :class:`CorruptError` (its files are left alone)."""
        found = self._volumes.find(volume)
        if found.data.is_symlink() or not found.data.is_dir():
            raise CorruptError(
                f"Volume {volume} has lost its directory {found.data}: put it back from a backup, or delete the volume."
            )
        return found

    def _driver_of(self, volume: Volume) -> Driver:
        return drivers.that_made(volume.driver, self.driver)

    def volumes(self) -> list[Volume]:
        """All volumes whose record can be read, by id; :meth:`check` tells of the others."""
        return self._volumes.all()

    def resize(self, volume: str, capacity_bytes: int | None, inode_limit: int | None) -> Volume:
        """Set a volume's limits in its record and, where that keeps them, in the kernel; durably.

        A server that is running and keeps a ledger is told by the caller. Raises :class:`InvalidError` for a limit that
        the kernel cannot keep.
        """
        check_limits(volume, capacity_bytes, inode_limit)
        with (
            self._mutex,
            place.explained(self.path, f"resizing volume {volume}"),
            self._promised(volume, capacity_bytes),
        ):
            found = self.volume(volume)
            changed = found.with_limits(capacity_bytes, inode_limit)
            if found.quota == "kernel":
                self._limit(found, Limits(capacity_bytes, inode_limit))
            elif found.quota == "ledger":
                self._driver_of(found).second_line(found.data, found.backing, Limits(capacity_bytes, inode_limit))
            if changed != found:
                changed.save(self._volumes.directory(volume))
            return changed

    def _limit(self, volume: Volume, limits: Limits) -> None:
        driver = self._driver_of(volume)
        can = driver.capabilities()
        if not (can.enforces(limits) or can.quota_shared):
            raise InvalidError(
                f"Volume {volume.id} cannot get {_size(*limits)}: its filesystem ({driver.name}) keeps no such limits "
                "now; make a new volume with them and copy the data."
            )
        # also when the record has them already: the one who wrote that may have died before this
        driver.set_limits(volume.data, volume.backing, limits)

    def usage(self, volume: str) -> Measured:
        """What the kernel counts of a volume whose limits it keeps, mounted or not.

        Raises :class:`InvalidError` for another volume: the server that it is mounted by knows.
        """
        found = self.volume(volume)
        if found.quota != "kernel":
            raise InvalidError(f"The kernel does not count volume {volume}: ask while it is mounted.")
        with place.explained(self.path, f"asking for the usage of volume {volume}"):
            return self._driver_of(found).usage(found.data, found.backing)

    def usages(self, volumes: Iterable[str]) -> dict[str, Measured]:
        """What the kernel counts of those of *volumes* whose limits it keeps; what cannot be had is left out."""
        made: dict[str, dict[str, Made]] = {}
        for name in volumes:
            with contextlib.suppress(FusevolError):
                found = self.volume(name)
                if found.quota == "kernel":
                    made.setdefault(found.driver, {})[name] = (found.data, found.backing)
        used: dict[str, Measured] = {}
        with place.explained(self.path, "asking for the usage of its volumes"):
            for driver, ones in made.items():
                used |= drivers.that_made(driver, self.driver).usages(ones)
        return used

    def capacity(self) -> PoolCapacity:
        """What the pool's filesystem has and what was promised of it."""
        with place.explained(self.path, "asking for its capacity"):
            st = os.statvfs(self.path)
        volumes = self.volumes()
        provisioned = sum(v.capacity_bytes or 0 for v in volumes)
        return PoolCapacity(st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize, provisioned, len(volumes))

    # one node at a time

    def lease(self, volume: str, *, alone: bool = True) -> Tenancy | None:
        """Take the lease on *volume*, for a server that renews it; ``None`` where no other node has the pool.

        Not *alone*: take a share, which keeps others from deleting it, and from having it alone.

        Raises :class:`ConflictError`, which names the node that has it. That no server of this node serves the volume
        is the caller's duty.
        """
        if self._leases is None:
            return None
        directory = self._volumes.directory(volume)
        with place.explained(self.path, f"taking the lease on volume {volume}"):
            holder = self._leases.holder
            if alone:
                return Tenancy(directory, self._leases.take(directory), holder.seconds, None)
            return Tenancy(directory, self._leases.share(directory), holder.seconds, holder.agent)

    def release(self, volume: str) -> None:
        """Give up the lease on *volume* or the share, if this agent has it: no server of it will write any more."""
        if self._leases is not None:
            with place.explained(self.path, f"giving up the lease on volume {volume}"):
                self._leases.release(self._volumes.directory(volume))

    # snapshots

    def snapshots_at_once(self, volume: str) -> bool:
        """Whether a snapshot of *volume* is of one moment, whatever is written meanwhile."""
        return self._driver_of(self.volume(volume)).capabilities().snapshot == "instant"

    def clones_at_once(self, source: Volume) -> bool:
        """Whether a volume made of *source* has what that had at one moment, whatever is written meanwhile."""
        return self._clones(source) and self.driver.capabilities().clone == "instant"

    def _clones(self, source: Volume) -> bool:
        return source.driver == self.driver.name and source.data.is_relative_to(self.path)

    def snapshot(
        self,
        volume: str,
        snapshot: str,
        labels: Mapping[str, str] | None = None,
        copied: Callable[[], None] = _nothing,
    ) -> Volume:
        """Keep what *volume* has now as *snapshot*, durably; the same again returns it. It outlives the volume.

        It is described as a volume with the limits that *volume* has, and the label :data:`SNAPSHOT_OF`; nobody serves
        it. Where it takes time (see :meth:`snapshots_at_once`), that nobody writes until *copied* is called is the
        caller's duty; what *copied* raises undoes everything.
        Raises :class:`AlreadyExistsError` if that is a snapshot of another volume.
        """
        check_id(snapshot)
        self._check_open()

        def existing() -> Volume | None:
            try:
                found = self.find_snapshot(snapshot)
            except NotFoundError:
                return None
            if found.labels.get(SNAPSHOT_OF) != volume:
                raise AlreadyExistsError(
                    f"Snapshot {snapshot} exists in pool {self.name}, of volume {found.labels.get(SNAPSHOT_OF)}: "
                    "choose another id."
                )
            self._snapshots.sync()
            return found

        def make(directory: Path) -> Volume:
            source = self.volume(volume)
            backing = self._driver_of(source).snapshot(source.data, source.backing, directory / DATA)
            copied()
            return source.kept_as(snapshot, directory, backing, {**(labels or {}), SNAPSHOT_OF: volume})

        with place.explained(self.path, f"snapshot {snapshot}"):
            return existing() or self._workshop.build("snapshot", self._snapshots.at(snapshot), make, existing)

    def find_snapshot(self, snapshot: str) -> Volume:
        """A snapshot. Raises :class:`NotFoundError`, :class:`CorruptError`."""
        return self._snapshots.find(snapshot)

    def snapshots(self) -> list[Volume]:
        """All snapshots whose record can be read, by id."""
        return self._snapshots.all()

    def delete_snapshot(self, snapshot: str) -> TrashEntry:
        """Move a snapshot to the trash, from where it cannot be restored as it was, only purged."""
        with self._mutex, place.explained(self.path, f"deleting snapshot {snapshot}"):
            return self._bin.throw_away(self._snapshots.directory(snapshot), "deleted")

    # trash

    def trash(self, volume: str, reason: str = "deleted", retention: int | None = None) -> TrashEntry:
        """Move a volume to the trash. Works for a damaged volume and in a full pool, too.

        *retention*: seconds that it shall be kept there; ``None``: as its record says.

        Raises :class:`NotFoundError`, and :class:`ConflictError` while something is mounted in it or another node has
        the lease on it or a share. That nobody on this node serves it any more is the caller's duty.
        """
        with self._mutex, place.explained(self.path, f"deleting volume {volume}"):
            directory = self._volumes.directory(volume)
            epoch = self._leases.take(directory) if self._leases is not None and directory.is_dir() else None
            kept = trash.retention_of(directory, volume) if retention is None else retention
            entry = self._bin.throw_away(directory, reason, kept)
            if self._leases is not None and epoch is not None:
                if not self._leases.has(entry.path, epoch):
                    # this process was stopped on the way for longer than its lease: another node has the volume now
                    self._bin.restore(entry, directory, self._promised)
                    raise ConflictError(f"Volume {volume} was taken by another node meanwhile, and was not deleted.")
                self._leases.release(entry.path)
            self._forget(volume)
            return entry

    def trashed(self) -> list[TrashEntry]:
        """All that is in the trash, by name, half-deleted volumes included."""
        with place.explained(self.path, "listing its trash"):
            return self._bin.entries()

    def restore(self, entry: TrashEntry) -> Volume:
        """Make a deleted volume a volume again.

        Raises :class:`NotFoundError`, :class:`AlreadyExistsError` (its id is in use), :class:`ConflictError` (its
        deletion has begun).
        """
        with self._mutex, place.explained(self.path, f"restoring {entry.name}"):
            self._bin.restore(entry, self._volumes.at(entry.volume), self._promised)
        return self.volume(entry.volume)

    def purge(self, entry: TrashEntry, progress: Callable[[int], None] | None = None) -> None:
        """Delete what is in the trash for ever. May take long: for a thread of its own. Gone already is fine, and so is
        one that was restored and has been deleted again since: that is another one.

        *progress* is called with the number of inodes that are gone; what it raises ends the purge, which another call
        completes. Raises :class:`ConflictError` when something is mounted in it; what is mounted is not touched.
        """
        with place.explained(self.path, f"purging {entry.name}"):
            self._bin.purge(entry, progress)

    # care

    def sweep(self) -> list[str]:
        """Remove what dead provisioning left; returns what it was. What living threads build is left alone."""
        self._check_open()
        with place.explained(self.path, "clearing leftovers away"):
            swept = [f"{place.TMP}/{name}" for name in self._workshop.clear()]
            with self._mutex:
                for name in sorted(os.listdir(self.path / place.VOLUMES)):
                    directory = self.path / place.VOLUMES / name
                    for stray in (directory / trash.NOTE, temporary_name(directory / RECORD)):
                        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                            stray.unlink()
                            swept.append(f"{place.VOLUMES}/{name}/{stray.name}")
        for item in swept:
            log.info("pool %s: cleared away %s, left by a process that died", self.name, item)
        return swept

    def check(self) -> list[Finding]:
        """Look for damage, recounting every volume that is not in use; changes nothing. May take long."""
        with place.explained(self.path, "checking it"):
            return inspect(self.path, self._workshop.left, self._driver_of)

    def _check_open(self) -> None:
        if self._held < 0:
            raise UnavailableError(f"The pool {self.path} was closed: open it again.")

    def __repr__(self) -> str:
        """Shows name and path."""
        return f"<Pool {self.name} at {self.path}{' (closed)' if self._held < 0 else ''}>"


def _size(capacity_bytes: int | None, inode_limit: int | None) -> str:
    size = "no size limit" if capacity_bytes is None else f"{capacity_bytes} bytes"
    return size if inode_limit is None else f"{size} and {inode_limit} inodes"


def _check_fits(request: VolumeRequest, source: Volume) -> None:
    """Raise :class:`InvalidError` where what *source* may have is more than what is asked for."""
    for wanted, had, what in (
        (request.capacity_bytes, source.capacity_bytes, "bytes"),
        (request.inode_limit, source.inode_limit, "inodes"),
    ):
        if wanted is not None and had is not None and wanted < had:
            raise InvalidError(
                f"Volume {request.id} with {wanted} {what} cannot begin with what {source.id} has, which may be "
                f"{had} {what}: ask for at least as much."
            )
