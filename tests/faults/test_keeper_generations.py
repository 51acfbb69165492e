"""``fusevol keeper``: keeper and agent end with all their processes, one generation after the other, as containers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.keeping import GENERATION
from fusevol.errors import UnavailableError
from fusevol.transport import mount
from tests.support import api
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.processes import alive
from tests.support.torments import Torments

pytestmark = [pytest.mark.root, pytest.mark.expect_log(r"The keeper \(pid \d+\)|ended unexpectedly|is not known")]
KINDS = ("files", "names", "mapped", "steady")


class Generation:
    """A ``fusevol keeper`` and what it has started."""

    def __init__(self, agent: Agent, name: str, logs: LogCheck) -> None:
        self.ready = agent.directory / f"{name}.ready"
        self.log = agent.directory / f"{name}.log"
        logs.watch(self.log)
        words = agent.command("keeper", "--run-dir", str(agent.run_dir), "--ready-file", str(self.ready))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=agent.environment, cwd=agent.directory
            )

    def wait(self) -> Generation:
        """Until it keeps the mounts."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.ready.exists()

        eventually(ready, 30.0, what="it keeps the mounts")
        return self

    def parked(self) -> bool:
        """Whether it has seen that another one has taken over."""
        return "Another generation keeps the mounts now" in self.log.read_text()

    def processes(self) -> list[int]:
        """Its processes: keeper, understudy, servers. They are of one container, and end with it."""
        found = []
        token = self._token()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and token and token in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def _token(self) -> bytes:
        """What all of them have in their environment: that of its first child."""
        if not hasattr(self, "_known"):
            tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
            children = [child for task in tasks for child in (task / "children").read_text().split()]
            words = [w for c in children for w in Path(f"/proc/{c}/environ").read_bytes().split(b"\0")]
            self._known = next((w for w in words if w.startswith(GENERATION.encode())), b"")
        return self._known

    def end(self) -> int:
        """As a container ends: SIGTERM for the first process, then SIGKILL for all that is left. Its exit status."""
        left = self.processes()
        self.process.terminate()
        status = self.process.wait(20)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, left)), what="all have ended")
        return status


@pytest.fixture
def node(workdir: Path, logs: LogCheck) -> Iterator[tuple[Agent, list[Generation]]]:
    """An agent whose keeper is another's, which runs, with a mounted volume."""
    agent = Agent(workdir, logs)
    (workdir / "agent.yaml").write_text("keeper: external\nioUring: off\n")
    generations: list[Generation] = []
    try:
        generations.append(Generation(agent, "g1", logs).wait())
        agent.start()
        yield agent, generations
    finally:
        for generation in generations:
            if generation.process.poll() is None:
                generation.end()
        agent.power_off()


def test_one_after_the_other(node: tuple[Agent, list[Generation]], logs: LogCheck, workdir: Path) -> None:
    """Two generations of keepers and of agents: no system call of who uses the volumes fails, nothing of the first
    generation is left, and it waited for its end quietly."""
    agent, (first,) = node
    limited, free = workdir / "limited", workdir / "free"
    api.bound_claim(agent, "data")
    api.mount(agent, "data", limited)
    api.call_out(agent, "emptyDir", free)
    before = mount.below(workdir)
    torments = Torments(workdir / "counters")
    try:
        for place in (limited, free):
            torments.start(place, KINDS)
        torments.go_on(10)
        served_by_first = set(agent.processes()) <= set(first.processes())
        second = Generation(agent, "g2", logs)
        node[1].append(second)
        second.wait()
        eventually(first.parked, what="the first has seen it")
        running = first.process.poll() is None
        status = first.end()
        torments.go_on(10)
        served_by_second = set(agent.processes()) <= set(second.processes())
        agent.stop()
        torments.go_on(5)
        agent.start()
        torments.go_on(10)
        complaints = torments.stop()
    finally:
        torments.kill()
    api.mount(agent, "data", workdir / "again")

    assert complaints == []
    assert served_by_first
    assert running
    assert status == 0
    assert served_by_second
    assert set(before) <= set(mount.below(workdir))


def test_it_is_nobody_elses(node: tuple[Agent, list[Generation]], workdir: Path) -> None:
    """The agent neither replaces nor starts a keeper that is not its own, and says what to do; when there is one again,
    volumes are mounted again."""
    agent, (first,) = node
    api.bound_claim(agent, "data")
    api.mount(agent, "data", workdir / "m")
    refused = agent.cli("upgrade")
    first.end()
    api.bound_claim(agent, "other")
    with pytest.raises(UnavailableError):
        agent.client.request("GET", "/readyz")
    second = Generation(agent, "g2", LogCheck())
    node[1].append(second)
    second.wait()
    (workdir / "m" / "f").write_text("x")
    api.mount(agent, "other", workdir / "other")

    assert "`fusevol keeper` of the new version" in refused.stderr
    assert set(agent.processes()) <= set(second.processes())
