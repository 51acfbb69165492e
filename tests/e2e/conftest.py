"""Fixtures of the tests with a whole agent: podman, and an agent that uses it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import supervision
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.podman import Podman


@pytest.fixture(scope="session")
def podman_storage() -> Iterator[Podman]:
    """Podman with the images, set up once for all tests."""
    directory = Path(tempfile.mkdtemp(prefix="p"))
    podman = Podman(directory / "p")
    try:
        yield podman
    finally:
        podman.close()
        shutil.rmtree(directory)


@pytest.fixture
def podman(podman_storage: Podman) -> Iterator[Podman]:
    """Podman without any container."""
    try:
        yield podman_storage
    finally:
        podman_storage.clear()


@pytest.fixture
def pod_agent(workdir: Path, logs: LogCheck, podman: Podman) -> Iterator[Agent]:
    """A running agent whose ``fusevol run`` uses the tests' podman."""
    running = Agent(workdir, logs, podman.environment)
    try:
        yield running.start()
    finally:
        # containers first: they hold the mounts; and before them who would start them again while podman removes them
        for lock in (running.run_dir / "supervisors").glob("*.lock"):
            supervision.end(running.client, lock.stem)
        try:
            podman.clear()
        finally:
            running.close()
