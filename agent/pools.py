"""The pools of this node, for the trio loop: one call at a time per volume, and none waits for a pool that hangs."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import trio

from agent.config import PoolSettings
from agent.hazard import PATIENCE, Recoveries
from agent.poolbook import Order, PoolBook
from agent.poolplace import Mounted, NotMountedError, Place, Room
from agent.steps import Step, no_step
from agent.tally import Timings
from agent.volumes.still import Still
from fusevol.errors import (
    AlreadyExistsError,
    ConflictError,
    FusevolError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from fusevol.lease import Holder
from fusevol.pool import Failure, Pool, PoolCapacity, Tenancy, TrashEntry, Volume, VolumeRequest
from fusevol.pool.comparison import first_difference
from fusevol.pool.drivers import Capabilities

log = logging.getLogger(__name__)
T = TypeVar("T")


class Pools:
    """All pools by name."""

    def __init__(
        self,
        places: Mapping[str, Place],
        book: PoolBook | None,
        patience: float,
        recoveries: Recoveries | None,
        step: Step,
        holder: Holder | None = None,
    ) -> None:
        """Use :meth:`open`."""
        self._holder = holder
        self.learn: Callable[[], None] = lambda: None
        """Called before a pool is said to be unknown: an object that names it may have come meanwhile."""
        self._places = dict(places)
        self._book = book
        self._patience = patience
        self._recoveries = recoveries
        self._step = step
        self.provisioning = Timings()
        """How long volumes took to make, by pool."""
        self._changing = trio.Lock()
        """Held while a pool is made or deleted."""
        self._nursery: trio.Nursery | None = None
        """Where trash is emptied."""
        self._locks: WeakValueDictionary[tuple[str, str], trio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(
        cls,
        settings: Mapping[str, PoolSettings],
        *,
        book: PoolBook | None = None,
        patience: float = PATIENCE,
        recoveries: Recoveries | None = None,
        step: Step = no_step,
        holder: Holder | None = None,
    ) -> Pools:
        """Open or create the pools of the configuration, and open those of *book*; *holder* is who this is, for other
        nodes that have them.

        One that does not answer within *patience* seconds is opened when it does. One of *book* that cannot be opened
        is tried again whenever something is wanted of it, and refuses that with the reason. Raises what another one
        raises.
        """

        places = {
            name: Place(name, found, patience, recoveries, step, holder=holder) for name, found in settings.items()
        }
        for record in book.read() if book is not None else []:
            if record.name in places:
                log.warning("The pool %s of the configuration hides the one that was created.", record.name)
            elif book is not None:
                mounted = book.pool(record)
                places[record.name] = Place(
                    record.name, mounted.settings, patience, recoveries, step, mounted, made=True, holder=holder
                )
        failures: list[FusevolError] = []

        async def open_one(place: Place) -> None:
            try:
                await place.open()
            except FusevolError as e:
                if place.made:
                    log.warning("The pool %s cannot be used: %s", place.name, e)
                else:
                    failures.append(e)

        async with trio.open_nursery() as nursery:
            for place in places.values():
                nursery.start_soon(open_one, place)
        if failures:
            raise failures[0]
        return cls(places, book, patience, recoveries, step, holder)

    def attach(self, name: str, mounted: Mounted) -> None:
        """Have another pool from now on, which is mounted and made when something is done with it first."""
        if name in self._places:
            return
        place = Place(
            name,
            PoolSettings(path=mounted.pool),
            self._patience,
            self._recoveries,
            self._step,
            mounted,
            holder=self._holder,
        )
        self._places[name] = place
        if self._nursery is not None:
            self._nursery.start_soon(place.empty_trash)

    async def create(self, order: Order) -> None:
        """Make a pool. Raises :class:`AlreadyExistsError`, and what :meth:`PoolBook.make` and opening it raise."""
        book = self._own_book()
        async with self._changing:
            record = order.record
            if record.name in self._places:
                raise AlreadyExistsError(f'There is a pool "{record.name}" already: choose another name.')
            place = book.settings(record).path
            for other in self._places.values():
                if place == other.path:
                    raise AlreadyExistsError(f'The pool "{other.name}" is at {place}: choose another directory.')
            record = await trio.to_thread.run_sync(book.make, order)
            mounted = book.pool(record)
            made = Place(
                record.name,
                mounted.settings,
                self._patience,
                self._recoveries,
                self._step,
                mounted,
                made=True,
                holder=self._holder,
            )
            try:
                await made.run(lambda _pool: None)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(book.remove, record)
                raise
            self._places[record.name] = made
            if self._nursery is not None:
                self._nursery.start_soon(made.empty_trash)

    async def grow(self, name: str, size: int | None) -> None:
        """Make a pool larger while it is in use; *size* in bytes, for an image."""
        place = self._place(name)
        book = self._own_book()
        record = book.find(name) if place.made else None
        if record is None:
            raise InvalidError(f"The pool {name} is of the configuration: make its filesystem larger by its own means.")
        async with self._changing:
            await place.run_long(lambda _pool: book.grow(record, size))

    async def remove(self, name: str, *, forget: bool = False) -> None:
        """Delete a pool that has no volumes. Raises :class:`ConflictError` while there is something in it.

        *forget*: also one that cannot be looked into; its image file, if there is one, stays.
        """
        place = self._place(name)
        book = self._own_book()
        record = book.find(name) if place.made else None
        if record is None:
            raise InvalidError(f"The pool {name} is of the configuration: take it out there.")
        async with self._changing:
            if record.made:
                try:
                    await place.run(partial(_check_empty, name))
                except UnavailableError as e:
                    if not forget:
                        raise UnavailableError(f"{e.message} Or have the pool forgotten, with --force.") from e
                    record = replace(record, own_image=False)
            forgotten = record
            place.closing.cancel()

            def let_go() -> None:
                place.close()
                book.remove(forgotten)

            try:
                await trio.to_thread.run_sync(let_go)
            except BaseException:
                place.closing = trio.CancelScope()
                if self._nursery is not None:
                    self._nursery.start_soon(place.empty_trash)
                raise
            del self._places[name]

    def _own_book(self) -> PoolBook:
        if self._book is None:
            raise InvalidError("This agent keeps no pools of its own: name them in its configuration.")
        return self._book

    def describe(self, name: str) -> dict[str, Any]:
        """What is known of a pool without asking it. Raises :class:`NotFoundError`, :class:`CorruptError`."""
        place = self._place(name)
        found: dict[str, Any] = {
            "name": name, "path": str(place.path), "overcommit": place.settings.overcommit, "made": place.made
        }  # fmt: skip
        record = self._book.find(name) if self._book is not None and place.made else None
        if record is not None:
            found["source"] = {"kind": record.kind, "place": record.place, "fs": record.fs, "uuid": record.uuid}
        return found

    async def capabilities(self, name: str) -> tuple[str, Capabilities]:
        """A pool's driver and what it can do now."""
        return await self._place(name).run(lambda p: (p.driver.name, p.driver.capabilities()))

    @property
    def names(self) -> list[str]:
        """Names of the pools."""
        return sorted(self._places)

    def path(self, name: str) -> Path:
        """Where a pool is. Raises :class:`NotFoundError`."""
        return self._place(name).path

    def hangs(self, name: str) -> bool:
        """Whether a pool does not answer now. Raises :class:`NotFoundError`."""
        return self._place(name).hangs

    async def failure(self, name: str) -> Failure | None:
        """Why a pool cannot be used; ``None`` if it can. Raises :class:`NotFoundError`, and :class:`UnavailableError`
        if it does not say."""
        return await self._place(name).failure()

    async def let_go(self, name: str) -> None:
        """Have nothing open in a pool, so that its filesystem can be mounted anew; what is done next opens it again."""
        await self._place(name).let_go()

    def _place(self, name: str) -> Place:
        if name not in self._places:
            self.learn()
        found = self._places.get(name)
        if found is None:
            raise NotFoundError(f'There is no pool "{name}" on this node: choose one of {", ".join(self.names)}.')
        return found

    @property
    def preferred(self) -> str:
        """The pool for what names none."""
        return "default" if "default" in self._places else self.names[0]

    async def provision(self, pool: str, request: VolumeRequest) -> Volume:
        """Make a volume; the same request again finds it made."""
        with self.provisioning.timed(pool):
            return await self._locked(pool, request.id, lambda p: p.provision(request))

    async def fill(
        self, pool: str, request: VolumeRequest, where: str, source: str, *, snapshot: bool, still: Still
    ) -> Volume:
        """Make a volume that begins with what *source*, a volume or a snapshot of the pool *where*, has now.

        The same request again finds it made. *still* is entered where the copy of a volume takes time.
        """
        async with self._lock(where, _snapshot(source) if snapshot else source):  # it must not go away meanwhile
            found = await self._place(where).run(lambda p: p.find_snapshot(source) if snapshot else p.volume(source))
            async with self._lock(pool, request.id):
                at_once = snapshot or await self._place(pool).run(lambda p: p.clones_at_once(found))
                async with contextlib.nullcontext(still) if at_once else still:
                    with self.provisioning.timed(pool):
                        return await self._place(pool).run_long(lambda p: p.provision(request, found, still.end))

    async def snapshot(
        self, pool: str, volume: str, snapshot: str, still: Still, labels: Mapping[str, str] | None = None
    ) -> Volume:
        """Keep what a volume has now; the same again finds it kept. *still* is entered where that takes time."""
        place = self._place(pool)
        async with self._lock(pool, volume):
            at_once = await place.run(lambda p: p.snapshots_at_once(volume))
            async with contextlib.nullcontext(still) if at_once else still:
                return await place.run_long(lambda p: p.snapshot(volume, snapshot, labels, copied=still.end))

    async def copy_to(self, pool: str, where: str, volume: str) -> Volume:
        """Make a volume in *pool* that is what *volume* is in the pool *where*, which nobody may use meanwhile.

        Raises :class:`UnavailableError` if the copy is not the same; then there is none.
        """
        async with self._lock(where, volume):
            source = await self._place(where).run(lambda p: p.volume(volume))
            async with self._lock(pool, volume):
                place = self._place(pool)
                made = await place.run_long(lambda p: p.provision(source.wanted(), source))
                lost = await place.run_long(lambda _: first_difference(source.data, made.data))
                if lost is not None:
                    await place.run(lambda p: p.trash(volume, "a bad copy", 0))
                    raise UnavailableError(f"The copy in pool {pool} is not the same, and was deleted: {lost}.")
                return made

    async def find_snapshot(self, pool: str, snapshot: str) -> Volume:
        """A snapshot. Raises :class:`NotFoundError` or :class:`CorruptError`."""
        return await self._locked(pool, _snapshot(snapshot), lambda p: p.find_snapshot(snapshot))

    async def delete_snapshot(self, pool: str, snapshot: str) -> None:
        """Delete a snapshot, its data in the background; nothing to do if it is gone."""
        try:
            await self._locked(pool, _snapshot(snapshot), lambda p: p.delete_snapshot(snapshot))
        except NotFoundError:
            return
        self._place(pool).discarded.set()

    async def volume(self, pool: str, volume: str) -> Volume:
        """A volume. Raises :class:`NotFoundError` or :class:`CorruptError`."""
        return await self._locked(pool, volume, lambda p: p.volume(volume))

    async def volumes(self, pool: str) -> list[Volume]:
        """All volumes of a pool."""
        return await self._place(pool).run(lambda p: p.volumes())

    async def has(self, pool: str, look: Callable[[Pool], object], seconds: float) -> bool:
        """Whether a pool has what *look* looks for. Raises :class:`UnavailableError` if it does not say so soon."""
        try:
            await self._place(pool).glance(look, seconds)
        except NotFoundError:
            return False
        return True

    async def glance(self, pool: str, look: Callable[[Pool], T], seconds: float) -> T:
        """The result of *look*, if there is one soon. Raises :class:`UnavailableError`, at once if the pool hangs."""
        place = self._place(pool)
        if place.hangs:
            raise UnavailableError(f'The pool "{pool}" does not answer.')
        return await place.glance(look, seconds)

    async def resize(self, pool: str, volume: str, capacity: int | None, inodes: int | None) -> Volume:
        """Set a volume's limits."""
        return await self._locked(pool, volume, lambda p: p.resize(volume, capacity, inodes))

    async def discard(self, pool: str, volume: str, reason: str = "deleted", retention: int | None = None) -> None:
        """Move a volume to the trash, from where it is purged in the background; nothing to do if it is gone.

        *retention*: seconds until then; ``None``: as its record says.
        """
        try:
            await self._locked(pool, volume, lambda p: p.trash(volume, reason, retention))
        except NotFoundError:
            return
        self._place(pool).discarded.set()

    @property
    def agent(self) -> str:
        """Who this is, in pools that other nodes have, too."""
        return self._holder.agent if self._holder is not None else ""

    async def lease(self, pool: str, volume: str, *, alone: bool) -> Tenancy | None:
        """See :meth:`Pool.lease`."""
        return await self._locked(pool, volume, lambda p: p.lease(volume, alone=alone))

    async def release(self, pool: str, volume: str) -> None:
        """See :meth:`Pool.release`; nothing to do if the volume is gone."""
        with contextlib.suppress(NotFoundError):
            await self._locked(pool, volume, lambda p: p.release(volume))

    async def trashed(self, pool: str) -> list[TrashEntry]:
        """What is in a pool's trash."""
        return await self._place(pool).run(lambda p: p.trashed())

    async def purge(self, pool: str, entry: TrashEntry) -> None:
        """Delete something in the trash for ever, before its time is over. May take long."""
        await self._place(pool).purge(entry)

    async def restore(self, pool: str, entry: TrashEntry) -> Volume:
        """Take a volume out of the trash. Raises what :meth:`Pool.restore` raises."""
        return await self._locked(pool, entry.volume, lambda p: p.restore(entry))

    async def discard_leftover(self, likely: str, volume: str) -> None:
        """Move a volume that was made and never used to the trash, wherever it is: in the pool *likely*, it seems.

        Raises :class:`UnavailableError` if that one hangs. Another one that does is passed over.
        """
        for pool in self.names:
            try:
                await self.discard(pool, volume, "never used", 0)
            except UnavailableError as e:
                # one that cannot even be mounted may never be: nobody could get rid of the claim
                if pool == likely and not isinstance(e, NotMountedError):
                    raise
                log.info("Whether %s has something of %s is not known: %s", pool, volume, e)
            except FusevolError as e:  # nothing was ever made in a pool that refuses us, or nobody else may know
                log.warning("Whether %s has something of %s cannot be known: %s", pool, volume, e)

    async def run(self, pool: str, action: Callable[[Pool], T]) -> T:
        """The result of *action*, in one of the pool's threads."""
        return await self._place(pool).run(action)

    async def capacity(self, pool: str) -> PoolCapacity:
        """What a pool holds."""
        return await self._place(pool).run(lambda p: p.capacity())

    async def room(self, pool: str) -> Room:
        """What a pool's filesystem has, as ``df`` shows it; asks for no volume."""
        found = await self._place(pool).run(lambda p: os.statvfs(p.path))
        return Room.of(found)

    async def check(self, pool: str) -> list[Any]:
        """Damage that a look at the whole pool finds."""
        return list(await self._place(pool).run_long(lambda p: p.check()))

    async def empty_trash(self) -> None:
        """Empty all pools' trash, for ever."""
        async with trio.open_nursery() as self._nursery:
            for place in self._places.values():
                self._nursery.start_soon(place.empty_trash)
            await trio.sleep_forever()  # a pool may come

    async def _locked(self, pool: str, volume: str, action: Callable[[Pool], T]) -> T:
        place = self._place(pool)
        async with self._lock(pool, volume):
            return await place.run(action)

    def _lock(self, pool: str, volume: str) -> trio.Lock:
        """The lock of one volume or snapshot; it exists for as long as somebody has or wants it."""
        lock = self._locks.get((pool, volume))
        if lock is None:
            lock = self._locks[pool, volume] = trio.Lock()
        return lock


def _snapshot(snapshot: str) -> str:
    """The name of a snapshot's lock: a volume may have the same id."""
    return f"snapshot/{snapshot}"


def _check_empty(name: str, pool: Pool) -> None:
    for what, found in (("volume", pool.volumes()), ("snapshot", pool.snapshots())):
        if found:
            raise ConflictError(
                f"The pool {name} has {len(found)} {what}{'s' if len(found) > 1 else ''} ({found[0].id}): "
                "delete them first."
            )
    trashed = pool.trashed()
    kept = [e for e in trashed if not e.purging and e.until > dt.datetime.now(dt.UTC)]
    if kept:
        raise ConflictError(
            f"The trash of the pool {name} keeps {kept[0].name}, {len(kept)} in all: restore them, or delete them "
            f"for ever with `fusevol trash purge --all {name}`."
        )
    if trashed:
        raise ConflictError(f"The trash of the pool {name} is being emptied: try again in a moment.")
    if left := os.listdir(pool.path / "volumes"):
        raise ConflictError(f"The pool {name} has something that is no volume ({left[0]}): see `fusevol pool check`.")
