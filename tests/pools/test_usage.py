"""What all volumes of a pool use, as `fusevol get` shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LoopFs
from tests.support import api
from tests.support.agent import Agent
from tests.support.logs import LogCheck

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture
def agent(loop_fs: LoopFs, workdir: Path, logs: LogCheck) -> Iterator[Agent]:
    """An agent whose pool is on btrfs with quotas."""
    place = loop_fs("btrfs", 512 * MIB)
    subprocess.run(["btrfs", "quota", "enable", str(place)], check=True, timeout=20)
    running = Agent(workdir, logs)
    (place / "pool").mkdir()
    (workdir / "agent.yaml").write_text(f"pools: {{default: {place / 'pool'}}}\n")
    try:
        yield running.start()
    finally:
        running.close()


def test_the_pool_is_asked_and_no_server(agent: Agent) -> None:
    """What the kernel counts is had at once for all volumes, also of servers that do not answer."""
    for name in ("small", "large", "idle"):
        api.bound_claim(agent, name)
    for name in ("small", "large"):
        api.mount(agent, name, agent.directory / name)
    (agent.directory / "large" / "file").write_bytes(os.urandom(8 * MIB))
    subprocess.run(["sync", "-f", str(agent.directory / "large")], check=True, timeout=20)
    servers = list(api.servers(agent).values())
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        used = agent.client.request("GET", "/v1/usage")
        took = time.monotonic() - began
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
    found = {
        name: used.get((api.find(agent, "pvc", name) or {})["metadata"]["uid"]) for name in ("small", "large", "idle")
    }

    assert len(servers) == 2
    assert 8 * MIB <= found["large"] < 9 * MIB
    assert found["small"] < MIB
    assert found["idle"] is None, "it is not mounted"
    assert took < 2
