"""The pools of this node, for the trio loop: blocking calls in worker threads, one at a time per volume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import trio

from agent.steps import Step, no_step
from fusevol.errors import FusevolError, NotFoundError
from fusevol.pool import Pool, PoolCapacity, TrashEntry, Volume, VolumeRequest

log = logging.getLogger(__name__)
T = TypeVar("T")


class Pools:
    """All pools by name."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = dict(pools)
        self._locks: WeakValueDictionary[tuple[str, str], trio.Lock] = WeakValueDictionary()
        self._trash = trio.Event()
        self._trash.set()

    @classmethod
    async def open(cls, paths: Mapping[str, Path], *, step: Step = no_step) -> Pools:
        """Open or create the pools and clear away what died half-made in them."""
        opened: dict[str, Pool] = {}
        for name, path in paths.items():
            opened[name] = await trio.to_thread.run_sync(partial(Pool.open, path, name, create=True, step=step))
            await trio.to_thread.run_sync(opened[name].sweep)
        return cls(opened)

    @property
    def names(self) -> list[str]:
        """Names of the pools."""
        return sorted(self._pools)

    def get(self, name: str) -> Pool:
        """A pool. Raises :class:`NotFoundError`."""
        found = self._pools.get(name)
        if found is None:
            raise NotFoundError(f'There is no pool "{name}" on this node: choose one of {", ".join(self.names)}.')
        return found

    @property
    def preferred(self) -> str:
        """The pool for what names none."""
        return "default" if "default" in self._pools else self.names[0]

    async def provision(self, pool: str, request: VolumeRequest) -> Volume:
        """Make a volume; the same request again finds it made."""
        return await self._locked(pool, request.id, lambda p: p.provision(request))

    async def volume(self, pool: str, volume: str) -> Volume:
        """A volume. Raises :class:`NotFoundError` or :class:`CorruptError`."""
        return await self._locked(pool, volume, lambda p: p.volume(volume))

    async def volumes(self, pool: str) -> list[Volume]:
        """All volumes of a pool."""
        return await trio.to_thread.run_sync(self.get(pool).volumes)

    async def resize(self, pool: str, volume: str, capacity: int, inodes: int | None) -> Volume:
        """Set a volume's limits."""
        return await self._locked(pool, volume, lambda p: p.resize(volume, capacity, inodes))

    async def discard(self, pool: str, volume: str) -> None:
        """Move a volume to the trash, from where it is purged in the background; nothing to do if it is gone."""
        try:
            await self._locked(pool, volume, lambda p: p.trash(volume))
        except NotFoundError:
            return
        self._trash.set()

    async def capacity(self, pool: str) -> PoolCapacity:
        """What a pool holds."""
        return await trio.to_thread.run_sync(self.get(pool).capacity)

    async def check(self, pool: str) -> list[Any]:
        """Damage that a look at the whole pool finds."""
        return list(await trio.to_thread.run_sync(self.get(pool).check))

    async def empty_trash(self) -> None:
        """Delete what is in the trash, for ever, whenever something is put there."""
        while True:
            await self._trash.wait()
            self._trash = trio.Event()
            for name, pool in self._pools.items():
                try:
                    for entry in await trio.to_thread.run_sync(pool.trashed):
                        await trio.to_thread.run_sync(_purge, pool, entry)
                except (FusevolError, OSError) as e:
                    log.warning("The trash of pool %s cannot be emptied: %s", name, e)

    async def _locked(self, pool: str, volume: str, action: Callable[[Pool], T]) -> T:
        opened = self.get(pool)
        lock = self._locks.get((pool, volume))
        if lock is None:
            lock = self._locks[pool, volume] = trio.Lock()
        async with lock:
            return await trio.to_thread.run_sync(action, opened)


def _purge(pool: Pool, entry: TrashEntry) -> None:
    pool.purge(entry)
