"""The keeper's understudy: who dies when, and who is the keeper then."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.keeper import client
from tests.support.agent import Agent
from tests.support.keepers import KeeperProcess
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.processes import alive, descriptors, keepers

pytestmark = pytest.mark.root


@pytest.fixture
def keeper(workdir: Path, logs: LogCheck) -> Iterator[KeeperProcess]:
    """A keeper with an understudy."""
    process = KeeperProcess(workdir, logs)
    try:
        assert process.launch("--understudy") == "READY"
        yield process
    finally:
        process.close()


def _understudy(directory: Path) -> int:
    """The understudy, when there is one."""
    return eventually(lambda: keepers(directory, understudies=True), what="there is an understudy")[0]


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), what=f"{pid} is dead")


def test_it_takes_the_keepers_place(keeper: KeeperProcess) -> None:
    """It has the place and the socket at once: no client is refused meanwhile. It holds the servers and has an
    understudy itself."""
    kept = keeper.serve("a")
    understudy = _understudy(keeper.directory)
    _kill(keeper.pid)
    found = keeper.call("hello")["pid"]
    lock = (keeper.directory / "keeper.lock").read_text()
    eventually(lambda: keeper.call("find", mount_id="a")["known"], what="the server has reported")
    _kill(kept.pid)
    (kept.mountpoint / "f").write_text("x")
    another = keeper.serve("b")
    next_one = _understudy(keeper.directory)

    assert found == int(lock) == understudy
    assert keepers(keeper.directory) == [understudy]
    assert next_one != understudy
    assert (another.mountpoint / "f").write_text("x") == 1


def test_the_keeper_has_another_one_soon(keeper: KeeperProcess) -> None:
    """One that died is not missed, and does not stay as a zombie; and the next one is as good, and has its own."""
    kept, understudy = keeper.serve("a"), _understudy(keeper.directory)
    _kill(understudy)
    eventually(lambda: not Path(f"/proc/{understudy}").exists(), what="it was waited for")
    another = _understudy(keeper.directory)
    keeper.call("hello")  # so it has learnt what the keeper listens on
    inherited = [what for what in descriptors(another).values() if what == "/dev/fuse" or what.startswith("/memfd:")]
    _kill(keeper.pid)
    found = keeper.call("hello")["pid"]
    eventually(lambda: keeper.call("find", mount_id="a")["known"], what="the server has reported")
    _kill(kept.pid)
    (kept.mountpoint / "f").write_text("x")
    next_one = _understudy(keeper.directory)
    os.kill(another, signal.SIGTERM)
    eventually(lambda: not alive(another) and not alive(next_one), what="both end as one is told to")

    assert inherited == []
    assert found == another
    assert next_one not in {another, understudy}


def test_it_dies_while_the_next_one_comes_up(keeper: KeeperProcess) -> None:
    """The keeper's death is noticed though it came before the understudy could wait for it."""
    _kill(_understudy(keeper.directory))
    another = _understudy(keeper.directory)
    keeper.call("hello")
    _kill(keeper.pid)

    assert keeper.call("hello")["pid"] == another


@pytest.mark.parametrize("how", ["shutdown", signal.SIGTERM, signal.SIGINT])
def test_an_end_that_is_meant_is_the_end(keeper: KeeperProcess, how: str | signal.Signals) -> None:
    """Who ends the keeper by asking it to has no keeper."""
    understudy = _understudy(keeper.directory)
    if isinstance(how, signal.Signals):
        os.kill(keeper.pid, how)
    else:
        keeper.call(how)
    status = keeper.wait()

    assert status == 0
    assert not alive(understudy)
    assert keepers(keeper.directory) == keepers(keeper.directory, understudies=True) == []


def test_a_keeper_that_takes_over_has_its_own(keeper: KeeperProcess) -> None:
    """The understudy of the old one ends with it; that of the new one takes the new one's place."""
    old, kept = _understudy(keeper.directory), keeper.serve("a")
    said = keeper.launch("--take-over", "--understudy")
    understudy = _understudy(keeper.directory)
    _kill(keeper.pid)
    found = keeper.call("hello")["pid"]
    (kept.mountpoint / "f").write_text("x")

    assert said == "READY"
    assert not alive(old)
    assert found == understudy


def test_one_that_cannot_listen_has_none(keeper: KeeperProcess) -> None:
    """A second keeper is refused, and its understudy goes with it."""
    second = KeeperProcess(keeper.directory, LogCheck())
    said = second.launch("--understudy")
    second.wait()

    assert said.startswith("ERROR Another keeper")
    eventually(lambda: len(keepers(keeper.directory, understudies=True)) == 1, what="there is one understudy")
    assert keepers(keeper.directory) == [keeper.pid]


def test_short_lives_come_to_an_end(keeper: KeeperProcess) -> None:
    """Keepers that die within moments are followed a few times, and then the last one takes its time."""
    lives = 0
    while keepers(keeper.directory):
        pid = eventually(lambda: client.call(keeper.directory, {"op": "hello"})[0]["pid"])
        _kill(pid)
        lives += 1
        eventually(
            lambda: any(map(alive, keepers(keeper.directory))) or not keepers(keeper.directory, understudies=True),
            what="the next one, or none",
        )

    assert lives == 6


def test_who_outlives_them_has_one_again(keeper: KeeperProcess) -> None:
    """The keeper that was not followed any more is, when it has lived for a while; understudies that die within moments
    are followed, too."""
    for _ in range(5):
        _kill(eventually(lambda: client.call(keeper.directory, {"op": "hello"})[0]["pid"]))
        eventually(lambda: any(map(alive, keepers(keeper.directory))), what="the next one")
    keeper.call("hello")
    alone = keepers(keeper.directory, understudies=True)
    seen = set()
    for _ in range(2):
        understudy = _understudy(keeper.directory)
        seen.add(understudy)
        _kill(understudy)
    seen.add(_understudy(keeper.directory))

    assert alone == []
    assert len(seen) == 3


@pytest.mark.expect_log(r"The keeper \(pid \d+\) ended")
def test_the_agent_finds_it(agent: Agent) -> None:
    """The agent goes on with the understudy, and starts a keeper when both are killed."""
    first = eventually(agent.keeper)
    understudy = _understudy(agent.run_dir)
    _kill(first)
    second = eventually(agent.keeper)
    third = _understudy(agent.run_dir)
    os.kill(third, signal.SIGKILL)
    _kill(second)
    fourth = eventually(agent.keeper, 20, what="another keeper")

    assert second == understudy
    assert fourth not in {first, second, third}
