"""What becomes of a volume whose data cannot be deleted."""

from __future__ import annotations

import pytest

from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root


@pytest.mark.expect_log("(?i)trash")
def test_reclaim_that_fails_is_tried_again(agent: Agent) -> None:
    """4.3: the volume is Failed with the reason, also as an event; once the cause is gone, it goes."""
    volume = api.bound_claim(agent, "data")
    trash = agent.pool / "trash"
    trash.rmdir()
    trash.touch()
    api.delete(agent, "pvc", "data")
    eventually(lambda: agent.get("pv", volume)["status"]["phase"] == "Failed", 20.0, what="the volume is Failed")
    status = agent.get("pv", volume)["status"]
    events = agent.ok("events", "--for", f"pv/{volume}")
    kept = (agent.pool / "volumes" / volume).is_dir()
    trash.unlink()
    trash.mkdir()
    eventually(lambda: api.find(agent, "pv", volume) is None, 20.0, what="the volume is gone")

    assert status["reason"] == "VolumeFailedDelete"
    assert "VolumeFailedDelete" in events
    assert kept
    eventually(lambda: not list((agent.pool / "volumes").iterdir()), 20.0, what="its data is gone")
