"""kill -9 of the agent after each step of taking, restoring and deleting a snapshot: the next agent completes it."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

from fusevol.errors import NotFoundError
from tests.faults.test_agent_kills import clean, volumes
from tests.support import api
from tests.support.mortal import MortalAgent, kill_at_every_step
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]

SNAPSHOTS = "snapshot.storage.k8s.io/v1"
PATH = "/v1/namespaces/default/volumesnapshots"


def snapshot(agent: MortalAgent, name: str) -> dict[str, Any] | None:
    """The VolumeSnapshot *name*, if there is one."""
    listed = agent.client.request("GET", PATH)["items"]
    return next((s for s in listed if s["metadata"]["name"] == name), None)


def make_snapshot(agent: MortalAgent, name: str) -> None:
    """Ask for a snapshot of the claim ``data``."""
    spec = {"source": {"persistentVolumeClaimName": "data"}}
    body = {"apiVersion": SNAPSHOTS, "kind": "VolumeSnapshot", "metadata": {"name": name}, "spec": spec}
    agent.client.request("POST", "/v1/apply", body)


def is_ready(agent: MortalAgent, name: str) -> bool:
    """Whether it can be restored from, and its claim is let go of."""
    found = snapshot(agent, name)
    claim = api.find(agent, "pvc", "data")
    assert claim is not None
    kept = claim["metadata"].get("finalizers") or []
    return found is not None and (found.get("status") or {}).get("readyToUse") is True and len(kept) == 1


def is_gone(agent: MortalAgent, name: str) -> bool:
    """Whether neither the object, nor its content, nor any file of it is left."""
    contents = agent.client.request("GET", "/v1/volumesnapshotcontents")["items"]
    return snapshot(agent, name) is None and contents == os.listdir(agent.pool / "snapshots") == [] and clean(agent)


class Taking:
    """A snapshot is taken."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent
        agent.client.request(
            "POST",
            "/v1/apply",
            {
                "apiVersion": SNAPSHOTS,
                "kind": "VolumeSnapshotClass",
                "metadata": {
                    "name": "std",
                    "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"},
                },
                "driver": "fusevol.io",
                "deletionPolicy": "Delete",
            },
        )
        self.volume = api.bound_claim(agent, "data")
        (agent.pool / "volumes" / self.volume / "data" / "f").write_text("kept")

    def prepare(self, name: str) -> None:
        """Nothing."""

    def begin(self, name: str) -> None:
        """Ask for it."""
        make_snapshot(self.agent, name)

    def done(self, name: str) -> bool:
        """It is ready."""
        return is_ready(self.agent, name)

    def check(self, name: str) -> None:
        """There is one, whole, and it can be deleted."""
        make_snapshot(self.agent, name)
        eventually(lambda: is_ready(self.agent, name), 20.0, what="the snapshot is ready")
        (kept,) = os.listdir(self.agent.pool / "snapshots")
        assert (self.agent.pool / "snapshots" / kept / "data" / "f").read_text() == "kept"
        assert clean(self.agent)
        self.agent.client.request("DELETE", f"{PATH}/{name}")
        eventually(lambda: is_gone(self.agent, name), 20.0, what="the snapshot is gone")


class Deleting(Taking):
    """A snapshot is deleted."""

    def prepare(self, name: str) -> None:
        """One that is ready."""
        make_snapshot(self.agent, name)
        eventually(lambda: is_ready(self.agent, name), 20.0, what="the snapshot is ready")

    def begin(self, name: str) -> None:
        """Delete it."""
        self.agent.client.request("DELETE", f"{PATH}/{name}")

    def done(self, name: str) -> bool:
        """It is gone."""
        return is_gone(self.agent, name)

    def check(self, name: str) -> None:
        """It goes, also if it must be asked for again; its volume stays."""
        with contextlib.suppress(NotFoundError):
            self.begin(name)
        eventually(lambda: is_gone(self.agent, name), 20.0, what="the snapshot is gone")
        assert volumes(self.agent) == [self.volume]


class Restoring(Taking):
    """A claim is filled from a snapshot."""

    def __init__(self, agent: MortalAgent) -> None:
        super().__init__(agent)
        make_snapshot(agent, "s")
        eventually(lambda: is_ready(agent, "s"), 20.0, what="the snapshot is ready")

    def begin(self, name: str) -> None:
        """Ask for the claim."""
        source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"}
        self.agent.client.request(
            "POST",
            "/v1/apply",
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "64Mi"}},
                    "dataSource": source,
                },
            },
        )

    def done(self, name: str) -> bool:
        """It is bound."""
        return bool(api.is_bound(self.agent, name))

    def check(self, name: str) -> None:
        """It is bound to one whole volume with what the snapshot has."""
        self.begin(name)
        volume = eventually(lambda: api.is_bound(self.agent, name), 20.0, what="the claim is bound")
        assert volumes(self.agent) == sorted([self.volume, volume])
        assert (self.agent.pool / "volumes" / volume / "data" / "f").read_text() == "kept"
        api.delete(self.agent, "pvc", name)
        left = [self.volume]
        eventually(
            lambda: (
                volumes(self.agent) == left
                and clean(self.agent)
                and [v["metadata"]["name"] for v in api.everything(self.agent, "pv")] == left
                and api.find(self.agent, "pvc", name) is None
            ),
            20.0,
            what="the volume is gone",
        )


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Taking, {"create VolumeSnapshotContent", "snapshot: renamed", "snapshot taken", "snapshot told"}),
        (Deleting, {"snapshot in the trash", "content let go", "put VolumeSnapshot"}),
        (Restoring, {"provision: data made", "volume made", "PersistentVolume made"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_kill_at_every_step(agent: MortalAgent, work: type[Taking], expected: set[str]) -> None:
    """Wherever it was interrupted, there is one snapshot or none, whole, and nothing is left over."""
    steps = kill_at_every_step(agent, work(agent), once=True)

    assert expected <= set(steps)
