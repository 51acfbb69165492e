"""Pools on CephFS: volumes, quotas, snapshots, and what its clients may not do."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

import pytest

from agent.poolplace import Room
from fusevol.errors import ConflictError, ForbiddenError, UnavailableError
from fusevol.lease import Holder, Lease
from fusevol.pool import Pool, VolumeRequest
from fusevol.pool.drivers import Limits
from fusevol.pool.drivers.cephfs import CephFS
from fusevol.usage import Measured
from tests.pools.conftest import OpenPool
from tests.support import ceph
from tests.support.polling import eventually

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture
def pool(cephfs: Path, open_pool: OpenPool) -> Pool:
    """A new pool on CephFS."""
    return open_pool(cephfs / "pool")


def shared(volume: str) -> VolumeRequest:
    """A volume that several nodes may write to."""
    return VolumeRequest(id=volume, capacity_bytes=64 * MIB, inode_limit=1000, shared=True)


def own(volume: str) -> VolumeRequest:
    """A volume of one node."""
    return VolumeRequest(id=volume, capacity_bytes=64 * MIB, inode_limit=100)


def test_life_of_a_shared_volume(pool: Pool) -> None:
    """CephFS limits a volume that several nodes write to, counts it, grows it, and forgets it."""
    made = pool.provision(shared("v"))
    first = pool.usage("v")
    (made.data / "f").write_bytes(os.urandom(MIB))
    eventually(lambda: pool.usage("v").used_bytes == MIB, 30.0, what="CephFS has counted the file")
    used = pool.usage("v")
    pool.resize("v", 128 * MIB, None)
    grown = pool.usage("v")
    pool.purge(pool.trash("v"))

    assert (pool.driver.name, made.driver, made.quota) == ("cephfs", "cephfs", "kernel")
    assert first == Measured(0, 1, 64 * MIB, 1000)
    assert used == Measured(MIB, 2, 64 * MIB, 1000)
    assert grown == Measured(MIB, 2, 128 * MIB, None)
    assert pool.volumes() == []
    assert pool.trashed() == []


def test_a_shared_volume_stops_writers_late(pool: Pool) -> None:
    """CephFS's own quota stops a writer, with EDQUOT, not before the limit and not for ever after it."""
    made = pool.provision(shared("v"))
    written = 0

    def fill() -> None:
        nonlocal written
        with (made.data / "f").open("wb", buffering=0) as file:
            while written < 1024 * MIB:
                written += file.write(b"x" * MIB)

    with pytest.raises(OSError, match="quota") as refused:
        fill()

    assert refused.value.errno == errno.EDQUOT
    assert written >= 64 * MIB


def test_a_ledger_has_a_second_line(pool: Pool) -> None:
    """A volume of one node has a ledger, and CephFS's quota at twice its limits, which grow with it."""
    made = pool.provision(own("v"))
    first = CephFS(pool.path).usage(made.data, {})
    pool.resize("v", 100 * MIB, None)
    grown = CephFS(pool.path).usage(made.data, {})

    assert made.quota == "ledger"
    assert (first.limit_bytes, first.limit_inodes) == (128 * MIB, 200)
    assert (grown.limit_bytes, grown.limit_inodes) == (200 * MIB, None)


def test_a_lost_quota_is_found(pool: Pool) -> None:
    """A check of the pool tells of a quota that somebody has changed behind fusevol's back."""
    made = pool.provision(shared("v"))
    before = pool.check()
    os.setxattr(made.data, "ceph.quota.max_bytes", b"0")
    (finding,) = pool.check()

    assert before == []
    assert "resize the volume to its size" in finding.message


def test_a_clone_is_of_one_moment(pool: Pool) -> None:
    """What is copied while a writer goes on is what was there at one moment; nothing of the snapshot stays behind."""
    made = pool.provision(shared("v"))
    over = threading.Event()
    turns = []

    def write() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            for name in ("a", "b"):  # b never before a
                (made.data / f"{name}.new").write_text(str(turn))
                os.rename(made.data / f"{name}.new", made.data / name)
            turns.append(turn)

    # the copy takes long between the two files
    for i in range(300):
        (made.data / f"a{i:04}").write_bytes(b"x" * 10_000)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        eventually(lambda: len(turns) > 3, what="the writer writes")
        before = len(turns)
        pool.driver.clone(made.data, {}, pool.path / "tmp" / "clone", Limits(32 * MIB, None))
        during = len(turns) - before
    finally:
        over.set()
        writer.join()
    clone = pool.path / "tmp" / "clone"
    a, b = (int((clone / name).read_text()) for name in ("a", "b"))

    assert during > 3, "the writer did not write while the copy was made"
    assert a - b in {0, 1}
    assert len(list(clone.glob("a0*"))) == 300
    assert CephFS(pool.path).usage(clone, {}).limit_bytes == 32 * MIB
    assert os.listdir(made.data / ".snap") == []


def test_what_a_killed_copy_left_is_removed(pool: Pool) -> None:
    """A volume of which a killed copy has left a snapshot can be deleted; a snapshot of somebody else's stays."""
    made = pool.provision(own("v"))
    (made.data / "f").write_text("x")
    (made.data / ".snap" / "fusevol-0123").mkdir()
    pool.purge(pool.trash("v"))
    foreign = pool.provision(own("w"))
    (foreign.data / ".snap" / "by-hand").mkdir()
    entry = pool.trash("w")
    with pytest.raises(UnavailableError, match="not empty"):
        pool.purge(entry)
    (entry.path / "purging" / ".snap" / "by-hand").rmdir()
    pool.purge(entry)

    assert pool.trashed() == []


def test_without_snapshots_the_files_are_copied(ceph_cluster: ceph.Cluster, pool: Pool) -> None:
    """Where the cluster allows no snapshots a clone is made all the same."""
    made = pool.provision(own("v"))
    (made.data / "f").write_text("x")
    ceph_cluster.command("fs", "set", ceph.FILESYSTEM, "allow_new_snaps", "false")
    try:
        refused = eventually(lambda: _refuses_snapshots(made.data), what="the MDS has heard of it")
        pool.driver.clone(made.data, {}, pool.path / "tmp" / "clone", Limits(None, None))
    finally:
        ceph_cluster.command("fs", "set", ceph.FILESYSTEM, "allow_new_snaps", "true")
        eventually(lambda: not _refuses_snapshots(made.data), what="the MDS has heard of it")

    assert refused
    assert (pool.path / "tmp" / "clone" / "f").read_text() == "x"


def _refuses_snapshots(data: Path) -> bool:
    probe = data / ".snap" / f"probe{time.monotonic_ns()}"
    try:
        probe.mkdir()
    except PermissionError:
        return True
    probe.rmdir()
    return False


def test_a_client_without_p(ceph_cluster: ceph.Cluster, cephfs: Path, open_pool: OpenPool, workdir: Path) -> None:
    """A Ceph client that may set no quotas can make volumes with a ledger; for others it is told what it lacks."""
    top = cephfs.parent / ceph.RESTRICTED.strip("/")
    top.mkdir(exist_ok=True)
    with ceph_cluster.mounted(workdir / "restricted", client="restricted") as point:
        pool = open_pool(point / ceph.RESTRICTED.strip("/") / cephfs.name)
        made = pool.provision(own("v"))
        with pytest.raises(ForbiddenError) as refused:
            pool.provision(shared("w"))
        pool.purge(pool.trash("v"))
        pool.close()

    assert (made.driver, made.quota) == ("cephfs", "ledger")
    assert "`p`" in refused.value.message
    assert "allow rwp" in refused.value.message


def test_room(pool: Pool) -> None:
    """Of inodes CephFS has no limit: that is no count below zero."""
    found = Room.of(os.statvfs(pool.path))

    assert os.statvfs(pool.path).f_ffree < 0
    assert (found.inodes, found.available_inodes, found.used_inodes) == (0, 0, 0)


def test_a_deletion_that_was_stopped_for_longer_than_its_lease(cephfs: Path) -> None:
    """Another node has taken the volume between the lease and the rename: the deleter gives it back."""
    place = cephfs / "pool"
    taken: list[int] = []

    def stopped(step: str) -> None:
        if step == "trash: note written":
            lease = Lease(place / "volumes" / "v1")
            state = lease.take(lease.look(), Holder("two", "b" * 16, 30.0))  # as after the end of the deleter's
            assert state is not None
            taken.append(state.epoch)

    one = Holder("one", "a" * 16, 30.0)
    with contextlib.closing(Pool.open(place, "p", create=True, holder=one, step=stopped)) as pool:
        volume = pool.provision(own("v1"))
        (volume.data / "file").write_bytes(b"of the other node")
        with pytest.raises(ConflictError, match="v1 was taken by another node meanwhile"):
            pool.trash("v1")

        assert (volume.data / "file").read_bytes() == b"of the other node"
        assert (pool.trashed(), [v.id for v in pool.volumes()]) == ([], ["v1"])
        assert Lease(place / "volumes" / "v1").renew(taken[0]).epoch == taken[0]
        assert sorted(os.listdir(place / "volumes" / "v1")) == ["data", "lease", "volume.json"]
