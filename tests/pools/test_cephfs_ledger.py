"""The ledger on CephFS: exact, where CephFS's own quota is late."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.support.servers import VolumeServer

pytestmark = pytest.mark.root
MIB = 1 << 20
LIMIT = 16 * MIB


@pytest.fixture
def limited(cephfs: Path, volume_server: StartServer) -> VolumeServer:
    """A volume of 16 MiB on CephFS with a ledger."""
    return volume_server(cephfs, quota="ledger", limit_bytes=LIMIT, limit_inodes=100)


def used(volume: VolumeServer) -> int:
    """Bytes, as the ledger counts."""
    return int(volume.call("usage")["usage"]["used_bytes"])


def du(path: Path) -> int:
    """Bytes, as others count."""
    done = subprocess.run(["du", "-s", "-B1", str(path)], check=True, capture_output=True, text=True, timeout=60)
    return int(done.stdout.split()[0])


def fill(path: Path, block: int) -> int:
    """Write *path* until there is no space left; how much that was."""
    written = 0
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                written += file.write(b"x" * block)
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
                break
    return written


@pytest.mark.parametrize("depth", [0, 6])
def test_many_writers_stop_at_the_byte(limited: VolumeServer, cephfs: Path, depth: int) -> None:
    """Eight writers, however deep they are in the tree (CephFS alone let them write elevenfold), fill it exactly."""
    deep = limited.mountpoint.joinpath(*["d"] * depth)
    deep.mkdir(parents=True, exist_ok=True)
    writers = [threading.Thread(target=fill, args=(deep / f"f{i}", 65536)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    # files end at bytes, and are charged in sectors
    assert LIMIT - 8 * 512 < used(limited) <= LIMIT
    assert used(limited) == du(cephfs)


def test_space_is_free_at_once(limited: VolumeServer, cephfs: Path) -> None:
    """What was deleted can be written again at once, whenever CephFS comes to know of it, ten times over."""
    deep = limited.mountpoint / "a" / "b" / "c"
    deep.mkdir(parents=True)
    sizes = []
    for i in range(10):
        sizes.append(fill(deep / f"f{i}", MIB))
        (deep / f"f{i}").unlink()

    assert sizes == [LIMIT - 4 * 512] * 10  # four directories


def test_holes_are_charged(limited: VolumeServer, cephfs: Path) -> None:
    """A hole counts as CephFS counts it, whether a truncation, a write or an allocation has made it."""
    path = limited.mountpoint / "f"
    path.touch()
    empty = used(limited)
    refusals = []
    with path.open("r+b", buffering=0) as file:
        for grow in (
            lambda: os.ftruncate(file.fileno(), LIMIT + 1),
            lambda: os.pwrite(file.fileno(), b"x", LIMIT),
            lambda: os.posix_fallocate(file.fileno(), 0, LIMIT + 1),
        ):
            with pytest.raises(OSError, match="No space") as refused:
                grow()
            refusals.append((refused.value.errno, used(limited)))
        os.ftruncate(file.fileno(), 3 * MIB)
        grown = used(limited)
        os.ftruncate(file.fileno(), MIB)
        shrunk = used(limited)
        os.pwrite(file.fileno(), b"x", 2 * MIB - 1)

    assert refusals == [(errno.ENOSPC, empty)] * 3
    assert (grown - empty, shrunk - empty, used(limited) - empty) == (3 * MIB, MIB, 2 * MIB)
    assert used(limited) == du(cephfs)


def test_a_filesystem_without_acls(limited: VolumeServer, cephfs: Path) -> None:
    """Where the backing store has no ACLs (ceph-fuse by default), others than the owner use a directory by its mode."""
    (limited.mountpoint / "d").mkdir()
    os.chown(limited.mountpoint / "d", 7, 8)
    (limited.mountpoint / "d" / "f").write_text("x")
    with pytest.raises(OSError, match="not supported") as unsupported:
        os.getxattr(cephfs, "system.posix_acl_access")
    with pytest.raises(OSError, match="No data") as absent:
        os.getxattr(limited.mountpoint / "d", "system.posix_acl_access")

    assert (unsupported.value.errno, absent.value.errno) == (errno.EOPNOTSUPP, errno.ENODATA)
    assert (cephfs / "d" / "f").read_text() == "x"


def test_counters_outlive_a_kill(limited: VolumeServer, cephfs: Path) -> None:
    """A server that is started on what an earlier one has left counts what is there."""
    fill(limited.mountpoint / "f", MIB)
    os.truncate(limited.mountpoint / "f", 5 * MIB + 1)
    limited.kill()
    limited.start()

    assert used(limited) == du(cephfs) == 5 * MIB + 2 * 512
