"""VolumeSnapshots, restored claims and clones, as a user asks for them."""

from __future__ import annotations

import os
import sqlite3
import threading
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


def test_a_database_under_load(agent: Agent) -> None:
    """A snapshot that is taken while a program writes is one moment: the database in it is whole, and not older."""
    agent.apply(CLASS)
    api.make_claim(agent, "data")
    file = mounted(agent, "data") / "db"
    stop, written = threading.Event(), [0]

    def write() -> None:
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, twin INTEGER, fill BLOB)")
            database.commit()
            while not stop.is_set():
                n = written[0] + 1
                database.execute("INSERT INTO t VALUES (?, ?, randomblob(3000))", (n, n))
                database.execute("UPDATE t SET twin = -n WHERE n = ?", (n,))
                database.commit()
                written[0] = n
        database.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for round_ in range(3):
            enough = 20 * (round_ + 1)
            eventually(lambda: written[0] > enough, 30.0, what="it writes")  # noqa: B023 - called at once
            before = written[0]
            take(agent, f"s{round_}", "data")
            agent.apply(FILLED % (f"r{round_}", "64Mi", FROM_SNAPSHOT % f"s{round_}"))
            with sqlite3.connect(mounted(agent, f"r{round_}") / "db") as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                count, highest, halves = database.execute("SELECT count(*), max(n), sum(twin != -n) FROM t").fetchone()
            database.close()
            assert count == highest >= before
            assert halves == 0
    finally:
        stop.set()
        writer.join(30)
