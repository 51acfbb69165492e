"""``fusevol upgrade``: from one version to another, and back when the other one is broken, while volumes are in use."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fusevol.transport import mount
from tests.support import api, eventually
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.processes import alive, keepers
from tests.support.torments import Torments, figures
from tests.support.versions import Versions

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("FUSEVOL_UPGRADES", "4"))
SEED = int(os.environ.get("FUSEVOL_SEED", "0")) or random.randrange(1, 1 << 32)


class Node:
    """An agent of version 1.0 with a volume that has a limit, and one that has none, both in use."""

    def __init__(self, directory: Path, logs: LogCheck) -> None:
        self.versions = Versions(directory)
        self.versions.install("1.0")
        # versions share a path, so one could be taken for the other by its compiled files
        environment = {"PYTHONPATH": str(self.versions.path), "PYTHONDONTWRITEBYTECODE": "1"}
        self.agent = Agent(directory, logs, environment)
        (directory / "agent.yaml").write_text("ioUring: off\n")
        self.torments = Torments(directory / "counters")
        self.limited, self.free = directory / "limited", directory / "free"

    def start(self, kinds: Sequence[str]) -> Node:
        """Start agent, volumes and programs."""
        directory = self.agent.directory
        self.agent.start()
        api.bound_claim(self.agent, "data")
        api.mount(self.agent, "data", self.limited)
        api.call_out(self.agent, "emptyDir", self.free)
        self.before = mount.below(directory)
        for place in (self.limited, self.free):
            self.torments.start(place, kinds)
        self.torments.go_on(5)
        return self

    def serving(self) -> list[str]:
        """The versions of keeper and volume servers."""
        answer = self.agent.client.request("GET", "/v1/servers")
        return [(answer["keeper"] or {}).get("version"), *(server.get("version") for server in answer["items"])]

    def end(self) -> list[str]:
        """Let the programs finish; what went wrong in them, and what was mounted again."""
        self.torments.go_on(5)
        complaints = self.torments.stop()
        if mount.below(self.agent.directory) != self.before:
            complaints.append(f"mounts are {mount.below(self.agent.directory)}, were {self.before}")
        return complaints

    def close(self) -> None:
        """End everything."""
        self.torments.kill()
        self.agent.close()


@pytest.fixture
def node(workdir: Path, logs: LogCheck) -> Iterator[Node]:
    """See above; what hangs for too long is aborted."""

    def rescue() -> None:
        for found in mount.below(workdir):
            mount.abort(found.minor)

    timer = threading.Timer(100 + 20 * ROUNDS, rescue)
    timer.start()
    running = Node(workdir, logs)
    try:
        yield running.start(("files", "names", "mapped", "steady"))
    finally:
        timer.cancel()
        running.close()


def test_upgrade(node: Node) -> None:
    """Every mount goes on with the new version, and says so; the agent follows when it is started again."""
    node.versions.install("2.0")
    said = node.agent.ok("upgrade")
    after = eventually(node.serving, what="the agent knows")
    described = node.agent.ok("describe", "pvc", "data")
    pids = api.servers(node.agent)
    node.agent.kill()
    node.agent.start()
    again = node.serving()
    version = node.agent.client.request("GET", "/version")["version"]
    complaints = node.end()

    assert said == "Moved 2 mounted volumes from version 1.0 to 2.0.\n"
    assert after == again == ["2.0"] * 3
    assert version == "2.0"
    assert "was replaced by one of version 2.0" in described
    assert api.servers(node.agent) == pids
    assert complaints == []


def test_many_upgrades(node: Node) -> None:
    """One after the other, and nobody notices more than a pause."""
    moved: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        node.torments.go_on(20)
        began = time.monotonic()
        said = node.agent.ok("upgrade")
        moved.append((began, time.monotonic()))
        assert said == "Moved 2 mounted volumes from version 1.0 to 1.0.\n"
    complaints = node.end()
    print(f"{ROUNDS} upgrades, ms: {figures(1000 * (end - began) for began, end in moved)}")
    for torment in node.torments.all:
        pauses = [1000 * torment.longest(began, end) for began, end in moved]
        print(f"{torment.kind} in {torment.place.parent.name}: {figures(pauses)}")
        if torment.kind == "steady":
            bare = [1000 * torment.longest(began, end, "long_bare") for began, end in moved]
            print(f"{torment.kind} beside the mount: {figures(bare)}")
    print("\n".join(node.torments.report()))

    assert complaints == []
    assert len(moved) == ROUNDS


@pytest.mark.expect_log("hang in its storage")  # an fsync may take that long on a disk that others use
def test_agent_of_another_version(node: Node) -> None:
    """An agent of a newer version moves what an older one has left, without being asked."""
    node.versions.install("2.0")
    node.agent.kill()
    node.agent.start()
    eventually(lambda: node.serving() == ["2.0"] * 3, 60, what="everything is moved")
    complaints = node.end()

    assert complaints == []


@pytest.mark.expect_log("stay with version", "AssertionError", "the server failed")
def test_agent_tries_again(node: Node) -> None:
    """What could not be moved at first is moved later, by the same agent."""
    node.versions.install("2.0", BROKEN["no second server"])
    node.agent.kill()
    node.agent.start()
    eventually(lambda: "stay with version 1.0" in node.agent.log.read_text(), 20, what="the first attempt fails")
    assert node.serving() == ["1.0"] * 3
    node.versions.install("2.0")
    eventually(lambda: node.serving() == ["2.0"] * 3, 40, what="everything is moved")
    complaints = node.end()

    assert complaints == []


_RESUMED = "        if self._held is not None:\n            return\n"
_STATFS = "        v = os.fstatvfs("
_IN_SERVER = "        if open('/proc/self/comm').read() == 'fusevol-server\\n': "
BROKEN = {
    "no keeper": {"fusevol/keeper/process.py": ("def main(", 'raise RuntimeError("broken")\n\n\ndef main(')},
    "no server": {"fusevol/server/process.py": (_RESUMED, "        1 / 0\n")},
    "no second server": {
        "fusevol/server/process.py": (_RESUMED, f'        assert "pvc" not in self.spec.mount_id\n{_RESUMED}')
    },
    "dies when asked": {"fusevol/fs/filesystem.py": (_STATFS, f"{_IN_SERVER}os.kill(os.getpid(), 9)\n{_STATFS}")},
    "never answers": {"fusevol/fs/filesystem.py": (_STATFS, f"{_IN_SERVER}__import__('time').sleep(1000)\n{_STATFS}")},
    "another layout": {"fusevol/server/memory.py": ("VERSION: Final = 2\n", "VERSION: Final = 3\n")},
}
REASONS = {
    "no keeper": "it ended at once",
    "no server": "division by zero",
    "no second server": "AssertionError",
    "dies when asked": "the new server ended when it was asked",
    "never answers": "the new server did not answer within 5 s",
    "another layout": "Its session memory has layout 2, this version reads 3",
}


@pytest.mark.expect_log("broken", "RuntimeError", "the server failed", "AssertionError", "division by zero")
@pytest.mark.parametrize("how", BROKEN)
def test_broken_version(node: Node, how: str) -> None:
    """A version that does not serve changes nothing: all mounts stay with the old one, and the reason is told."""
    keeper = node.agent.keeper()
    node.versions.install("2.0", BROKEN[how])
    done = node.agent.cli("upgrade")
    after = eventually(node.serving, what="the agent knows")
    node.torments.go_on(5)
    kept = node.agent.keeper()
    node.versions.install("3.0")
    said = node.agent.ok("upgrade")
    complaints = node.end()

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: The mounts stay with version 1.0: ")
    assert REASONS[how] in done.stderr
    assert after == ["1.0"] * 3
    assert kept == keeper
    assert said == "Moved 2 mounted volumes from version 1.0 to 3.0.\n"
    assert complaints == []


@pytest.mark.expect_log(r"The keeper", "stay with version")
def test_killed_while_upgrading(node: Node) -> None:
    """Whoever dies while mounts are moved, old keeper, new keeper, a server or the agent: nobody notices, and the next
    attempt succeeds."""
    random.seed(SEED)
    print(f"seed {SEED}")
    agent = node.agent
    killed = []
    for number in range(ROUNDS):
        node.torments.go_on(5)
        victim = ("new keeper", "old keeper", "server", "agent")[number % 4]
        keeper = eventually(agent.keeper)
        upgrading = subprocess.Popen(
            agent.command("upgrade"), env=agent.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        other = eventually(lambda keeper=keeper: set(keepers(agent.run_dir)) - {keeper}, what="the new keeper").pop()
        moment = random.randrange(3)  # at once, when the first mount is moved, or whenever
        if moment == 1:
            eventually(lambda keeper=keeper: _parents(agent) != {keeper}, 5, what="a mount is moved")
        pids = {"new keeper": other, "old keeper": keeper, "server": random.choice(agent.processes())}
        if victim == "agent":
            agent.kill()
        elif alive(pids[victim]):
            os.kill(pids[victim], signal.SIGKILL)
        killed.append(victim)
        upgrading.communicate(timeout=60)
        if victim == "agent":
            agent.start()
        node.torments.go_on(5)
        eventually(lambda: len(keepers(agent.run_dir)) == 1, 20, what="there is one keeper")
        eventually(lambda: sorted(api.servers(agent).values()) == agent.processes(), 20, what="all is known")
    said = agent.ok("upgrade")
    complaints = node.end()

    assert len(killed) == ROUNDS
    assert said == "Moved 2 mounted volumes from version 1.0 to 1.0.\n"
    assert complaints == []


def _parents(agent: Agent) -> set[int]:
    """The parents of all volume servers."""
    found = set()
    for pid in agent.processes():
        found.add(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
    return found
