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


def phase(agent: Agent, name: str) -> str:
    """Of a volume."""
    return str(agent.get("pv", name)["status"].get("phase"))


def test_a_retained_volume_is_used_again(agent: Agent) -> None:
    """4.10: Released, and nobody's, not even for a claim of the same name, until an administrator takes its claimRef
    away; then it is the next claim's, with what is in it."""
    volume = api.bound_claim(agent, "data")
    agent.ok(
        "patch", "pv", volume, "-p", '{"spec": {"persistentVolumeReclaimPolicy": "Retain", "storageClassName": ""}}'
    )
    (agent.pool / "volumes" / volume / "data" / "kept").touch()
    api.delete(agent, "pvc", "data")
    eventually(lambda: phase(agent, volume) == "Released", 20.0, what="the volume is Released")
    api.apply(agent, api.claim("data", "64Mi", storageClassName=""))
    eventually(lambda: agent.get("pvc", "data").get("status"), 20.0, what="the claim has been looked at")
    before = agent.get("pvc", "data")["status"]["phase"], phase(agent, volume)
    agent.ok("patch", "pv", volume, "--type=json", "-p", '[{"op": "remove", "path": "/spec/claimRef"}]')
    eventually(lambda: api.is_bound(agent, "data") == volume, 20.0, what="the claim has the volume")

    assert before == ("Pending", "Released")
    assert (agent.pool / "volumes" / volume / "data" / "kept").exists()
