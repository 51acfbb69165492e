"""Agent and keeper together: each may die alone, and nobody who uses a volume notices."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusevol.transport import mount
from tests.support import eventually
from tests.support.agent import Agent
from tests.support.keepers import KeeperProcess
from tests.support.logs import LogCheck
from tests.support.processes import alive

pytestmark = [pytest.mark.root]

CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
"""


def _mount(agent: Agent, name: str) -> Path:
    """A new claim, mounted by hand."""
    target = agent.directory / name
    agent.apply(CLAIM % name)
    agent.ok("mount", name, str(target))
    return target


def _servers(agent: Agent) -> dict[str, Any]:
    found: dict[str, Any] = agent.client.request("GET", "/v1/servers", timeout=10)
    return found


def _kill_keeper(agent: Agent) -> int:
    """SIGKILL the keeper, wait until the agent has another one; the old one's process id."""
    before = eventually(agent.keeper, what="a keeper")
    assert before is not None
    assert alive(before)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: not alive(before), what="the keeper is dead")
    eventually(lambda: agent.keeper() not in {None, before}, what="a new keeper")
    return before


@pytest.fixture
def dying(workdir: Path, logs: LogCheck) -> Iterator[KeeperProcess]:
    """A keeper where the agent of this test will look for one, that can be told to die in the middle of a start."""
    run_dir = workdir / "r"
    run_dir.mkdir()
    keeper = KeeperProcess(run_dir, logs, module="tests.support.dying_keeper")
    try:
        yield keeper.start()
    finally:
        keeper.close()


@pytest.mark.expect_log(r"The keeper \(pid \d+\) ended")
def test_killed_keeper_is_replaced_at_once(agent: Agent) -> None:
    """kill -9 of the keeper, again and again: volumes in use go on, and new ones are mounted."""
    first = _mount(agent, "a")
    servers = agent.servers()
    with (first / "held").open("wb", buffering=0) as held:
        killed = []
        for round_ in range(3):
            killed.append(_kill_keeper(agent))
            held.write(b"x")
            (_mount(agent, f"more{round_}") / "f").write_text("x")
    listed = _servers(agent)

    assert len(set(killed)) == 3
    assert servers[0] in [s["pid"] for s in listed["items"]]
    assert len(listed["items"]) == 4
    assert listed["keeper"]["pid"] == agent.keeper()
    assert (first / "held").read_bytes() == b"xxx"


@pytest.mark.expect_log(r"The keeper \(pid \d+\) ended")
def test_a_server_of_a_dead_keeper_is_followed(agent: Agent) -> None:
    """A volume whose keeper has died is unmounted like any other: its server ends, and the agent knows."""
    target = _mount(agent, "a")
    server = agent.servers()[0]
    _kill_keeper(agent)
    agent.ok("umount", str(target))

    assert not alive(server)
    assert _servers(agent)["items"] == []


@pytest.mark.expect_log(r"The keeper \(pid \d+\) ended")
@pytest.mark.parametrize("when", ["before", "after"])
def test_keeper_dies_while_a_start_is_under_way(dying: KeeperProcess, workdir: Path, logs: LogCheck, when: str) -> None:
    """A keeper that dies before it has forked, or after that but without an answer: the volume is mounted, once."""
    agent = Agent(workdir, logs)
    try:
        agent.start()
        found = agent.keeper()
        (dying.directory / f"die.{when}").touch()
        target = _mount(agent, "a")
        (target / "f").write_text("x")
        status = dying.wait()
        servers = agent.servers()
        point = [m for m in mount.mounts() if m.is_fuse and m.mountpoint.startswith(f"{agent.state}/mounts/")]
        listed = _servers(agent)["items"]
    finally:
        agent.close()

    assert found == dying.pid
    assert status == -signal.SIGKILL
    assert len(servers) == len(point) == 1
    assert [s["pid"] for s in listed] == servers


def test_killed_agent_finds_keeper_and_servers(agent: Agent) -> None:
    """kill -9 of the agent and its restart: the same keeper, the same servers, writing never stops."""
    target = _mount(agent, "a")
    script = Path(__file__).parents[1] / "support" / "writer.py"
    writer = subprocess.Popen([sys.executable, "-IS", script, target, "1"], stdout=subprocess.PIPE, text=True)
    eventually(lambda: len(os.listdir(target)) > 10, what="writing is under way")
    keeper, servers = agent.keeper(), agent.servers()
    agent.kill()
    running = writer.poll()
    agent.start()
    other = _mount(agent, "b")
    listed = _servers(agent)
    (other / "f").write_text("x")
    writer.terminate()
    writer.communicate(timeout=30)

    assert running is None
    assert writer.returncode == 0
    assert listed["keeper"]["pid"] == keeper
    assert set(servers) < {s["pid"] for s in listed["items"]}


def test_agent_killed_with_its_keeper(agent: Agent) -> None:
    """Agent and keeper killed together: the servers live on, and the next agent takes them over with a new keeper."""
    target = _mount(agent, "a")
    keeper, servers = agent.keeper(), agent.servers()
    assert keeper is not None
    agent.kill()
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not alive(keeper), what="the keeper is dead")
    (target / "f").write_text("alone")
    agent.start()
    listed = _servers(agent)
    agent.ok("umount", str(target))
    another = eventually(agent.keeper, what="a new keeper")

    assert [s["pid"] for s in listed["items"]] == servers
    assert another != keeper
    assert not any(alive(pid) for pid in servers)


@pytest.mark.expect_log(r"The keeper \(pid \d+\) ended")
def test_killed_after_its_keeper(agent: Agent) -> None:
    """An agent that was killed after it had replaced its keeper can be started again: nothing is taken for it."""
    _kill_keeper(agent)
    agent.kill()
    agent.start()

    assert agent.client.request("GET", "/readyz") == "ok"


@pytest.mark.expect_log(r"The keeper")
def test_server_killed_with_its_keeper_is_followed(agent: Agent) -> None:
    """Server and keeper killed together: the next keeper goes on with what the agent has kept; an open file notices
    nothing, and nothing is mounted again."""
    target = _mount(agent, "a")
    before = mount.find(target)
    server, keeper = agent.servers()[0], agent.keeper()
    assert keeper is not None
    with (target / "held").open("wb", buffering=0) as held:
        held.write(b"before")
        os.kill(keeper, signal.SIGKILL)
        os.kill(server, signal.SIGKILL)
        eventually(lambda: not alive(keeper) and not alive(server), what="both are dead")
        held.write(b" after")
    listed = eventually(lambda: _servers(agent)["items"], what="the agent knows the next one")

    assert (target / "held").read_bytes() == b"before after"
    assert mount.find(target) == before
    assert [s["pid"] for s in listed] == agent.servers() != [server]
    assert "VolumeServerReplaced" in agent.ok("describe", "pvc", "a")


@pytest.mark.expect_log(r"The keeper", r"The volume server .* ended unexpectedly", r"VolumeRemounted")
def test_all_killed_at_once_is_mounted_again(agent: Agent) -> None:
    """Server, keeper and agent killed together: the next agent mounts the volume again, with its data."""
    target = _mount(agent, "a")
    (target / "f").write_text("kept")
    server, keeper = agent.servers()[0], agent.keeper()
    assert keeper is not None
    agent.kill()
    os.kill(keeper, signal.SIGKILL)
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not alive(keeper) and not alive(server), what="both are dead")
    agent.start()
    eventually(lambda: (target / "f").read_text() == "kept", 20, what="the volume is back")

    assert server not in agent.servers()
    assert len(agent.servers()) == 1


@pytest.mark.expect_log(r"The keeper")
def test_a_keeper_that_cannot_be_started_is_a_sentence(agent: Agent) -> None:
    """When no keeper can be started, a mount fails with the reason, and works when the reason is gone."""
    _mount(agent, "a")
    keeper, lock = agent.keeper(), agent.run_dir / "keeper.lock"
    assert keeper is not None
    lock.unlink()
    lock.mkdir()
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not alive(keeper), what="the keeper is dead")
    agent.apply(CLAIM % "b")
    failed = agent.cli("mount", "b", str(agent.directory / "b"))
    lock.rmdir()
    eventually(lambda: agent.keeper() is not None, 20, what="a keeper again")
    agent.ok("mount", "b", str(agent.directory / "b"))

    assert failed.returncode == 1
    assert re.search(r"keeper cannot.*keeper\.lock", failed.stderr), failed.stderr
