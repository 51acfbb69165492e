"""kill -9 of volume servers, keeper and agent, one or two at a time, in any order, while programs use the volumes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fusevol.transport import mount
from tests.support import api, eventually
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.processes import alive, descriptors, keepers
from tests.support.torments import Torments, figures

pytestmark = [pytest.mark.root, pytest.mark.slow]

KILLS = int(os.environ.get("FUSEVOL_KILLS", "15"))
SEED = int(os.environ.get("FUSEVOL_SEED", "0")) or random.randrange(1, 1 << 32)
VICTIMS = (
    *["server"] * 3,
    *["keeper", "keeper", "keeper understudy"],
    *["agent", "server keeper", "server agent", "keeper agent"],
)
"""What is killed together; the agent less often, since its start takes longest."""
KINDS = ("files", "names", "mapped", "steady")


class Node:
    """An agent with a volume that has a limit, and one that has none."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.limited, self.free = agent.directory / "limited", agent.directory / "free"
        api.bound_claim(agent, "data")
        api.mount(agent, "data", self.limited)
        api.call_out(agent, "emptyDir", self.free)

    def keeper(self) -> int:
        """The keeper's pid, when it holds both mounts."""

        def holding() -> int:
            pid = self.agent.keeper()
            held = _held(pid) if pid is not None else 0
            return pid if pid is not None and held == 2 else 0

        return eventually(holding, 20, what="the keeper holds all mounts")

    def prepared(self) -> None:
        """Wait until all that may be killed is there, and both keeper and agent hold what the next server needs."""
        self.keeper()
        eventually(lambda: _held(self.agent.pid) == 2, 20, what="the agent holds all mounts")

    def kill(self, victims: str, volume: Path) -> None:
        """kill -9 of *victims*; a server is that of *volume*."""
        found = {"keeper": self.keeper(), "server": self.server_of(volume)}
        if "understudy" in victims:
            found["understudy"] = eventually(lambda: keepers(self.agent.run_dir, understudies=True), 20)[0]
        pids = [found[victim] for victim in victims.split() if victim in found]
        random.shuffle(pids)  # a keeper that dies second may have started the next server
        assert all(alive(pid) for pid in pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        if "agent" in victims:
            self.agent.kill()
        eventually(lambda: not any(alive(pid) for pid in pids), what=f"{victims} killed")

    def servers(self) -> list[dict[str, Any]]:
        """What the servers say of themselves: that of the limited volume, and that of the free one."""
        mounts = self.agent.client.request("GET", "/v1/mounts")["items"]
        found = {s["mount_id"]: s for s in self.agent.client.request("GET", "/v1/servers")["items"]}
        names = {m["target"]: m["mountId"] for m in mounts}
        return [found[names[str(volume)]] for volume in (self.limited, self.free)]

    def server_of(self, volume: Path) -> int:
        """The pid of the volume's server."""
        limited, free = self.servers()
        return int((limited if volume == self.limited else free)["pid"])


class Kill(NamedTuple):
    """Who was killed, and when (time.monotonic)."""

    moment: float
    victims: str
    volume: Path
    """Whose server, if one was."""


def _held(pid: int) -> int:
    """How many connections a process holds."""
    return sum(what == "/dev/fuse" for what in descriptors(pid).values())


@pytest.fixture
def node(workdir: Path, logs: LogCheck) -> Iterator[Node]:
    """See above; over /dev/fuse, since io_uring loses requests at a kill. What hangs for too long is aborted."""

    def rescue() -> None:
        for found in mount.below(workdir):
            mount.abort(found.minor)

    timer = threading.Timer(60 + 5 * KILLS, rescue)
    timer.start()
    agent = Agent(workdir, logs)
    (workdir / "agent.yaml").write_text("ioUring: off\n")
    try:
        yield Node(agent.start())
    finally:
        timer.cancel()
        agent.close()


@pytest.mark.expect_log(r"The keeper \(pid \d+\) ended")
def test_nobody_notices(node: Node, workdir: Path) -> None:
    """No system call fails, nothing is lost or done twice, and nothing is mounted again."""
    random.seed(SEED)
    print(f"seed {SEED}, {KILLS} kills")
    agent = node.agent
    before = mount.below(workdir)
    ways = {kind: [s[kind] for s in node.servers()] for kind in ("io_uring", "passthrough", "takeover")}
    assert ways == {"io_uring": [False, False], "passthrough": [False, True], "takeover": [True, True]}
    torments = Torments(workdir / "counters")
    kills: list[Kill] = []
    try:
        torments.start(node.limited, KINDS)
        torments.start(node.free, KINDS)
        for _ in range(KILLS):
            torments.go_on(random.randrange(5, 60))
            node.prepared()
            victims, volume = random.choice(VICTIMS), random.choice([node.limited, node.free])
            kills.append(Kill(time.monotonic(), victims, volume))
            node.kill(victims, volume)
            if "agent" in victims:
                agent.start()
        torments.go_on(5)
        complaints = torments.stop()
    finally:
        torments.kill()
    felt = stalls(torments, kills)
    for text in [*summary(torments, kills, felt), *torments.report()]:
        print(text)
    medians = {name: times[len(times) // 2] for name, times in felt.items() if len(times) >= 3}

    assert complaints == []
    assert len(kills) == KILLS
    assert all(torment.result["checked"] > torment.result["steps"] >= 5 * KILLS for torment in torments.all)
    assert mount.below(workdir) == before
    assert sorted(api.servers(agent).values()) == agent.processes()
    assert {name: ms for name, ms in medians.items() if ms > 250 and name[2] != "server keeper"} == {}
    # what goes by passthrough does not even notice
    assert {name: ms for name, ms in medians.items() if ms > 10 and name[:2] == ("free", "steady")} == {}


def stalls(torments: Torments, kills: list[Kill]) -> dict[tuple[str, str, str], list[float]]:
    """Milliseconds of the longest system call in a volume whose server was killed, in the second after that or until
    the next kill; sorted, by the volume, the kind of program, and who was killed."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for torment in torments.all:
        for kill, end in zip(kills, _ends(kills), strict=True):
            if "server" in kill.victims and kill.volume == torment.place.parent:
                took = 1000 * torment.longest(kill.moment, end)
                found.setdefault((kill.volume.name, torment.kind, kill.victims), []).append(took)
    return {name: sorted(times) for name, times in sorted(found.items())}


def summary(torments: Torments, kills: list[Kill], felt: dict[tuple[str, str, str], list[float]]) -> list[str]:
    """What was felt, and how much of that is this machine's: the open file that goes by passthrough has another one
    beside the mount, used by the same program at the same moments."""
    lines = [f"{' '.join(name[:2])}, {name[2]} killed: {figures(times)}" for name, times in felt.items()]
    for what, keeper in (("a server killed", None), ("and its keeper not", False), ("and its keeper, too", True)):
        wanted = [n for n in felt if n[1] == "names" and keeper in (None, "keeper" in n[2])]
        lines.append(f"metadata, {what}: {figures(ms for name in wanted for ms in felt[name])}")
    steady = next(t for t in torments.all if t.kind == "steady" and t.place.parent.name == "free")
    for what, where in (("passthrough", "long"), ("beside the mount", "long_bare")):
        pauses = [1000 * steady.longest(kill.moment, end, where) for kill, end in zip(kills, _ends(kills), strict=True)]
        longest = 1000 * steady.longest(0, float("inf"), where)
        lines.append(f"open file, {what}, after all kills: {figures(pauses)}; longest of the whole run {longest:.1f}")
    return lines


def _ends(kills: list[Kill]) -> list[float]:
    """Until when each kill's consequences are looked at."""
    after = [kill.moment for kill in kills[1:]] + [float("inf")]
    return [min(kill.moment + 1, end) for kill, end in zip(kills, after, strict=True)]
