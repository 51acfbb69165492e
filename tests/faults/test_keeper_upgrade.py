"""A keeper that takes over from another one, and what can come between them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusevol.keeper import client
from fusevol.transport import mount
from tests.support import eventually
from tests.support.keepers import KeeperProcess, rescued
from tests.support.logs import LogCheck
from tests.support.processes import alive

pytestmark = [pytest.mark.root]

MIB = 1 << 20


@pytest.fixture
def keeper(workdir: Path, logs: LogCheck) -> Iterator[KeeperProcess]:
    """A running keeper whose servers hang on command."""
    (workdir / "faults").mkdir()
    with rescued(KeeperProcess(workdir, logs, module="tests.support.faulty_keeper")) as running:
        yield running


def test_all_mounts_move(keeper: KeeperProcess) -> None:
    """Open files go on in the servers of the new keeper, which follows them when they die; the old one has ended."""
    kept = [keeper.serve(f"v{i}", limit_bytes=MIB) for i in range(5)]
    old = keeper.pid
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context((k.mountpoint / "f").open("wb", buffering=0)) for k in kept]
        said = keeper.launch("--take-over")
        pids = [keeper.server_of(f"v{i}") for i in range(5)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for file in held:
            file.write(b"x")
    last = {keeper.server_of(f"v{i}") for i in range(5)}

    assert said == "READY"
    assert not alive(old)
    assert keeper.call("hello")["pid"] == keeper.pid != old
    assert not set(pids) & {k.pid for k in kept}
    assert not last & set(pids)
    assert [(k.source / "f").read_bytes() for k in kept] == [b"x"] * 5
    assert sorted(keeper.servers()) == sorted(last)


def test_what_cannot_move_stays(keeper: KeeperProcess) -> None:
    """A volume that nobody can follow is served on by its old server."""
    kept = keeper.serve("a", transport="pyfuse3")
    other = keeper.serve("b")
    said = keeper.launch("--take-over")
    (kept.mountpoint / "f").write_text("x")

    assert said == "READY"
    assert alive(kept.pid)
    assert [s["mount_id"] for s in client.servers(keeper.directory)[0]] == ["b"]
    assert not alive(other.pid)


def test_operation_that_hangs(keeper: KeeperProcess) -> None:
    """A server that cannot finish what it has begun is not waited for: it goes on, all go back, and later they move."""
    moved, hanging = keeper.serve("a", limit_bytes=MIB), keeper.serve("b", limit_bytes=MIB)
    keeper_pid = keeper.pid
    fault = keeper.directory / "faults" / "mkdir.hang"
    (hanging.mountpoint / "in").mkdir()  # the kernel locks the directory for as long as something is made in it
    fault.touch()
    command = [sys.executable, "-ISc", "import os,sys; os.mkdir(sys.argv[1])", str(hanging.mountpoint / "in" / "d")]
    program = subprocess.Popen(command)
    eventually(lambda: _under_way(hanging.spec.control) == 1, what="the operation hangs")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(keeper.launch, "--take-over")
        eventually(lambda: keeper.call("find", mount_id="a")["pid"] not in {None, moved.pid}, what="the first is moved")
        another = KeeperProcess(keeper.directory, LogCheck())
        second = another.launch("--take-over")
        another.wait()
        said = first.result(60)
    pids = [keeper.server_of(name) for name in ("a", "b")]
    (hanging.mountpoint / "f").write_text("x")
    fault.unlink()
    status = program.wait(20)
    again = keeper.launch("--take-over")

    assert said == "ERROR Operations of b hang in its storage: see what that waits for."
    assert second == "ERROR Another keeper is taking over already: wait for it."
    assert not alive(keeper_pid)  # now: the last attempt took its place
    assert pids[0] != moved.pid
    assert pids[1] == hanging.pid
    assert status == 0
    assert again == "READY"
    assert (hanging.source / "in" / "d").is_dir()


@pytest.mark.parametrize("servers_too", [False, True])
def test_new_keeper_dies_on_the_way(keeper: KeeperProcess, servers_too: bool) -> None:
    """A new keeper that is killed while its last server is checked, alone or with all its servers: the old one goes on
    with every mount, and the next attempt succeeds."""
    apart = keeper.directory / "apart"
    (apart / "src").mkdir(parents=True)
    (apart / "faults").mkdir()
    fault = apart / "faults" / "statfs.hang"
    fault.touch()
    kept = [keeper.serve("a", limit_bytes=MIB), keeper.serve("b", limit_bytes=MIB, source=str(apart / "src"))]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context((k.mountpoint / "f").open("wb", buffering=0)) for k in kept]
        old = keeper.pid
        with ThreadPoolExecutor(1) as pool:
            attempt = pool.submit(keeper.launch, "--take-over")
            eventually(lambda: keeper.call("find", mount_id="a")["pid"] not in {None, kept[0].pid}, what="a is moved")
            eventually(lambda: kept[1].pid not in keeper.servers() and len(keeper.servers()) == 2, what="b is checked")
            children = keeper.servers()
            keeper.kill()
            for pid in children if servers_too else ():
                os.kill(pid, signal.SIGKILL)
            said = attempt.result(60)
        fault.unlink()
        for file in held:
            file.write(b"x")
        serving = sorted(keeper.server_of(name) for name in ("a", "b"))
    again = keeper.launch("--take-over")

    assert said == "MOVED 1"
    assert keeper.call("hello")["pid"] == keeper.pid != old
    assert (serving == children) == (not servers_too)
    assert again == "READY"
    assert [(k.source / "f").read_bytes() for k in kept] == [b"x"] * 2


def _under_way(control: str) -> int:
    from fusevol.server.client import call

    return int(call(Path(control), {"op": "status"}, 10)["stats"]["under_way"])


def test_unmounted_meanwhile(keeper: KeeperProcess) -> None:
    """A mount that is gone when its turn comes, or that comes when others are moved, is no obstacle."""
    kept = [keeper.serve(f"v{i}", limit_bytes=MIB) for i in range(8)]
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(keeper.launch, "--take-over")
        eventually(lambda: keeper.call("find", mount_id="v0")["pid"] != kept[0].pid, what="the first is moved")
        for k in kept[6:]:
            mount.unmount(k.mountpoint)
        result = said.result(60)
    late = keeper.serve("late", limit_bytes=MIB)
    (late.mountpoint / "f").write_text("x")

    assert result == "READY"
    assert {s["mount_id"] for s in client.servers(keeper.directory)[0]} == {*(f"v{i}" for i in range(6)), "late"}


def test_only_who_takes_over_may(keeper: KeeperProcess) -> None:
    """Mounts are given to nobody else."""
    kept = keeper.serve("a")
    refused = [keeper.call(op, mount_id="a", pid=1, ms=0, version="1") for op in ("give", "took", "back", "commit")]

    assert [r["ok"] for r in refused] == [False] * 4
    assert keeper.server_of("a") == kept.pid
