"""Many volumes at once: what one costs does not depend on how many there are.

``FUSEVOL_VOLUMES=1000`` (``make volumes``) is the number that is promised; the default is short. The numbers are
printed.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fusevol.transport import mount
from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually
from tests.support.processes import cpu_seconds, descriptors, private_bytes

pytestmark = [pytest.mark.root, pytest.mark.slow]

VOLUMES = int(os.environ.get("FUSEVOL_VOLUMES", "60"))
MIB = 1 << 20
DESCRIPTORS = 20_000
"""What a process may have open, on nodes that give no more."""


class Cost(NamedTuple):
    """What a volume took, in milliseconds."""

    elapsed: float
    cpu: float
    """Of agent and keeper."""


class Node:
    """An agent, and what its processes have used."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.keeper = eventually(agent.keeper, what="a keeper") or 0

    def target(self, number: int) -> Path:
        """Where a volume is mounted."""
        return self.agent.directory / "mnt" / str(number)

    def make(self, number: int) -> None:
        """Create a claim and mount it."""
        api.make_claim(self.agent, f"c{number}")
        api.mount(self.agent, f"c{number}", self.target(number))

    def unmake(self, number: int) -> None:
        """Unmount it."""
        api.unmount(self.agent, self.target(number))

    def measure(self, action: Callable[[int], None], numbers: range) -> list[Cost]:
        """Do *action* for each of *numbers*."""
        found = []
        for number in numbers:
            began, cpu = time.perf_counter(), self._cpu()
            action(number)
            found.append(Cost(1e3 * (time.perf_counter() - began), 1e3 * (self._cpu() - cpu)))
        return found

    def serving(self, known: Collection[int] = ()) -> float:
        """Milliseconds of CPU that a volume server has used, of those that are not *known*."""
        new = [pid for pid in self.agent.processes() if pid not in known]
        return statistics.quantiles((1e3 * cpu_seconds(pid) for pid in new), n=4)[0]

    def _cpu(self) -> float:
        return cpu_seconds(self.agent.pid) + cpu_seconds(self.keeper)


def _typical(costs: list[Cost]) -> Cost:
    """The lower quartile: other work on the machine only ever adds to it."""
    return Cost(*(statistics.quantiles(values, n=4)[0] for values in zip(*costs, strict=True)))


def _grew(before: float, after: float) -> bool:
    """Whether *after* milliseconds of CPU are clearly more than *before*."""
    return after > 1.4 * before + 3


@contextlib.contextmanager
def _long_mount_table(directory: Path, length: int) -> Iterator[None]:
    """*length* more mounts on the machine."""
    for number in range(length):
        point = directory / f"a-mount-that-is-none-of-ours-{number}"
        point.mkdir(parents=True)
        mount.bind(point, point)
    try:
        yield
    finally:
        for number in range(length):
            mount.unmount(directory / f"a-mount-that-is-none-of-ours-{number}")


def test_other_mounts_of_the_machine_cost_nothing(agent: Agent) -> None:
    """Mounting and unmounting take as long as ever when the mount table has thousands of lines more."""
    node = Node(agent)

    def cpu(numbers: range) -> tuple[float, float, float]:
        made = _typical(node.measure(node.make, numbers)).cpu
        return made, node.serving(), _typical(node.measure(node.unmake, numbers)).cpu

    alone = cpu(range(15))
    with _long_mount_table(agent.directory / "others", 3000):
        amid = cpu(range(15, 30))

    assert not any(map(_grew, alone, amid)), (alone, amid)


def test_many_volumes(agent: Agent) -> None:
    """The last claim is made and mounted as quickly as the first, and memory and descriptors suffice for a thousand."""
    node = Node(agent)
    tenth = max(15, VOLUMES // 10)
    before = len(descriptors(agent.pid)), len(descriptors(node.keeper)), private_bytes(agent.pid)
    costs = node.measure(node.make, range(tenth))
    early = node.serving()
    costs += node.measure(node.make, range(tenth, VOLUMES - tenth))
    known = set(agent.processes())
    costs += node.measure(node.make, range(VOLUMES - tenth, VOLUMES))
    late = node.serving(known)
    for number in range(VOLUMES):
        (node.target(number) / "name").write_text(str(number))
    idle = statistics.median(private_bytes(pid) for pid in agent.processes()[:: max(1, VOLUMES // 50)])
    servers = api.servers(agent)
    after = len(descriptors(agent.pid)), len(descriptors(node.keeper)), private_bytes(agent.pid)
    agent.kill()
    began = time.perf_counter()
    agent.start()
    restart = time.perf_counter() - began
    adopted = api.servers(agent)
    names = [(node.target(number) / "name").read_text() for number in range(VOLUMES)]
    last_out = node.measure(node.unmake, range(VOLUMES))
    eventually(lambda: not agent.processes(), what="all servers have ended")

    first, last = _typical(costs[:tenth]), _typical(costs[-tenth:])
    numbers = {
        "volumes": VOLUMES,
        "claim to mount, ms: quickest": min(cost.elapsed for cost in costs),
        "claim to mount, ms: first tenth": first.elapsed,
        "claim to mount, ms: last tenth": last.elapsed,
        "claim to mount, CPU ms of agent and keeper: first tenth": first.cpu,
        "claim to mount, CPU ms of agent and keeper: last tenth": last.cpu,
        "CPU ms of the volume server until then: first tenth": early,
        "CPU ms of the volume server until then: last tenth": late,
        "unmount, ms: first tenth": _typical(last_out[:tenth]).elapsed,
        "private memory of an idle volume, MiB": idle / MIB,
        "private memory of the agent, MiB: before": before[2] / MIB,
        "private memory of the agent, MiB: with all": after[2] / MIB,
        "descriptors per volume: agent": (after[0] - before[0]) / VOLUMES,
        "descriptors per volume: keeper": (after[1] - before[1]) / VOLUMES,
        "restart of the agent, s": restart,
    }
    for name, value in numbers.items():
        print(f"{name}: {value:.4g}")

    assert names == [str(number) for number in range(VOLUMES)]
    assert adopted == servers
    assert len(servers) == VOLUMES
    assert numbers["claim to mount, ms: quickest"] < (50 if VOLUMES >= 1000 else 100)  # CI's machines may be busy
    assert first.cpu < 30
    assert not _grew(first.cpu, last.cpu), (first, last)
    assert not _grew(early, late), (early, late)
    assert idle < 5.25 * MIB  # each has made a file
    assert after[2] - before[2] < 64 * MIB
    for who in ("agent", "keeper"):
        assert 1000 * float(numbers[f"descriptors per volume: {who}"]) < DESCRIPTORS / 2
