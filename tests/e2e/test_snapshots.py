"""VolumeSnapshots, restored claims and clones, as a user asks for them."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
from pathlib import Path

import pytest

from tests.conftest import LoopFs
from tests.pools.backends import on_tmpfs
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
HOME = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: home, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: fusevol.io/fusevol
parameters: {pool: home}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
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


ROWS = 4000


class Bank:
    """A program that moves money between the rows of a database: the sum is always the same, in every page."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.transactions = 0
        self._stop = threading.Event()
        with contextlib.closing(sqlite3.connect(file)) as database, database:
            database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, money INTEGER, fill BLOB)")
            database.executemany("INSERT INTO t VALUES (?, 100, randomblob(2000))", ((n,) for n in range(ROWS)))
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        numbers = random.Random(7)
        with contextlib.closing(sqlite3.connect(self.file)) as database:
            while not self._stop.is_set():
                with database:
                    for _ in range(20):
                        a, b = numbers.randrange(ROWS), numbers.randrange(ROWS)
                        database.execute("UPDATE t SET money = money - 1, fill = randomblob(2000) WHERE n = ?", (a,))
                        database.execute("UPDATE t SET money = money + 1, fill = randomblob(2000) WHERE n = ?", (b,))
                self.transactions += 1

    def end(self) -> None:
        """Stop working."""
        self._stop.set()
        self._thread.join(60)


def whole(file: Path) -> bool:
    """Whether a database passes its own check, and no money is missing."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        sound = database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return sound and database.execute("SELECT sum(money), count(*) FROM t").fetchone() == (100 * ROWS, ROWS)


@pytest.fixture(params=["ext4", "xfs", "btrfs", "cephfs", "tmpfs"])
def home(request: pytest.FixtureRequest, workdir: Path) -> Path:
    """An empty directory for a pool, on each kind of filesystem that has another way to a snapshot."""
    if request.param == "cephfs":
        found: Path = request.getfixturevalue("cephfs")
        return found
    if request.param == "tmpfs":
        return on_tmpfs(lambda *_: workdir, workdir) / "pool"
    make: LoopFs = request.getfixturevalue("loop_fs")
    return make(request.param) / "pool"


def test_a_database_under_load(home: Path, agent: Agent) -> None:
    """A snapshot, and a clone, that are made while a program writes are one moment: the database in them is whole."""
    agent.ok("pool", "create", "home", "--path", str(home))
    agent.ok("delete", "sc", "fusevol")  # of two default classes the newer counts, by whole seconds
    agent.apply(CLASS)
    agent.apply(HOME)
    bank = Bank(mounted(agent, "data") / "db")
    try:
        for name in ("one", "two"):
            seen = bank.transactions
            eventually(lambda: bank.transactions > seen + 5, 60.0, what="it works")  # noqa: B023 - called at once
            take(agent, name, "data")
            agent.apply(FILLED % (f"from-{name}", "64Mi", FROM_SNAPSHOT % name))
            agent.apply(FILLED % (f"of-{name}", "64Mi", FROM_CLAIM % "data"))
            assert whole(mounted(agent, f"from-{name}") / "db")
            assert whole(mounted(agent, f"of-{name}") / "db")
        seen = bank.transactions
        eventually(lambda: bank.transactions > seen, 60.0, what="it works on")
    finally:
        bank.end()

    assert whole(bank.file)
    assert len(os.listdir(home / "volumes")) == 5


UNCOUNTED = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: uncounted}
provisioner: fusevol.io/fusevol
parameters: {quota: "none"}
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
    agent.apply(UNCOUNTED)
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
