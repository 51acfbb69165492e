"""The agent's side of the trash: what is kept in it and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from agent.config import PoolSettings
from agent.pools import Pools
from fusevol.errors import ConflictError, NotFoundError
from fusevol.pool import TrashEntry, VolumeRequest
from fusevol.pool.trash import RETENTION


@pytest.mark.parametrize("used", [True, False])
async def test_what_was_never_used_is_not_kept(workdir: Path, used: bool) -> None:
    """A volume that was made for a claim which never got it goes at once, whatever its class says of deleted ones."""
    pools = await Pools.open({"p": PoolSettings(path=workdir / "p")})
    await pools.provision("p", VolumeRequest(id="v", capacity_bytes=1 << 20, labels={RETENTION: "3600"}))
    if used:
        await pools.discard("p", "v")
    else:
        await pools.discard_leftover("p", "v")
    (entry,) = await pools.trashed("p")

    assert (entry.retention, entry.reason) == ((3600, "deleted") if used else (0, "never used"))


@pytest.mark.parametrize("first", ["restore", "purge"])
async def test_restored_or_purged_but_not_both(workdir: Path, first: str) -> None:
    """Whichever of the two comes first, the volume is whole or gone."""
    pools = await Pools.open({"p": PoolSettings(path=workdir / "p")})
    for number in range(20):
        name = f"v{number}"
        made = await pools.provision("p", VolumeRequest(id=name, capacity_bytes=1 << 20, labels={RETENTION: "3600"}))
        for i in range(20):
            (made.data / str(i)).touch()
        await pools.discard("p", name)
        (entry,) = await pools.trashed("p")
        restored = await _both(pools, entry, first)
        left = os.listdir(made.data) if made.data.exists() else []
        assert len(left) == (20 if restored else 0)

        assert await pools.trashed("p") == []


async def _both(pools: Pools, entry: TrashEntry, first: str) -> bool:
    """Restore and purge *entry* at once; whether it was restored."""
    restored = False

    async def restore() -> None:
        nonlocal restored
        try:
            await pools.restore("p", entry)
        except (ConflictError, NotFoundError):
            return
        restored = True

    async def purge() -> None:
        await pools.purge("p", entry)

    async with trio.open_nursery() as nursery:
        for task in (restore, purge) if first == "restore" else (purge, restore):
            nursery.start_soon(task)
    return restored
