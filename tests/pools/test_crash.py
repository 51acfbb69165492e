"""kill -9 at every step: a volume is there whole or not at all, and doing it again succeeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.pool import Pool, VolumeRequest

_ROOT = Path(__file__).parents[2]
REQUEST = VolumeRequest(id="v1", capacity_bytes=1 << 20, owner={"claim": "c"})

_CHILD = """
import os, signal, sys
from pathlib import Path
from tests.pools.test_crash import act
def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
act(Path(sys.argv[1]), sys.argv[2], step)
"""


def act(path: Path, action: str, step: object) -> None:
    """Carry *action* out in the pool at *path*, in whichever process."""
    pool = Pool.open(path, "p", create=True, step=step)  # type: ignore[arg-type]  # comes from a child's own text
    try:
        if action == "provision":
            pool.provision(REQUEST)
        elif action == "trash":
            pool.trash("v1", "why")
        elif action == "restore":
            pool.restore(pool.trashed()[0])
        elif action == "purge":
            pool.purge(pool.trashed()[0], lambda n: step(f"purge: {n} removed"))  # type: ignore[operator]  # as above
    finally:
        pool.close()


def prepare(path: Path, action: str) -> None:
    """A pool in which *action* can be carried out."""
    pool = Pool.open(path, "p", create=True)
    if action != "provision":
        data = pool.provision(REQUEST).data
        (data / "d" / "e" / "f").mkdir(parents=True)
        for i in range(300):
            (data / "d" / "e" / f"file{i}").write_text("x")
    if action in {"restore", "purge"}:
        pool.trash("v1", "why")
    pool.close()


def steps(path: Path, action: str) -> list[str]:
    """The boundaries that *action* passes, found by carrying it out."""
    names: list[str] = []
    prepare(path, action)
    act(path, action, names.append)
    return names


def crash(path: Path, action: str, at: str) -> None:
    """Carry *action* out in a child that is killed at the boundary *at*."""
    command = [sys.executable, "-c", _CHILD, str(path), action, at]
    done = subprocess.run(command, check=False, cwd=_ROOT, timeout=60, env={**os.environ, "PYTHONPATH": str(_ROOT)})
    assert done.returncode == -signal.SIGKILL, f"not killed at {at}"


def names(path: Path) -> list[str]:
    """What is in the pool's rooms."""
    return sorted(f"{room}/{name}" for room in ("tmp", "trash", "volumes") for name in os.listdir(path / room))


def whole(path: Path) -> bool:
    """Whether the pool, opened and swept by the next agent, has no damage and nothing half-made."""
    pool = Pool.open(path, "p")
    pool.sweep()
    found = pool.check()
    left = names(path)
    pool.close()
    return found == [] and not [n for n in left if n.startswith("tmp/")]


@pytest.mark.parametrize(
    ("action", "least", "before", "after"),
    [
        ("provision", 6, [], ["volumes/v1"]),
        ("trash", 4, ["volumes/v1"], ["trash/v1.1"]),
        ("restore", 3, ["trash/v1.1"], ["volumes/v1"]),
        ("purge", 6, ["trash/v1.1"], []),
    ],
)
def test_killed_at_every_step(workdir: Path, action: str, least: int, before: list[str], after: list[str]) -> None:
    """Killed at any boundary, the pool is as before or as after, whole, and the same action completes."""
    boundaries = steps(workdir / "uninterrupted", action)
    assert len(boundaries) >= least
    for number, boundary in enumerate(boundaries):
        path = workdir / f"p{number}"
        prepare(path, action)
        crash(path, action, boundary)
        assert whole(path), boundary
        state = names(path)
        assert state in (before, after), boundary
        if state == before:
            act(path, action, lambda _: None)
        assert whole(path), boundary

        assert names(path) == after, boundary


def test_provision_after_each_crash(workdir: Path) -> None:
    """Provisioning again after a kill at any boundary, without a sweep, gives the volume that was asked for."""
    for number, boundary in enumerate(steps(workdir / "uninterrupted", "provision")):
        path = workdir / f"p{number}"
        crash(path, "provision", boundary)
        pool = Pool.open(path, "p")
        made = pool.provision(REQUEST)
        pool.close()

        assert (made.id, made.owner, made.data.stat().st_mode & 0o777) == ("v1", {"claim": "c"}, 0o777), boundary


def test_restored_data_is_whole(workdir: Path) -> None:
    """A volume that is restored after a kill in the deletion has all its files."""
    for number, boundary in enumerate(steps(workdir / "uninterrupted", "trash")):
        path = workdir / f"p{number}"
        prepare(path, "trash")
        crash(path, "trash", boundary)
        pool = Pool.open(path, "p")
        for entry in pool.trashed():
            pool.restore(entry)
        count = sum(1 for _ in pool.volume("v1").data.rglob("*"))
        pool.close()

        assert count == 303, boundary
