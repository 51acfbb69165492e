"""Databases that are written to while a snapshot or a clone is made of their volume, on every kind of pool."""

# ruff: noqa: F401, F811  # fixtures of elsewhere: the table of pools
from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_snapshots import CLASS, FILLED, FROM_CLAIM, FROM_SNAPSHOT, mounted, take
from tests.pools.test_drivers import backend, place
from tests.support import postgres
from tests.support.agent import Agent
from tests.support.polling import eventually
from tests.support.postgres import Postgres

pytestmark = pytest.mark.root

HOME = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: home, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: fusevol.io/fusevol
parameters: {pool: home}
mountOptions: [%s]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: %s}}}
"""


def claim_on(agent: Agent, place: Path, size: str, option: str = "passthrough=off") -> Path:
    """The claim `data` on a new pool at *place*, mounted."""
    agent.ok("pool", "create", "home", "--path", str(place))
    agent.ok("delete", "sc", "fusevol")  # of two default classes the newer counts, by whole seconds
    agent.apply(CLASS)
    agent.apply(HOME % (option, size))
    agent.directory.chmod(0o755)  # PostgreSQL runs as an ordinary user
    return mounted(agent, "data")


ROWS = 4000


class Bank:
    """A program that moves money between the rows of a database: the sum is always the same, in every page."""

    def __init__(self, file: Path, rows: int = ROWS) -> None:
        self.file = file
        self._rows = rows
        self.transactions = 0
        self._stop = threading.Event()
        with contextlib.closing(sqlite3.connect(file)) as database, database:
            database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, money INTEGER, fill BLOB)")
            database.executemany("INSERT INTO t VALUES (?, 100, randomblob(2000))", ((n,) for n in range(rows)))
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        numbers = random.Random(7)
        with contextlib.closing(sqlite3.connect(self.file)) as database:
            while not self._stop.is_set():
                with database:
                    for _ in range(20):
                        a, b = numbers.randrange(self._rows), numbers.randrange(self._rows)
                        database.execute("UPDATE t SET money = money - 1, fill = randomblob(2000) WHERE n = ?", (a,))
                        database.execute("UPDATE t SET money = money + 1, fill = randomblob(2000) WHERE n = ?", (b,))
                self.transactions += 1

    def end(self) -> None:
        """Stop working."""
        self._stop.set()
        self._thread.join(60)


def whole(file: Path, rows: int = ROWS) -> bool:
    """Whether a database passes its own check, and no money is missing."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        sound = database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return sound and database.execute("SELECT sum(money), count(*) FROM t").fetchone() == (100 * rows, rows)


def test_sqlite(place: Path, agent: Agent) -> None:
    """A snapshot, and a clone, that are made while a program writes are one moment: the database in them is whole."""
    bank = Bank(claim_on(agent, place, "64Mi") / "db")
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
    assert len(list((place / "volumes").iterdir())) == 5
    assert "NotAtomic" not in agent.ok("events", "-A")


@pytest.fixture(scope="module")
def template() -> Iterator[Postgres]:
    """A small cluster to copy."""
    scratch = Path(tempfile.mkdtemp(prefix="p"))
    scratch.chmod(0o755)
    found = postgres.installed(scratch, small=True)
    if found is None:
        pytest.skip("Debian's package postgresql is not installed")
    found.prepare()
    yield found
    shutil.rmtree(scratch)


def other(server: Postgres, name: str) -> Postgres:
    """One with another place for its socket, so that both can run at once."""
    sockets = server.sockets.parent / name
    sockets.mkdir(exist_ok=True)
    shutil.chown(sockets, server.user)
    return dataclasses.replace(server, sockets=sockets)


def committed(server: Postgres) -> int:
    """How many transactions of pgbench the server knows."""
    return int(server.ask("SELECT count(*) FROM pgbench_history"))


SUMS = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
       (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history)
"""


def recovered(server: Postgres, cluster: Path, at_least: int) -> None:
    """A server starts on *cluster*, has all that was committed, each transaction wholly, and its indexes fit."""
    (cluster / "postmaster.pid").unlink()  # it names the first server's process, which lives: on this machine only
    server.start(cluster)
    try:
        assert committed(server) >= at_least
        assert len(set(server.ask(SUMS).split("|"))) == 1, server.ask(SUMS)
        server.check()
    finally:
        server.stop(cluster)


def test_postgresql(template: Postgres, place: Path, agent: Agent) -> None:
    """PostgreSQL starts on what was a snapshot, and on a clone, of the volume that it was busy on."""
    target = claim_on(agent, place, "128Mi")
    template.copy_to(target)
    cluster, second = target / "cluster", other(template, "second")
    template.start(cluster)
    try:
        with template.transactions():
            eventually(lambda: committed(template) > 20, 60.0, what="it works")
            before = committed(template)
            take(agent, "one", "data")
            agent.apply(FILLED % ("from-one", "128Mi", FROM_SNAPSHOT % "one"))
            then = committed(template)
            agent.apply(FILLED % ("of-data", "128Mi", FROM_CLAIM % "data"))
            recovered(second, mounted(agent, "from-one") / "cluster", before)
            recovered(second, mounted(agent, "of-data") / "cluster", then)
            now = committed(template)
            eventually(lambda: committed(template) > now, 60.0, what="it works on")
    finally:
        template.stop(cluster)

    assert "NotAtomic" not in agent.ok("events", "-A")
