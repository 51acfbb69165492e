"""A database in a snapshot of a pool with project quotas, where data can go past the server (Linux 6.12)."""

# ruff: noqa: F401, F811  # fixtures of elsewhere, with the backends of here
from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_databases import Bank, claim_on, whole
from tests.e2e.test_snapshots import FILLED, FROM_SNAPSHOT, mounted, take
from tests.guest.backends import BACKENDS, backend
from tests.pools.test_drivers import place
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.guest("6.12")]
ROWS = 400
"""A guest is slow."""


def _busy(agent: Agent, place: Path, option: str) -> str:
    """Take a snapshot while a program writes; what the events say, if the database in it is whole."""
    bank = Bank(claim_on(agent, place, "32Mi", option) / "db", ROWS)
    try:
        eventually(lambda: bank.transactions > 5, 60.0, what="it works")
        take(agent, "one", "data")
        seen = bank.transactions
        eventually(lambda: bank.transactions > seen, 60.0, what="it works on")
    finally:
        bank.end()
    if option == "passthrough=off":
        agent.apply(FILLED % ("from-one", "32Mi", FROM_SNAPSHOT % "one"))
        assert whole(mounted(agent, "from-one") / "db", ROWS)
    return agent.ok("events", "-A")


def test_data_through_the_server_is_of_one_moment(place: Path, agent: Agent) -> None:
    """All that is written waits for the snapshot, whoever keeps the limit."""
    assert "NotAtomic" not in _busy(agent, place, "passthrough=off")


@pytest.mark.parametrize("backend", BACKENDS[:1], ids=lambda b: b.name, indirect=True)
def test_what_passthrough_costs_is_told(place: Path, agent: Agent) -> None:
    """Where data goes past the server a snapshot under load is of no single moment, and a warning says so."""
    assert "SnapshotNotAtomic" in _busy(agent, place, "passthrough=auto")
