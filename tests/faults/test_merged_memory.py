"""Equal pages of volume servers, merged by the system where the configuration says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import api
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.processes import keepers, private_bytes

pytestmark = pytest.mark.root
KSM = Path("/sys/kernel/mm/ksm")
MIB = 1 << 20
VOLUMES = 4


@pytest.fixture
def quick() -> Iterator[None]:
    """The system looks at many pages a second; afterwards it does as before, and nothing is merged any more."""
    names = ("pages_to_scan", "sleep_millisecs", "run")
    if not (KSM / "run").exists():
        pytest.skip("this kernel merges no pages (CONFIG_KSM)")
    before = {name: (KSM / name).read_text() for name in names}
    (KSM / "pages_to_scan").write_text("2000")
    (KSM / "sleep_millisecs").write_text("10")
    (KSM / "run").write_text("0")
    try:
        yield
    finally:
        (KSM / "run").write_text("2")  # whatever is merged is parted
        for name, value in before.items():
            (KSM / name).write_text(value)


@pytest.mark.usefixtures("quick")
def test_a_fifth_of_the_memory(workdir: Path, logs: LogCheck) -> None:
    """Idle servers have less than 2 MiB to themselves, and so have those of the keeper that follows when one dies with
    its understudy; without the setting nothing is merged."""
    agent = Agent(workdir, logs)
    (workdir / "agent.yaml").write_text("mergeMemory: on\nioUring: off\n")
    try:
        agent.start()
        for number in range(VOLUMES):
            api.bound_claim(agent, f"c{number}")
            api.mount(agent, f"c{number}", workdir / f"m{number}")
        eventually(lambda: _largest(agent) < 2 * MIB, 60.0, what="pages are merged")
        merged = _largest(agent)
        for number in range(VOLUMES):
            (workdir / f"m{number}" / "f").write_text("x")
        understudies = keepers(agent.run_dir, understudies=True)
        flags = [_merges(pid) for pid in (*keepers(agent.run_dir), *understudies, *agent.processes())]
    finally:
        agent.power_off()
    print(f"{merged / MIB:.2f} MiB")

    assert (KSM / "run").read_text() == "1\n"
    assert len(flags) == VOLUMES + 2
    assert all(flags)


def test_nothing_without(agent: Agent) -> None:
    """Who has not asked for it has no page that may be merged."""
    api.bound_claim(agent, "data")
    api.mount(agent, "data", agent.directory / "m")

    assert not any(map(_merges, (*keepers(agent.run_dir), *agent.processes())))


def _merges(pid: int) -> bool:
    """Whether the system may merge pages of a process."""
    text = Path(f"/proc/{pid}/ksm_stat").read_text()
    return "ksm_merge_any: yes" in text


def _largest(agent: Agent) -> int:
    return max(private_bytes(pid) for pid in agent.processes())
