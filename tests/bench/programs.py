"""Workloads of real programs: tar, git, SQLite."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.plan import Plan
from tests.bench.subjects import Subject
from tests.support.postgres import Postgres

_UNWANTED: Final = {"__pycache__", "site-packages", "dist-packages"}
_GIT: Final = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}


@dataclass(frozen=True, slots=True)
class Material:
    """What the programs work on, made once, outside of all subjects."""

    archive: Path
    repository: Path
    postgres: Postgres | None


def make_material(scratch: Path, plan: Plan, postgres: Postgres | None) -> Material:
    """A tar and a git repository of a source tree that is on every machine: Python's own library."""
    material = Material(scratch / "tree.tar", scratch / "tree.git", postgres)
    library = Path(os.__file__).parent
    files: list[Path] = []
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = sorted(set(subfolders) - _UNWANTED)
        files += [Path(folder, name) for name in sorted(names)]
    with tarfile.open(material.archive, "w") as archive:
        for file in files[: plan.tree]:
            archive.add(file, arcname=Path("tree") / file.relative_to(library))
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    _run("tar", "-xf", str(material.archive), "-C", str(unpacked))
    tree = str(unpacked / "tree")
    _run("git", "-C", tree, "init", "--quiet")
    _run("git", "-C", tree, "add", ".")
    _run("git", "-C", tree, "commit", "--quiet", "-m", "The tree")
    _run("git", "clone", "--quiet", "--bare", tree, str(material.repository))
    return material


def programs(subject: Subject, work: Path, plan: Plan, material: Material) -> Iterator[tuple[str, float]]:
    """Run each program once in *work*; seconds, and transactions per second."""
    yield "untar source tree", _run("tar", "-xf", str(material.archive), "-C", str(work), "--no-same-owner")
    clone = str(work / "clone")
    # without --no-hardlinks a clone on the same filesystem would copy nothing
    yield "git clone", _run("git", "clone", "--quiet", "--no-hardlinks", str(material.repository), clone)
    _run(
        "git", "-C", clone, "status", "--short"
    )  # reads what the clone made within its last second; how much, is chance
    yield "git status", _run("git", "-C", clone, "status", "--short")
    yield "SQLite, WAL", _sqlite(work / "wal.db", "wal", plan.transactions)
    yield "SQLite, rollback journal", _sqlite(work / "rollback.db", "delete", plan.transactions)
    if material.postgres and subject.identities:  # it refuses to run as root
        yield "PostgreSQL, pgbench", material.postgres.rate(subject.root / "cluster", plan.pgbench_seconds)


def _run(*command: str) -> float:
    """Seconds that *command* takes. Raises :class:`subprocess.CalledProcessError`."""
    start = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | _GIT, capture_output=True, text=True, timeout=120)
    return time.perf_counter() - start


def _sqlite(path: Path, journal: str, count: int) -> float:
    """Transactions per second; each writes a row of 100 bytes, reads one by key, and is fsynced (synchronous=FULL)."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")
        start = time.perf_counter()
        for i in range(count):
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO rows (text) VALUES (?)", ("x" * 100,))
            db.execute("SELECT text FROM rows WHERE id = ?", (i // 2 + 1,)).fetchone()
            db.execute("COMMIT")
        return count / (time.perf_counter() - start)
