"""Pools and ledgers on real filesystems: ext4, XFS, btrfs, tmpfs; full, and read-only."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from fusevol.errors import NoSpaceError, UnavailableError
from fusevol.pool import Pool, VolumeRequest
from fusevol.quota.ledger import Ledger
from fusevol.quota.scan import ScanProgress, scan
from tests.conftest import LoopFs
from tests.pools.conftest import OpenPool
from tests.unit.quota.test_scan import du

pytestmark = pytest.mark.root
Fs = Literal["ext4", "xfs", "btrfs", "tmpfs"]
ALL = ["ext4", "xfs", "btrfs", "tmpfs"]
MakeFs = Callable[[Fs], Path]


@pytest.fixture
def small_fs(workdir: Path, loop_fs: LoopFs) -> MakeFs:
    """A factory of small filesystems, unmounted with the test."""

    def make(kind: Fs) -> Path:
        if kind != "tmpfs":
            return loop_fs(kind, 16 << 20)
        point = workdir / "tmpfs"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=4000", "none", str(point)], check=True)
        return point

    return make


def full(write: Callable[[], object]) -> bool:
    """Whether *write* fails for want of space."""
    try:
        write()
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        return True
    return False


def fill(path: Path) -> None:
    """Take every free byte of the filesystem of *path*, and what it keeps for names and small files."""

    def ballast(block: int) -> None:
        with (path / f"ballast{block}").open("wb", buffering=0) as file:
            while file.write(b"x" * block) == block:
                pass
            os.fsync(file.fileno())

    for block in (1 << 20, 4096, 512):
        full(lambda block=block: ballast(block))  # type: ignore[misc]  # mypy cannot infer the default's type
    names = (path / f"{i:0200}" for i in range(100_000))
    assert any(full(lambda name=name: name.write_bytes(b"x" * 100)) for name in names)  # type: ignore[misc]  # as above


def request(volume: str) -> VolumeRequest:
    """A request larger than the pool: promising more than there is, is allowed."""
    return VolumeRequest(id=volume, capacity_bytes=1 << 40)


@pytest.mark.parametrize("kind", ALL)
def test_life_of_a_volume(small_fs: MakeFs, open_pool: OpenPool, kind: Fs) -> None:
    """A pool on a fresh filesystem: volumes are made, counted as du does, trusted when clean, deleted and gone."""
    pool = open_pool(small_fs(kind))
    made = pool.provision(request("v1"))
    (made.data / "a" / "b").mkdir(parents=True)
    (made.data / "a" / "file").write_bytes(os.urandom(50_000))
    os.link(made.data / "a" / "file", made.data / "again")
    (made.data / "small").write_bytes(b"x")
    os.truncate(made.data / "small", 1 << 20)
    (made.data / "long").symlink_to("x" * 1000)
    for i in range(300):
        (made.data / "a" / "b" / f"{i:0100}").touch()
    os.sync()
    reports: list[ScanProgress] = []

    def counters() -> Ledger:
        return Ledger.open(made.ledger, made.data, limit_bytes=None, limit_inodes=None, progress=reports.append)

    first = counters()
    assert first.usage()[:2] == scan(made.data) == du(made.data)
    first.close()
    reports.clear()
    second = counters()
    assert (second.usage(), reports) == (first.usage(), [])
    second.close()
    assert pool.check() == []
    pool.purge(pool.trash("v1"))

    assert (pool.volumes(), pool.trashed(), os.listdir(pool.path / "trash")) == ([], [], [])
    assert pool.capacity().volumes == 0


@pytest.mark.parametrize("kind", ALL)
def test_full_pool(small_fs: MakeFs, open_pool: OpenPool, kind: Fs) -> None:
    """A pool without room for the directory says so in a sentence and is left whole; deleting there still works."""
    pool = open_pool(small_fs(kind))
    old = pool.provision(request("old"))
    fill(old.data)

    def provision_many() -> None:
        for i in range(200):
            pool.provision(request(f"new{i}"))

    with pytest.raises(NoSpaceError, match=r"^There is no space left in the pool .*\.$"):
        provision_many()
    assert os.listdir(pool.path / "tmp") == []
    assert pool.check() == []
    pool.purge(pool.trash("old"))

    assert pool.provision(request("new")).data.is_dir()


@pytest.fixture
def read_only(workdir: Path, small_fs: MakeFs) -> Iterator[Path]:
    """A directory on an ext4 filesystem, which the test makes read-only."""
    point = small_fs("ext4")
    yield point
    subprocess.run(["mount", "-o", "remount,rw", str(point)], check=True)


def test_became_read_only(read_only: Path, open_pool: OpenPool) -> None:
    """A pool that becomes read-only refuses every change in one sentence and still shows its volumes."""
    pool = open_pool(read_only)
    made = pool.provision(request("old"))
    subprocess.run(["mount", "-o", "remount,ro", str(read_only)], check=True)
    for change in (
        lambda: pool.provision(request("new")),
        lambda: pool.resize("old", 5, 5),
        lambda: pool.trash("old"),
    ):
        with pytest.raises(UnavailableError, match=r"^The pool .* is on a read-only filesystem, .*another pool\.$"):
            change()

    assert pool.volumes() == [made]
    assert pool.check() == []


@pytest.mark.parametrize("adopt", [False, True])
def test_opened_read_only(read_only: Path, adopt: bool) -> None:
    """A pool cannot be opened or made on a read-only filesystem, and the sentence says why."""
    if adopt:
        Pool.open(read_only, "p", create=True).close()
    subprocess.run(["mount", "-o", "remount,ro", str(read_only)], check=True)

    with pytest.raises(UnavailableError, match=r"^The pool .* is on a read-only filesystem, .*another pool\.$"):
        Pool.open(read_only, "p", create=True)


def test_read_only_bind_mount(workdir: Path) -> None:
    """A read-only bind mount of a writable directory is refused in the same way."""
    (workdir / "source").mkdir()
    (workdir / "point").mkdir()
    subprocess.run(["mount", "--bind", str(workdir / "source"), str(workdir / "point")], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(workdir / "point")], check=True)
    with pytest.raises(UnavailableError, match="read-only filesystem"):
        Pool.open(workdir / "point", "p", create=True)

    assert list((workdir / "source").iterdir()) == []


def test_nested_subvolume(small_fs: MakeFs, open_pool: OpenPool) -> None:
    """A btrfs subvolume inside a volume is another device: not counted, and deletion refuses to enter it."""
    pool = open_pool(small_fs("btrfs"))
    made = pool.provision(request("v1"))
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(made.data / "sub")], check=True)
    (made.data / "sub" / "file").write_bytes(b"x" * 100_000)
    os.sync()
    assert scan(made.data).inodes == 1
    entry = pool.trash("v1")

    with pytest.raises(Exception, match="on another device"):
        pool.purge(entry)
    assert (pool.trashed()[0].path / "purging" / "sub" / "file").exists()
