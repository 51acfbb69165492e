"""Databases in snapshots of pools with project quotas, with passthrough (Linux 6.12) and without (6.1)."""

# ruff: noqa: F401, F811  # fixtures and tests of elsewhere, with the backends of here
from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_databases import (
    Bank,
    claim_on,
    home,
    template,
    test_postgresql,
    test_sqlite,
)
from tests.e2e.test_snapshots import take
from tests.guest.backends import backend
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.guest]


@pytest.mark.guest("6.12")
def test_what_passthrough_costs_is_told(home: Path, agent: Agent) -> None:
    """Where data goes past the server a snapshot under load is of no single moment, and a warning says so."""
    bank = Bank(claim_on(agent, home, "64Mi", "passthrough=auto") / "db")
    try:
        eventually(lambda: bank.transactions > 5, 60.0, what="it works")
        take(agent, "one", "data")
    finally:
        bank.end()

    assert "SnapshotNotAtomic" in agent.ok("events", "-A")
