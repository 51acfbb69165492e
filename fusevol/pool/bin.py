"""Moves things into a pool's trash, back out of it, and away for ever. What an entry is: ``fusevol.pool.trash``."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from fusevol.errors import AlreadyExistsError, ConflictError, CorruptError, NotFoundError
from fusevol.files import sync_directory
from fusevol.pool import drivers, place, removal, trash
from fusevol.pool.drivers import Driver
from fusevol.pool.record import DATA, SNAPSHOT_OF, Volume
from fusevol.pool.steps import Step
from fusevol.pool.trash import TrashEntry

Promised = Callable[[str, int | None], contextlib.AbstractContextManager[None]]
"""See ``Promises.promised``."""


class Bin:
    """Raises ``OSError`` for what the filesystem says, and children of ``FusevolError``."""

    def __init__(self, room: Path, pool: str, driver: Driver, mutex: threading.Lock, step: Step) -> None:
        """*room*: the directory; *pool*: the name of its pool; *driver*: what volumes without a record are taken for.

        *mutex* guards names.
        """
        self._room = room
        self._pool = pool
        self._driver = driver
        self._mutex = mutex
        self._step = step

    def throw_away(self, directory: Path, reason: str, retention: int = 0) -> TrashEntry:
        """Move *directory*, a volume's or a snapshot's, to the trash. Only under the mutex.

        Raises :class:`ConflictError` while something is mounted in it.
        """
        place.refuse_mounts(directory)
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
        sync_directory(self._room)
        sync_directory(directory.parent)
        self._step("trash: durable")
        entry = trash.read_entry(target)
        if entry is None:
            raise NotFoundError(f"The deleted {directory.name} is gone from the trash of pool {self._pool} already.")
        return entry

    def _unused(self, volume: str) -> Path:
        number = 1
        while os.path.lexists(self._room / f"{volume}.{number}"):
            number += 1
        return self._room / f"{volume}.{number}"

    def entries(self) -> list[TrashEntry]:
        """All that is in it, by name, half-deleted volumes included."""
        names = sorted(os.listdir(self._room))
        return [e for e in (trash.read_entry(self._room / name) for name in names) if e is not None]

    def restore(self, entry: TrashEntry, final: Path, promised: Promised) -> None:
        """Move a deleted volume to *final*, if it is *promised* its room. Only under the mutex.

        Raises :class:`NotFoundError`, :class:`AlreadyExistsError` (its id is in use), :class:`ConflictError` (its
        deletion has begun, or it is a snapshot), and what *promised* raises.
        """
        directory = self._entry(entry)
        if not (directory / DATA).is_dir():
            raise ConflictError(f"The deletion of {entry.name} has begun: it cannot be restored any more.")
        record = _record(directory, entry.volume)
        if record is not None and SNAPSHOT_OF in record.labels:
            raise ConflictError(f"{entry.name} is a deleted snapshot: make a volume of it before you delete it.")
        if os.path.lexists(final):
            raise AlreadyExistsError(f"Volume {entry.volume} exists again: delete that one before you restore this.")
        self._step("restore: begun")
        with promised(entry.volume, None if record is None else record.capacity_bytes):
            directory.rename(final)
        self._step("restore: renamed")
        (final / trash.NOTE).unlink(missing_ok=True)
        sync_directory(final)
        sync_directory(final.parent)
        sync_directory(self._room)
        self._step("restore: durable")

    def purge(self, entry: TrashEntry, progress: Callable[[int], None] | None = None) -> None:
        """See ``Pool.purge``. Takes the mutex for a moment."""
        with self._mutex:
            try:
                directory = self._entry(entry)
            except NotFoundError:
                return
            place.refuse_mounts(directory)
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
        sync_directory(self._room)

    def _made_by(self, directory: Path, volume: str) -> tuple[Driver, Mapping[str, str]]:
        """The driver for what is in *directory*, and what it wants to know; a damaged record tells neither."""
        found = _record(directory, volume)
        return (self._driver, {}) if found is None else (drivers.that_made(found.driver, self._driver), found.backing)

    def _entry(self, entry: TrashEntry) -> Path:
        directory = self._room / entry.name
        if "/" in entry.name or not os.path.lexists(directory):
            raise NotFoundError(
                f"There is no {entry.name} in the trash of pool {self._pool}: see `fusevol trash list`."
            )
        return directory


def _record(directory: Path, volume: str) -> Volume | None:
    try:
        return Volume.load(directory, volume)
    except CorruptError:
        return None
