"""What only btrfs has: quotas that can be switched off, quota groups that must go, pools that become subvolumes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fusevol import btrfs
from fusevol.errors import InvalidError
from fusevol.pool import VolumeRequest
from tests.conftest import LoopFs, StartServer
from tests.pools import test_crash as crashes
from tests.pools.conftest import OpenPool

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture(params=["full", "simple"])
def top(request: pytest.FixtureRequest, loop_fs: LoopFs) -> Path:
    """A btrfs with quotas."""
    point = loop_fs("btrfs", 256 * MIB)
    fd = os.open(point, os.O_RDONLY)
    try:
        btrfs.enable_quota(fd, simple=request.param == "simple")
    finally:
        os.close(fd)
    return point


def groups(top: Path) -> set[str]:
    """The quota groups of subvolumes that were made (their numbers begin at 256)."""
    fd = os.open(top, os.O_RDONLY)
    try:
        names = os.listdir(f"{btrfs.SYSFS}/{btrfs.filesystem(fd)}/qgroups")
    finally:
        os.close(fd)
    return {name for name in names if name.startswith("0_") and int(name[2:]) >= btrfs.ROOT_INODE}


def request(volume: str = "v1") -> VolumeRequest:
    """A request of 16 MiB."""
    return VolumeRequest(id=volume, capacity_bytes=16 * MIB)


def test_quota_group_goes(top: Path, open_pool: OpenPool) -> None:
    """A volume and a snapshot have a quota group each, and none is left when they are purged."""
    pool = open_pool(top)
    volume = pool.provision(request())
    (volume.data / "file").write_bytes(os.urandom(MIB))
    pool.snapshot("v1", "s1")
    assert len(groups(top)) == 2
    pool.purge(pool.delete_snapshot("s1"))
    pool.purge(pool.trash("v1"))

    assert groups(top) == set()


def test_limits_outlive_the_source_of_a_clone(top: Path, open_pool: OpenPool) -> None:
    """Purging volumes that others are clones of leaves the counts right, without which btrfs keeps no limit at all."""
    pool = open_pool(top)
    for number in range(6):
        volume = pool.provision(request(f"v{number}"))
        (volume.data / "file").write_bytes(os.urandom(MIB))
        clone = pool.provision(request(f"c{number}"), source=volume)
        (volume.data / "file").write_bytes(b"source")
        (clone.data / "own").write_bytes(b"clone")
        pool.purge(pool.trash(volume.id))
    fd = os.open(top, os.O_RDONLY)
    try:
        state = btrfs.quota_state(btrfs.filesystem(fd) or "")
    finally:
        os.close(fd)

    assert state.consistent
    assert len(pool.volumes()) == 6


def test_switched_off(top: Path, open_pool: OpenPool, volume_server: StartServer) -> None:
    """Quotas that somebody switches off are found: by check, by a new mount, by new volumes; a mount goes on."""
    pool = open_pool(top)
    volume = pool.provision(request())
    server = volume_server(volume.data, quota="kernel", meter="btrfs")
    subprocess.run(["btrfs", "quota", "disable", str(top)], check=True, timeout=20)
    (finding,) = pool.check()
    late = volume_server(volume.data, start=False, quota="kernel", meter="btrfs")
    said = late.launch()
    st = os.statvfs(server.mountpoint)

    assert (finding.severity, finding.subject) == ("error", "volumes/v1")
    assert "switch them on (`btrfs quota enable" in finding.message
    assert said.startswith("ERROR The filesystem of ")
    assert st.f_blocks * st.f_frsize == 256 * MIB
    assert server.call("usage")["usage"]["used_bytes"] is None
    assert server.call("status")["ok"]
    assert pool.provision(request("v2")).quota == "ledger"


@pytest.mark.parametrize("action", ["provision", "purge"])
def test_killed_at_every_step(loop_fs: LoopFs, action: str) -> None:
    """Subvolumes that were half made or half deleted at a kill are cleared away, and the same again succeeds."""
    top = loop_fs("btrfs", 256 * MIB)
    for number, boundary in enumerate(crashes.steps(top / "uninterrupted", action)):
        path = top / f"p{number}"
        crashes.prepare(path, action)
        crashes.crash(path, action, boundary)
        assert crashes.whole(path), boundary
        if crashes.names(path) != (["volumes/v1"] if action == "provision" else []):
            crashes.act(path, action, lambda _: None)

        assert crashes.names(path) == (["volumes/v1"] if action == "provision" else []), boundary
        left = subprocess.run(["btrfs", "subvolume", "list", str(top)], check=True, capture_output=True, text=True)
        assert left.stdout.count(f" path {path.name}/") == (1 if action == "provision" else 0), boundary


def test_becomes_one_of_subvolumes(top: Path, open_pool: OpenPool) -> None:
    """A plain pool that gets the driver btrfs keeps its volumes as they are, makes new ones better, deletes both."""
    plain = open_pool(top, driver="plain")
    old = plain.provision(request("old"))
    plain.close()
    pool = open_pool(top, driver="btrfs")
    new = pool.provision(request("new"))
    copied = pool.provision(request("copied"), source=old)

    assert [(v.id, v.driver, v.quota) for v in pool.volumes()] == [
        ("copied", "btrfs", "kernel"),
        ("new", "btrfs", "kernel"),
        ("old", "plain", "ledger"),
    ]
    assert (old.data.stat().st_ino == btrfs.ROOT_INODE, new.data.stat().st_ino) == (False, btrfs.ROOT_INODE)
    assert copied.data.is_dir()
    assert pool.check() == []
    for volume in ("old", "new", "copied"):
        pool.purge(pool.trash(volume))
    assert groups(top) == set()
    pool.close()
    assert open_pool(top).driver.name == "btrfs"


def test_driver_that_does_not_fit(loop_fs: LoopFs, open_pool: OpenPool) -> None:
    """A driver is refused where its filesystem is not, with the one that would do; an unknown one as well."""
    top = loop_fs("ext4", 16 * MIB)
    with pytest.raises(InvalidError, match=r"cannot have the driver btrfs .* set its driver to plain\.$"):
        open_pool(top, driver="btrfs")
    with pytest.raises(InvalidError, match='There is no pool driver "zfs": choose one of'):
        open_pool(top, driver="zfs")

    assert open_pool(top).driver.name == "plain"
