"""VolumeSnapshots, restored claims and clones, as a user asks for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root

CLASS = """
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: std, annotations: {snapshot.storage.kubernetes.io/is-default-class: "true"}}
driver: fusevol.io
deletionPolicy: Delete
"""
SNAPSHOT = """
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s}
spec: {source: {persistentVolumeClaimName: %s}}
"""
FILLED = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: %s}}
  dataSource: %s
"""
FROM_SNAPSHOT = "{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: %s}"
FROM_CLAIM = "{kind: PersistentVolumeClaim, name: %s}"


def mounted(agent: Agent, claim: str) -> Path:
    """The claim, bound and mounted."""
    eventually(lambda: api.is_bound(agent, claim), 20.0, what=f"claim {claim} is bound")
    target = agent.directory / claim
    api.mount(agent, claim, target)
    return target


def take(agent: Agent, name: str, claim: str) -> None:
    """A snapshot, ready to use."""
    agent.apply(SNAPSHOT % (name, claim))
    eventually(lambda: ready(agent, name), 30.0, what=f"snapshot {name} is ready")


def ready(agent: Agent, name: str) -> bool:
    """Whether a snapshot can be restored from."""
    return agent.get("vs", name).get("status", {}).get("readyToUse") is True


def test_restored_claims_and_clones_stand_alone(agent: Agent) -> None:
    """A snapshot keeps what was there; what is made of it, or of a claim, is independent of its source."""
    agent.apply(CLASS)
    api.make_claim(agent, "data")
    target = mounted(agent, "data")
    (target / "a").write_text("first")
    take(agent, "before", "data")
    (target / "a").write_text("second")

    agent.apply(FILLED % ("restored", "128Mi", FROM_SNAPSHOT % "before"))
    agent.apply(FILLED % ("cloned", "64Mi", FROM_CLAIM % "data"))
    restored, cloned = mounted(agent, "restored"), mounted(agent, "cloned")
    assert (restored / "a").read_text() == "first"
    assert (cloned / "a").read_text() == "second"
    assert os.statvfs(restored).f_blocks * os.statvfs(restored).f_frsize == 128 << 20

    (cloned / "a").write_text("third")
    assert [(t / "a").read_text() for t in (target, restored, cloned)] == ["second", "first", "third"]

    agent.ok("umount", str(target))
    agent.ok("delete", "pvc", "data")
    agent.apply(FILLED % ("again", "64Mi", FROM_SNAPSHOT % "before"))
    assert (mounted(agent, "again") / "a").read_text() == "first"  # the snapshot outlives its claim

    agent.ok("delete", "vs", "before")
    assert agent.get("vsc")["items"] == []
    eventually(
        lambda: os.listdir(agent.pool / "snapshots") == os.listdir(agent.pool / "trash") == [], what="it is gone"
    )


def test_what_cannot_be_filled_waits_and_says_why(agent: Agent) -> None:
    """Too small, or from what is not there; when that comes, the claim is bound."""
    agent.apply(CLASS)
    api.make_claim(agent, "data")
    eventually(lambda: api.is_bound(agent, "data"), 20.0, what="the claim is bound")
    agent.apply(FILLED % ("early", "64Mi", FROM_SNAPSHOT % "later"))
    agent.apply(FILLED % ("small", "32Mi", FROM_CLAIM % "data"))

    told = eventually(lambda: agent.ok("events", "--for", "pvc/early"), what="an event")
    assert "the snapshot later does not exist" in told
    told = eventually(lambda: agent.ok("events", "--for", "pvc/small"), what="an event")
    assert "requested volume size 32Mi is less than the size 64Mi of the PVC data" in told

    take(agent, "later", "data")
    eventually(lambda: api.is_bound(agent, "early"), 20.0, what="the claim is bound")
    assert not api.is_bound(agent, "small")


UNCOUNTED = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: uncounted}
provisioner: fusevol.io/fusevol
parameters: {quota: "none"}
mountOptions: [%s]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: uncounted, accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
"""


def test_what_is_written_past_the_server_is_told(agent: Agent) -> None:
    """A snapshot or a clone of a volume whose data nobody holds up says that it is not of one moment, if a file was
    open in it; otherwise nothing is said."""
    agent.apply(CLASS)
    agent.apply(UNCOUNTED % "")
    target = mounted(agent, "data")
    take(agent, "quiet", "data")
    with (target / "f").open("w") as file:
        file.write("x")
        file.flush()
        take(agent, "busy", "data")
        agent.apply(FILLED % ("clone", "64Mi", FROM_CLAIM % "data"))
        mounted(agent, "clone")
    told = agent.ok("events")
    clones = [line for line in told.splitlines() if "CloneNotAtomic" in line]
    snapshots = [line for line in told.splitlines() if "SnapshotNotAtomic" in line]

    assert len(clones) == len(snapshots) == 1
    assert "persistentvolumeclaim/clone" in clones[0]
    assert "1 open files were being written directly" in clones[0]


def test_nothing_is_written_past_the_server_where_that_is_not_wanted(agent: Agent) -> None:
    """The mount option says so to whoever asks, and a snapshot has nothing to warn of."""
    agent.apply(CLASS)
    agent.apply(UNCOUNTED % "passthrough=off")
    target = mounted(agent, "data")
    with (target / "f").open("w") as file:
        file.write("x")
        file.flush()
        take(agent, "busy", "data")

    assert "by the server (passthrough=off was asked for)" in agent.ok("describe", "pvc", "data")
    assert "NotAtomic" not in agent.ok("events", "-A")


SCHEDULED = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: often}
provisioner: fusevol.io/fusevol
parameters: {snapshotSchedule: 1s, snapshotKeep: "2"}
"""


def test_scheduled_snapshots(agent: Agent) -> None:
    """They are taken by themselves, the oldest go, and what was asked for by hand stays."""
    agent.apply(CLASS + "---" + SCHEDULED)
    agent.apply((FILLED % ("data", "64Mi", "null")) + "  storageClassName: often\n")
    eventually(lambda: api.is_bound(agent, "data"), 20.0, what="the claim is bound")
    take(agent, "mine", "data")
    seen: set[str] = set()

    def names() -> set[str]:
        listed = agent.get("vs")["items"]
        found = {str(s["metadata"]["name"]) for s in listed if (s.get("status") or {}).get("readyToUse")}
        seen.update(found)
        return found

    eventually(lambda: len(names()) and len(seen) >= 5, 40.0, what="four scheduled snapshots were seen")
    eventually(lambda: len(names()) == 3, 20.0, what="those that are too many are gone")

    assert "mine" in names()
