"""A pool of volumes in a directory.

Layout: ``pool.json``, ``lock``, ``volumes/<id>/{volume.json,data/,ledger.json}``, ``trash/<id>.<n>/``, ``tmp/``, and
``snapshots/<id>/{volume.json,data/}``. What ``data`` is on its filesystem is its driver's business
(``fusevol.pool.drivers``). Every change is built aside and becomes true by one rename, so that a crash leaves a whole
volume or none. The pool describes itself: another node or a new agent opens it and has all volumes. One process holds
it at a time.

Methods are thread-safe, block on the disk, and raise children of :class:`FusevolError`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from fusevol.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from fusevol.files import sync_directory, temporary_name
from fusevol.pool import copying, drivers, place, removal, trash
from fusevol.pool.drivers import NO_LIMITS, Driver, Limits
from fusevol.pool.inspection import Finding, inspect
from fusevol.pool.promises import Promises
from fusevol.pool.record import DATA, RECORD, SNAPSHOT_OF, Volume, VolumeRequest, check_id, check_limits
from fusevol.pool.trash import TrashEntry
from fusevol.usage import Enforcer, Measured

__all__ = ["Finding", "Pool", "PoolCapacity"]

log = logging.getLogger(__name__)
Step = Callable[[str], None]
"""Called with the name of each step after it is done, to see what a crash there leaves behind."""


def no_step(name: str) -> None:
    """The :data:`Step` of a pool that nobody interrupts."""


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


class Pool:
    """An open pool. Made by :meth:`open`, given back by :meth:`close` (or by the process's end)."""

    def __init__(
        self, path: Path, name: str, lock: int, step: Step, driver: Driver, overcommit: float | None = None
    ) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.name = name
        self.driver = driver
        """What volumes are made with; older ones may have another one."""
        self._held = lock
        self._step = step
        self._volumes = path / place.VOLUMES
        self._trash = path / place.TRASH
        self._tmp = path / place.TMP
        self._snapshots = path / place.SNAPSHOTS
        self._promises = Promises(name, overcommit, self._total) if overcommit is not None else None
        self._mutex = threading.Lock()
        """Guards names below ``volumes`` and ``trash``, and rewriting of records."""
        self._building: set[str] = set()
        """Names below ``tmp`` that a living thread works on."""

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
    ) -> Self:
        """Open the pool at *path*, whoever made it; with *create*, make it in an empty or missing directory.

        *driver* makes its volumes from now on; ``None``: as before, and for a new pool what fits its filesystem.
        *overcommit*: how many times the filesystem's size may be promised to volumes; ``None``: as much as is asked.

        Raises :class:`InvalidError` (relative, the root, no directory, not empty and no pool), :class:`NotFoundError`,
        :class:`UnavailableError` (read-only), :class:`ForbiddenError`, :class:`CorruptError`, :class:`ConflictError`
        (another process holds it).
        """
        place.check_name(name)
        real = place.resolve(path)
        place.prepare(real, create=create)
        lock = place.hold(real)
        try:
            chosen = place.furnish(real, name, driver)
        except BaseException:
            os.close(lock)
            raise
        return cls(real, name, lock, step, chosen, overcommit)

    def close(self) -> None:
        """Let another process open the pool."""
        held, self._held = self._held, -1
        if held >= 0:
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
                return self._build("provision", self._volumes / request.id, make, lambda: self._existing(request))

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
        sync_directory(self._volumes)  # whoever made it may have died before this
        return found

    def _build(
        self,
        what: str,
        final: Path,
        make: Callable[[Path], Volume],
        existing: Callable[[], Volume | None],
    ) -> Volume:
        """Have *make* make data in a directory aside, and move that to *final*, unless *existing* is faster."""
        self._step(f"{what}: begun")
        temporary = self._tmp / f"{final.name[:64]}.{uuid.uuid4().hex}"
        self._building.add(temporary.name)
        try:
            temporary.mkdir(mode=0o700)
            self._step(f"{what}: directory made")
            made = make(temporary)
            self._step(f"{what}: data made")
            made.save(temporary)
            self._step(f"{what}: record written")
            try:
                with self._mutex:
                    temporary.rename(final)
            except OSError as e:
                if e.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                self._discard(temporary)
                found = existing()  # another thread was faster
                if found is None:
                    raise
                return found
            self._step(f"{what}: renamed")
            sync_directory(final.parent)
            sync_directory(self._tmp)
            self._step(f"{what}: durable")
        except BaseException:
            with contextlib.suppress(OSError):
                self._discard(temporary)
            raise
        finally:
            self._building.discard(temporary.name)
        return Volume.load(final, final.name)

    def _enforcer(self, request: VolumeRequest) -> Enforcer:
        limits = Limits(request.capacity_bytes, request.inode_limit)
        if not request.enforced or limits == NO_LIMITS:
            return "none"
        can = self.driver.capabilities()
        return "kernel" if can.enforces(limits) or (request.shared and can.quota_shared) else "ledger"

    def _discard(self, temporary: Path) -> None:
        if temporary.is_dir():
            self.driver.remove(temporary / DATA, {})
            removal.empty(temporary)
            temporary.rmdir()

    def _driver_of(self, volume: Volume) -> Driver:
        return self.driver if volume.driver == self.driver.name else drivers.by_name(volume.driver, self.path)

    def volume(self, volume: str) -> Volume:
        """A volume. Raises :class:`NotFoundError`, :class:`CorruptError` (its files are left alone)."""
        directory = self._directory(volume)
        found = Volume.load(directory, volume)
        if found.data.is_symlink() or not found.data.is_dir():
            raise CorruptError(
                f"Volume {volume} has lost its directory {found.data}: put it back from a backup, or delete the volume."
            )
        return found

    def _directory(self, volume: str) -> Path:
        return self._present(self._volumes / check_id(volume), "volume")

    def _present(self, directory: Path, what: str) -> Path:
        """*directory*, which is there. Raises :class:`NotFoundError`."""
        try:
            directory.lstat()
        except FileNotFoundError as e:
            raise NotFoundError(
                f"There is no {what} {directory.name} in pool {self.name}: see `fusevol pool show`."
            ) from e
        except OSError as e:
            raise place.explain(self.path, f"{what} {directory.name}", e) from e
        return directory

    def volumes(self) -> list[Volume]:
        """All volumes whose record can be read, by id; :meth:`check` tells of the others."""
        return self._readable(self._volumes)

    def _readable(self, room: Path) -> list[Volume]:
        found = []
        with place.explained(self.path, f"listing its {room.name}"):
            names = sorted(os.listdir(room))
        for name in names:
            with contextlib.suppress(CorruptError, InvalidError):
                found.append(Volume.load(room / check_id(name), name))
        return found

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
                changed.save(self._directory(volume))
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

    def capacity(self) -> PoolCapacity:
        """What the pool's filesystem has and what was promised of it."""
        with place.explained(self.path, "asking for its capacity"):
            st = os.statvfs(self.path)
        volumes = self.volumes()
        provisioned = sum(v.capacity_bytes or 0 for v in volumes)
        return PoolCapacity(st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize, provisioned, len(volumes))

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
            sync_directory(self._snapshots)
            return found

        def make(directory: Path) -> Volume:
            source = self.volume(volume)
            backing = self._driver_of(source).snapshot(source.data, source.backing, directory / DATA)
            copied()
            return source.kept_as(snapshot, directory, backing, {**(labels or {}), SNAPSHOT_OF: volume})

        with place.explained(self.path, f"snapshot {snapshot}"):
            return existing() or self._build("snapshot", self._snapshots / snapshot, make, existing)

    def find_snapshot(self, snapshot: str) -> Volume:
        """A snapshot. Raises :class:`NotFoundError`, :class:`CorruptError`."""
        return Volume.load(self._present(self._snapshots / check_id(snapshot), "snapshot"), snapshot)

    def snapshots(self) -> list[Volume]:
        """All snapshots whose record can be read, by id."""
        return self._readable(self._snapshots)

    def delete_snapshot(self, snapshot: str) -> TrashEntry:
        """Move a snapshot to the trash, from where it cannot be restored as it was, only purged."""
        with self._mutex, place.explained(self.path, f"deleting snapshot {snapshot}"):
            return self._throw_away(self._present(self._snapshots / check_id(snapshot), "snapshot"), "deleted")

    # trash

    def trash(self, volume: str, reason: str = "deleted", retention: int | None = None) -> TrashEntry:
        """Move a volume to the trash. Works for a damaged volume and in a full pool, too.

        *retention*: seconds that it shall be kept there; ``None``: as its record says.

        Raises :class:`NotFoundError`, and :class:`ConflictError` while something is mounted in it. That nobody serves
        it any more is the caller's duty.
        """
        with self._mutex, place.explained(self.path, f"deleting volume {volume}"):
            directory = self._directory(volume)
            kept = trash.retention_of(directory, volume) if retention is None else retention
            entry = self._throw_away(directory, reason, kept)
            self._forget(volume)
            return entry

    def _throw_away(self, directory: Path, reason: str, retention: int = 0) -> TrashEntry:
        _refuse_mounts(directory)
        self._step("trash: begun")
        try:
            trash.write_note(directory, reason, trash.owner_of(directory, directory.name), retention)
        except OSError as e:
            # deleting is how a full pool gets space; and no note is no reason to keep what is no directory
            if e.errno not in {errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}:
                raise
        self._step("trash: note written")
        target = self._unused(directory.name)
        directory.rename(target)
        self._step("trash: renamed")
        sync_directory(self._trash)
        sync_directory(directory.parent)
        self._step("trash: durable")
        entry = trash.read_entry(target)
        if entry is None:
            raise NotFoundError(f"The deleted {directory.name} is gone from the trash of pool {self.name} already.")
        return entry

    def _unused(self, volume: str) -> Path:
        number = 1
        while os.path.lexists(self._trash / f"{volume}.{number}"):
            number += 1
        return self._trash / f"{volume}.{number}"

    def trashed(self) -> list[TrashEntry]:
        """All that is in the trash, by name, half-deleted volumes included."""
        with place.explained(self.path, "listing its trash"):
            names = sorted(os.listdir(self._trash))
        return [e for e in (trash.read_entry(self._trash / name) for name in names) if e is not None]

    def restore(self, entry: TrashEntry) -> Volume:
        """Make a deleted volume a volume again.

        Raises :class:`NotFoundError`, :class:`AlreadyExistsError` (its id is in use), :class:`ConflictError` (its
        deletion has begun).
        """
        with self._mutex, place.explained(self.path, f"restoring {entry.name}"):
            directory = self._entry(entry)
            if not (directory / DATA).is_dir():
                raise ConflictError(f"The deletion of {entry.name} has begun: it cannot be restored any more.")
            if SNAPSHOT_OF in self._labels(directory, entry.volume):
                raise ConflictError(f"{entry.name} is a deleted snapshot: make a volume of it before you delete it.")
            final = self._volumes / check_id(entry.volume)
            if os.path.lexists(final):
                raise AlreadyExistsError(
                    f"Volume {entry.volume} exists again: delete that one before you restore this."
                )
            self._step("restore: begun")
            with self._promised(entry.volume, _capacity(directory, entry.volume)):
                directory.rename(final)
            self._step("restore: renamed")
            (final / trash.NOTE).unlink(missing_ok=True)
            sync_directory(final)
            sync_directory(self._volumes)
            sync_directory(self._trash)
            self._step("restore: durable")
        return self.volume(entry.volume)

    @staticmethod
    def _labels(directory: Path, volume: str) -> Mapping[str, str]:
        try:
            return Volume.load(directory, volume).labels
        except CorruptError:
            return {}

    def purge(self, entry: TrashEntry, progress: Callable[[int], None] | None = None) -> None:
        """Delete what is in the trash for ever. May take long: for a thread of its own. Gone already is fine, and so is
        one that was restored and has been deleted again since: that is another one.

        *progress* is called with the number of inodes that are gone; what it raises ends the purge, which another call
        completes. Raises :class:`ConflictError` when something is mounted in it; what is mounted is not touched.
        """
        with place.explained(self.path, f"purging {entry.name}"):
            with self._mutex:
                try:
                    directory = self._entry(entry)
                except NotFoundError:
                    return
                _refuse_mounts(directory)
                if directory.is_symlink() or not directory.is_dir():
                    directory.unlink()
                    return
                found = trash.read_entry(directory)
                if found and not found.purging and (found.trashed, found.retention) != (entry.trashed, entry.retention):
                    return
                self._step("purge: begun")
                with contextlib.suppress(FileNotFoundError):
                    (directory / DATA).rename(directory / trash.PURGING)
                    sync_directory(directory)
                self._step("purge: marked")
            driver, backing = self._made_by(directory, entry.volume)
            driver.remove(directory / trash.PURGING, backing, progress)
            self._step("purge: data removed")
            removal.empty(directory)
            self._step("purge: emptied")
            with contextlib.suppress(FileNotFoundError):
                directory.rmdir()
            self._step("purge: removed")
            sync_directory(self._trash)

    def _made_by(self, directory: Path, volume: str) -> tuple[Driver, Mapping[str, str]]:
        """The driver for what is in *directory*, and what it wants to know; a damaged record tells neither."""
        try:
            found = Volume.load(directory, volume)
        except CorruptError:
            return self.driver, {}
        return self._driver_of(found), found.backing

    def _entry(self, entry: TrashEntry) -> Path:
        directory = self._trash / entry.name
        if "/" in entry.name or not os.path.lexists(directory):
            raise NotFoundError(f"There is no {entry.name} in the trash of pool {self.name}: see `fusevol trash list`.")
        return directory

    # care

    def sweep(self) -> list[str]:
        """Remove what dead provisioning left; returns what it was. What living threads build is left alone."""
        self._check_open()
        swept = []
        with place.explained(self.path, "clearing leftovers away"):
            for name in sorted(set(os.listdir(self._tmp)) - self._building):
                leftover = self._tmp / name
                try:
                    if leftover.is_symlink() or not leftover.is_dir():
                        leftover.unlink(missing_ok=True)  # finished meanwhile
                    else:
                        _refuse_mounts(leftover)
                        self._discard(leftover)
                        swept.append(f"{place.TMP}/{name}")
                except (ConflictError, OSError) as e:  # no reason to leave the pool closed
                    log.warning("pool %s: %s cannot be cleared away: %s", self.name, leftover, e)
            with self._mutex:
                for name in sorted(os.listdir(self._volumes)):
                    directory = self._volumes / name
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
            return inspect(self.path, self._building, self._driver_of)

    def _check_open(self) -> None:
        if self._held < 0:
            raise UnavailableError(f"The pool {self.path} was closed: open it again.")

    def __repr__(self) -> str:
        """Shows name and path."""
        return f"<Pool {self.name} at {self.path}{' (closed)' if self._held < 0 else ''}>"


def _size(capacity_bytes: int | None, inode_limit: int | None) -> str:
    size = "no size limit" if capacity_bytes is None else f"{capacity_bytes} bytes"
    return size if inode_limit is None else f"{size} and {inode_limit} inodes"


def _capacity(directory: Path, volume: str) -> int | None:
    try:
        return Volume.load(directory, volume).capacity_bytes
    except CorruptError:
        return None


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


def _refuse_mounts(directory: Path) -> None:
    points = place.mounted_below(directory)
    if points:
        raise ConflictError(f"Something is mounted at {points[0]}: unmount it before {directory.name} is deleted.")
