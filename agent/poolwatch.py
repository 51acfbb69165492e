"""Looks after the pools' filesystems: one that has failed is told of, let go of, and taken up again when it works.

A filesystem that has met a damaged disk or lost it refuses everything, or to be written to, until it is unmounted and
mounted again; which it cannot be while volume servers and this agent have something open in it. One that hangs is no
matter here (:mod:`agent.hazard`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from agent.controllers.provisioning import handle_of
from agent.events import Recorder
from agent.pools import Pools
from agent.store import Key, Store
from fusevol.errors import FusevolError, NotFoundError, UnavailableError

Obj = dict[str, Any]
PERIOD: Final = 3.0
"""Seconds between two looks."""

log = logging.getLogger(__name__)


class PoolWatch:
    """For the trio loop."""

    def __init__(
        self,
        *,
        store: Store,
        events: Recorder,
        pools: Pools,
        end: Callable[[str], Awaitable[None]],
        recovered: Callable[[], None],
    ) -> None:
        """*end* ends the mounts of a pool's volumes; *recovered* has everything tried again that has failed."""
        self._store = store
        self._events = events
        self._pools = pools
        self._end = end
        self._recovered = recovered
        self._failed: dict[str, str] = {}
        """Why, by the pool's name."""

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await trio.sleep(PERIOD)
            async with trio.open_nursery() as nursery:
                for pool in self._pools.names:
                    nursery.start_soon(self._look, pool)

    async def _look(self, pool: str) -> None:
        try:
            found = await self._pools.failure(pool)
        except NotFoundError:  # it was deleted meanwhile
            self._failed.pop(pool, None)
            return
        except UnavailableError:  # it hangs, or is busy: that is no news
            return
        known = self._failed.get(pool)
        if found is None:
            if known is not None:
                del self._failed[pool]
                log.info("The pool %s works again.", pool)
                await self._tell(pool, "PoolRecovered", f"The pool {pool} works again.", warning=False)
                self._recovered()
            return
        self._failed[pool] = found.why
        if known != found.why:
            log.warning("The pool %s has failed: %s", pool, found.why)
            then = " Its volumes are mounted again when it works." if found.dead else ""
            await self._tell(pool, "PoolFailed", f"The pool {pool} has failed: {found.why}{then}", warning=True)
        if found.dead:
            try:
                await self._end(pool)
                await self._pools.let_go(pool)
            except (FusevolError, OSError) as e:
                log.info("The pool %s cannot be let go of yet: %s", pool, e)

    async def _tell(self, pool: str, reason: str, message: str, *, warning: bool) -> None:
        """Events on the claims that have volumes in *pool*."""
        tell = self._events.warning if warning else self._events.normal
        for volume in self._store.list("PersistentVolume"):
            ref = volume["spec"].get("claimRef") or {}
            if (handle_of(volume) or "").startswith(f"{pool}/"):
                key = Key("PersistentVolumeClaim", str(ref.get("namespace") or ""), str(ref.get("name") or ""))
                claim = self._store.find(key)
                if claim is not None and claim["metadata"]["uid"] == ref.get("uid"):
                    await tell(claim, reason, message)
