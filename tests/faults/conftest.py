"""Fixtures of the tests in which things are killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.logs import LogCheck
from tests.support.mortal import MortalAgent


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> Iterator[MortalAgent]:
    """A running agent that can be told when it dies."""
    running = MortalAgent(workdir, logs)
    try:
        yield running.start()
    finally:
        running.close()
