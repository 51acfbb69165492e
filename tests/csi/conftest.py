"""Fixtures of the CSI driver's tests: an agent with a CSI socket, and a kubelet that calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.csi import Kubelet
from tests.support.logs import LogCheck
from tests.support.mortal import MortalAgent


class CsiAgent(MortalAgent):
    """An agent that serves CSI at ``csi.sock``, and lets Pods have paths below ``host``."""

    def __init__(self, directory: Path, logs: LogCheck) -> None:
        super().__init__(directory, logs)
        self.host = directory / "host"
        self.host.mkdir()
        self.configure()

    def configure(self, more: str = "") -> None:
        """Write the configuration."""
        text = f"csi: {{endpoint: 'unix://{self.directory}/csi.sock', hostPaths: ['{self.host}']}}\n{more}"
        (self.directory / "agent.yaml").write_text(text)


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> Iterator[CsiAgent]:
    """A running agent with a CSI socket."""
    running = CsiAgent(workdir, logs)
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def kubelet(agent: CsiAgent) -> Iterator[Kubelet]:
    """A kubelet of that agent's node."""
    running = Kubelet(agent)
    try:
        yield running
    finally:
        running.close()
