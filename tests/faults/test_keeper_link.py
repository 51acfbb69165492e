"""The agent's link to its keeper, in this process, with real keepers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import fusevol
from agent.keeper import KeeperInfo, KeeperLink
from agent.supervisor import KeeperSupervisor
from fusevol.keeper import client
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from tests.support.devices import tear_down
from tests.support.keepers import KeeperProcess
from tests.support.logs import LogCheck
from tests.support.processes import alive, descriptors, end_keepers

pytestmark = pytest.mark.root


@pytest.fixture
def directory(workdir: Path) -> Iterator[Path]:
    """Where a keeper is started by the link; it is ended with the test."""
    yield workdir
    tear_down(workdir)
    end_keepers(workdir)


async def _living(link: KeeperLink, but: int = 0) -> KeeperInfo:
    with trio.fail_after(20):
        while link.living is None or link.living.pid == but:  # noqa: ASYNC110  # nothing tells a test
            await trio.sleep(0.01)
    return link.living


def _spec(directory: Path, name: str) -> MountSpec:
    source, point = directory / f"{name}.src", directory / name
    source.mkdir()
    point.mkdir()
    return MountSpec(
        mount_id=name,
        source=str(source),
        mountpoint=str(point),
        control=str(directory / "servers" / f"{name}.sock"),
        log=str(directory / "servers" / f"{name}.log"),
    )


@pytest.mark.expect_log("gave no answer", r"The keeper \(pid \d+\) ended")
async def test_a_keeper_that_hangs_is_ended(directory: Path, nursery: trio.Nursery) -> None:
    """A keeper that does not answer in time is killed and replaced, and what it was asked for it never does."""
    link = KeeperLink(directory)
    nursery.start_soon(link.run)
    first = await _living(link)
    os.kill(first.pid, signal.SIGSTOP)
    answered = await link.call({"op": "list"}, seconds=0.1)
    second = await _living(link, but=first.pid)

    assert answered is None
    assert not alive(first.pid)
    assert await link.call({"op": "list"}) is not None
    assert second.pid != first.pid


async def test_a_keeper_of_another_version_is_replaced(
    workdir: Path, logs: LogCheck, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that finds a keeper of another version has one of the installed code take over, with all mounts."""
    old = KeeperProcess(workdir, logs).start()
    try:
        kept = old.serve("a")
        monkeypatch.setattr(fusevol, "__version__", "99.0")
        link = KeeperLink(workdir)
        nursery.start_soon(link.run)
        new = await _living(link, but=old.pid)
        status = await trio.to_thread.run_sync(old.wait)
        (kept.mountpoint / "f").write_text("x")
        served = await link.find("a")
        assert served is not None
        served.close()
        nursery.cancel_scope.cancel()
    finally:
        old.close()

    assert status == 0
    assert new.pid != old.pid
    assert served.pid != kept.pid
    assert not alive(kept.pid)


async def test_a_cancelled_start_leaves_nothing(directory: Path, nursery: trio.Nursery) -> None:
    """Whenever a start is cancelled, no server, no mount and no descriptor is left."""
    link = KeeperLink(directory)
    nursery.start_soon(link.run)
    supervisor = KeeperSupervisor(directory / "servers", link, nursery, lambda _name: None)
    await _living(link)
    spec = _spec(directory, "a")
    server = await supervisor.start(spec)
    await supervisor.stop("a")
    before = len(descriptors(os.getpid()))
    finished = 0
    for milliseconds in range(0, 30, 2):
        with trio.move_on_after(milliseconds / 1000):
            server = await supervisor.start(spec)
            finished += 1
            await supervisor.stop("a")
        if "a" in supervisor.servers:
            await supervisor.stop("a")
    living, _ = await trio.to_thread.run_sync(client.servers, directory)
    after = len(descriptors(os.getpid()))

    assert not alive(server.pid)
    assert living == []
    assert not mount.is_mounted(spec.mountpoint)
    assert after == before
    assert finished < 15


async def test_many_starts_at_once(directory: Path, nursery: trio.Nursery) -> None:
    """Starts do not wait for each other's mounts: many at once all succeed."""
    link = KeeperLink(directory)
    nursery.start_soon(link.run)
    supervisor = KeeperSupervisor(directory / "servers", link, nursery, lambda _name: None)
    specs = [_spec(directory, f"v{i}") for i in range(20)]
    async with trio.open_nursery() as starting:
        for spec in specs:
            starting.start_soon(supervisor.start, spec)
    count = len(supervisor.servers)
    pids = [server.pid for server in supervisor.servers.values()]
    async with trio.open_nursery() as stopping:
        for spec in specs:
            stopping.start_soon(supervisor.stop, spec.mount_id)

    assert count == 20
    assert not any(alive(pid) for pid in pids)
