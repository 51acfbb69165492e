"""A pool that is busy has not failed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.config import PoolSettings
from agent.pools import Pools
from fusevol.errors import UnavailableError
from fusevol.pool import Pool, failure_at
from tests.support.polling import eventually

PATIENCE = 0.5


@pytest.mark.expect_log("has not answered")
async def test_who_is_busy_does_not_say(workdir: Path) -> None:
    """Whoever asks while all threads are at work for too long learns nothing; afterwards, that nothing has failed."""
    pools = await Pools.open({"p": PoolSettings(path=workdir / "p")}, patience=PATIENCE)

    def work(_pool: Pool) -> None:
        time.sleep(0.6 * PATIENCE)  # what takes long; others wait for it

    async def busy() -> None:
        try:
            await pools.run("p", work)
        except UnavailableError:
            return

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(busy)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnavailableError, match=r"too busy|has not answered"):
            await pools.failure("p")
    await trio.to_thread.run_sync(lambda: eventually(lambda: not pools.hangs("p"), what="the last of them is done"))
    found = await pools.failure("p")

    assert found is None


def test_what_is_missing_has_not_failed(workdir: Path) -> None:
    """A directory that is not there says nothing of its filesystem."""
    assert failure_at(workdir / "missing") is None


async def test_who_was_not_used_is_not_looked_at(workdir: Path) -> None:
    """A share that a class names is mounted when something is made on it, and not to see how it is."""
    looked: list[str] = []

    class Share:
        """Counts how often it is mounted."""

        pool = workdir / "share"
        renewable = False

        def renew(self) -> bool:
            """Mount it."""
            looked.append("mounted")
            return False

        def unmount(self) -> None:
            """Nothing."""

    pools = await Pools.open({"p": PoolSettings(path=workdir / "p")})
    pools.attach("share", Share())
    before = await pools.failure("share"), list(looked)
    await pools.volumes("share")
    after = await pools.failure("share"), len(looked)

    assert before == (None, [])
    assert after == (None, 2)
