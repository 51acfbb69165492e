"""One table of promises, kept on every filesystem that a pool can be on: through a mount, with its real quota."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusevol.errors import AlreadyExistsError, InvalidError, NoSpaceError
from fusevol.pool import Pool, Volume, VolumeRequest
from tests.conftest import LoopFs, StartServer
from tests.pools.backends import BACKENDS, Backend
from tests.pools.conftest import OpenPool
from tests.support import transports
from tests.support.polling import eventually
from tests.support.servers import VolumeServer

pytestmark = pytest.mark.root
MIB = 1 << 20
LIMIT = 32 * MIB
FULL = {errno.ENOSPC, errno.EDQUOT}
Serve = Callable[[Volume], VolumeServer]


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each entry of the table that this machine can run."""
    found: Backend = request.param
    if why := found.missing():
        pytest.skip(why)
    return found


@pytest.fixture
def place(request: pytest.FixtureRequest, backend: Backend, loop_fs: LoopFs, workdir: Path) -> Path:
    """A directory for a pool on that filesystem."""
    if backend.fixture:
        found: Path = request.getfixturevalue(backend.fixture)
        return found
    return backend.make(loop_fs, workdir)


@pytest.fixture
def made_pool(place: Path, open_pool: OpenPool) -> Pool:
    """A new pool there."""
    return open_pool(place)


@pytest.fixture
def serve(volume_server: StartServer) -> Iterator[Serve]:
    """Mounts a volume as the agent does."""

    def start(volume: Volume) -> VolumeServer:
        ledger = volume.quota == "ledger"
        fields: dict[str, Any] = {
            "quota": volume.quota,
            "meter": volume.driver if volume.quota == "kernel" else None,
            "ledger": str(volume.ledger) if ledger else None,
            "limit_bytes": volume.capacity_bytes if ledger else None,
            "limit_inodes": volume.inode_limit if ledger else None,
        }
        return volume_server(volume.data, **fields)

    return start


def request(volume: str = "v1", capacity: int | None = LIMIT, **fields: Any) -> VolumeRequest:
    """A request of 32 MiB."""
    return VolumeRequest(id=volume, capacity_bytes=capacity, **fields)


def write_until_full(fd: int, size: int = 65536) -> int:
    """Append to *fd* until no byte more is taken; returns how many were. What is written is durable then."""
    written = 0
    while True:
        try:
            written += os.write(fd, os.urandom(size))
        except OSError as e:
            if e.errno not in FULL:
                raise
            if size == 4096:
                break
            size = 4096
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in FULL:
            raise
    return written


def resize(pool: Pool, server: VolumeServer, volume: Volume, capacity: int, inodes: int | None = None) -> Volume:
    """Change the limits of a mounted volume as the agent does."""
    changed = pool.resize(volume.id, capacity, inodes)
    if volume.quota == "ledger":
        assert server.call("set-limits", limit_bytes=capacity, limit_inodes=inodes)["ok"]
    return changed


def test_probed(backend: Backend, made_pool: Pool) -> None:
    """The driver that fits is found; it says who keeps which limit and how it clones, and the records agree."""
    found = made_pool.driver.capabilities()
    by_size = made_pool.provision(request("size"))
    by_count = made_pool.provision(request("count", inode_limit=100))
    unlimited = made_pool.provision(request("unlimited", capacity=None))

    assert (made_pool.driver.name, found.snapshot, found.clone) == (backend.driver, backend.snapshot, backend.snapshot)
    assert (found.quota_bytes, found.quota_inodes) == (backend.enforcer == "kernel", backend.inodes == "kernel")
    assert (by_size.quota, by_count.quota, unlimited.quota) == (backend.enforcer, backend.inodes, "none")
    assert found.granularity == (backend.early if backend.enforcer == "kernel" else 0)
    assert {v.driver for v in made_pool.volumes()} == {backend.driver}
    assert made_pool.check() == []


def test_limit(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """A writer is stopped at the limit and never after it; what it wrote is whole, and there is room after a delete."""
    volume = made_pool.provision(request())
    server = serve(volume)
    path = server.mountpoint / "file"
    with path.open("wb", buffering=0) as file:
        written = write_until_full(file.fileno())
    os.sync()
    used = server.settled()["used_bytes"]
    assert path.stat().st_size == written
    assert len(path.read_bytes()) == written
    assert 0 <= LIMIT - written <= backend.early
    assert used <= LIMIT
    path.unlink()

    def room() -> bool:
        try:
            path.write_bytes(bytes(8 * MIB))
        except OSError as e:
            if e.errno not in FULL:
                raise
            return False
        return True

    assert eventually(room, 20)


def test_size_shown(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """The mount shows the limit as its size, what is used as used, and passes data by the server only for a ledger."""
    volume = made_pool.provision(request())
    server = serve(volume)
    (server.mountpoint / "file").write_bytes(os.urandom(8 * MIB))
    used = server.settled()["used_bytes"]
    st = os.statvfs(server.mountpoint)
    status = server.call("status")

    assert st.f_blocks * st.f_frsize == LIMIT
    assert (st.f_blocks - st.f_bfree) * st.f_frsize == pytest.approx(used, abs=MIB)
    assert 8 * MIB <= used <= 8 * MIB + backend.early
    passthrough = backend.enforcer == "kernel" and transports.passthrough()
    assert (status["quota"], status["passthrough"]) == (backend.enforcer, passthrough)


def test_usage(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """What the server tells is what the filesystem's own tools say, to the byte; so is what is said of many at once."""
    volume = made_pool.provision(request())
    other = made_pool.provision(request("v2"))
    server = serve(volume)
    top = server.mountpoint
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_bytes(os.urandom(3 * MIB + 7))
    os.link(top / "a" / "file", top / "again")
    for i in range(200):
        (top / "a" / "b" / f"{i:0100}").write_bytes(b"x" * i)
    (top / "a" / "file2").write_bytes(os.urandom(MIB))
    (top / "a" / "file2").unlink()
    os.sync()
    said = backend.used(volume.data)

    assert server.settled()["used_bytes"] == said
    kernels = ["v1", "v2"] if volume.quota == "kernel" else []
    many = made_pool.usages(["v1", "v2", "none"])
    assert many == {name: made_pool.usage(name) for name in kernels}
    if kernels:
        assert (many["v1"].used_bytes, many["v2"].used_bytes) == (said, backend.used(other.data))


def test_growth_while_writing(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """A volume grows while a program writes: it goes on in the same open file, up to the new limit."""
    volume = made_pool.provision(request(capacity=16 * MIB))
    server = serve(volume)
    full, grown = threading.Event(), threading.Event()
    written: list[int] = []
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with (server.mountpoint / "file").open("wb", buffering=0) as file:
                written.append(write_until_full(file.fileno()))
                full.set()
                assert grown.wait(20)
                written.append(write_until_full(file.fileno()))
        except BaseException as e:  # noqa: BLE001  # told by the test
            failed.append(e)
            full.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert full.wait(60)
        changed = resize(made_pool, server, volume, LIMIT)
    finally:
        grown.set()
        writer.join(60)

    assert failed == []
    assert 0 <= 16 * MIB - written[0] <= backend.early
    assert 0 <= LIMIT - sum(written) <= backend.early
    assert (changed.capacity_bytes, made_pool.volume("v1")) == (LIMIT, changed)
    assert server.call("usage")["usage"]["limit_bytes"] == LIMIT
    assert made_pool.check() == []


def test_server_sets_limits(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """The control socket changes a limit, whoever keeps it, and refuses one that cannot be kept."""
    server = serve(made_pool.provision(request()))

    assert server.call("set-limits", limit_bytes=64 * MIB)["usage"]["limit_bytes"] == 64 * MIB
    st = os.statvfs(server.mountpoint)
    assert st.f_blocks * st.f_frsize == 64 * MIB
    refused = server.call("set-limits", limit_inodes=50)
    assert refused["ok"] == (backend.enforcer == "ledger" or backend.inodes == "kernel")
    assert refused["ok"] or refused["errno"] == errno.EOPNOTSUPP


def test_inode_limit(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """A limit of inodes is kept exactly, the root directory counted."""
    volume = made_pool.provision(request(inode_limit=20))
    server = serve(volume)
    for i in range(19):
        (server.mountpoint / f"f{i}").touch()
    with pytest.raises(OSError, match=r"No space left|quota exceeded") as caught:
        (server.mountpoint / "more").touch()

    assert caught.value.errno in FULL
    st = os.statvfs(server.mountpoint)
    assert (st.f_files, st.f_ffree) == (20, 0)


def test_inode_limit_later(backend: Backend, made_pool: Pool) -> None:
    """A volume whose limit the kernel keeps gets no limit of inodes that it cannot keep: one sentence, no change."""
    volume = made_pool.provision(request())
    if backend.enforcer == backend.inodes:
        assert made_pool.resize("v1", LIMIT, 50).inode_limit == 50
        return

    with pytest.raises(InvalidError, match=r"cannot get 33554432 bytes and 50 inodes: its filesystem .*\.$"):
        made_pool.resize("v1", LIMIT, 50)
    assert made_pool.volume("v1") == volume


def test_snapshot_and_restore(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """A snapshot keeps what was written when it was taken; a volume made of it has that, and a limit of its own."""
    volume = made_pool.provision(request())
    server = serve(volume)
    (server.mountpoint / "dir").mkdir()
    (server.mountpoint / "dir" / "file").write_bytes(b"before" * 1000)
    os.chmod(server.mountpoint / "dir" / "file", 0o640)
    if backend.snapshot != "instant":
        server.umount()
    taken = made_pool.snapshot("v1", "s1", {"why": "test"})
    again = made_pool.snapshot("v1", "s1")
    (volume.data / "dir" / "file").write_bytes(
        b"after " * 1000
    )  # as many blocks, so that a ledger that ended stays true
    os.sync()
    restored = made_pool.provision(request("v2", capacity=48 * MIB), source=taken)
    other = serve(restored)

    assert (taken, again) == (made_pool.find_snapshot("s1"), taken)
    assert made_pool.snapshots() == [taken]
    assert (taken.labels, taken.capacity_bytes) == ({"why": "test", "snapshot-of": "v1"}, LIMIT)
    assert (other.mountpoint / "dir" / "file").read_bytes() == b"before" * 1000
    assert (other.mountpoint / "dir" / "file").stat().st_mode & 0o7777 == 0o640
    assert (volume.data / "dir" / "file").read_bytes() == b"after " * 1000
    assert restored.quota == backend.enforcer
    st = os.statvfs(other.mountpoint)
    assert st.f_blocks * st.f_frsize == 48 * MIB
    with pytest.raises(AlreadyExistsError, match="of volume v1"):
        made_pool.snapshot("v2", "s1")
    with pytest.raises(InvalidError, match="ask for at least as much"):
        made_pool.provision(request("v3", capacity=MIB), source=taken)
    assert made_pool.check() == []


def test_clone_is_independent(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """A clone has its source's data, mode and owner and a limit; what either changes or deletes the other keeps."""
    volume = made_pool.provision(request(mode=0o1770))
    os.chown(volume.data, 7, 8)
    (volume.data / "file").write_bytes(b"x" * MIB)
    (volume.data / "hole").touch()
    os.truncate(volume.data / "hole", 1 << 30 if backend.holes else MIB)
    clone = made_pool.provision(request("v2"), source=volume)
    st = clone.data.stat()
    (volume.data / "file").write_bytes(b"source")
    (clone.data / "own").write_bytes(b"clone")
    made_pool.purge(made_pool.trash("v1"))
    server = serve(clone)
    with (server.mountpoint / "more").open("wb", buffering=0) as file:
        written = write_until_full(file.fileno())
    os.sync()

    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (7, 8, 0o1770)
    assert (clone.data / "file").read_bytes() == b"x" * MIB
    assert (clone.data / "own").read_bytes() == b"clone"
    hole = 0 if backend.holes else MIB
    assert (clone.data / "hole").stat().st_blocks * 512 == hole
    counted = written + hole + (MIB if backend.counts_shared else 0)
    assert 0 <= LIMIT - counted <= backend.early
    assert made_pool.check() == []


def test_delete_frees_space(backend: Backend, made_pool: Pool, serve: Serve) -> None:
    """A volume that is purged gives back its space, and so does a snapshot; its quota is gone with it."""
    free = made_pool.capacity().available
    volume = made_pool.provision(request())
    (volume.data / "dir").mkdir()
    (volume.data / "dir" / "file").write_bytes(os.urandom(24 * MIB))
    os.sync()
    made_pool.snapshot("v1", "s1")
    made_pool.purge(made_pool.trash("v1"))
    assert not volume.data.exists()
    if backend.snapshot != "copy":
        assert free - made_pool.capacity().available >= 20 * MIB
    made_pool.purge(made_pool.delete_snapshot("s1"))
    os.sync()

    # not less than before; a cluster may still be giving back what an earlier test deleted, so it may be more
    assert eventually(lambda: free - made_pool.capacity().available < 4 * MIB, 60)
    assert (made_pool.volumes(), made_pool.snapshots(), made_pool.trashed()) == ([], [], [])
    assert os.listdir(made_pool.path / "trash") == []


def test_trash_and_back(made_pool: Pool, serve: Serve) -> None:
    """A volume comes back from the trash with its data and its limit; a deleted snapshot is no volume."""
    volume = made_pool.provision(request())
    (volume.data / "file").write_bytes(b"x")
    made_pool.snapshot("v1", "s1")
    restored = made_pool.restore(made_pool.trash("v1"))
    st = os.statvfs(serve(restored).mountpoint)
    thrown = made_pool.delete_snapshot("s1")

    assert (restored, (restored.data / "file").read_bytes()) == (volume, b"x")
    assert st.f_blocks * st.f_frsize == LIMIT
    with pytest.raises(Exception, match="is a deleted snapshot"):
        made_pool.restore(thrown)


def test_restart(backend: Backend, place: Path, open_pool: OpenPool, serve: Serve) -> None:
    """A pool that is opened again, by whatever process, has its driver, its volumes and their limits."""
    first = open_pool(place)
    volume = first.provision(request())
    server = serve(volume)
    (server.mountpoint / "file").write_bytes(os.urandom(8 * MIB))
    used = server.settled()["used_bytes"]
    assert server.umount() == 0
    first.close()
    second = open_pool(place)
    again = serve(second.volume("v1"))
    with (again.mountpoint / "more").open("wb", buffering=0) as file:
        written = write_until_full(file.fileno())

    assert (second.driver.name, second.volume("v1"), second.check()) == (backend.driver, volume, [])
    assert 0 <= LIMIT - used - written <= backend.early


def test_overcommit(place: Path, open_pool: OpenPool) -> None:
    """A pool promises no more than its ratio allows, says why, and knows after a restart what it has promised."""
    pool = open_pool(place, overcommit=2.0)
    half = eventually(lambda: pool.capacity().total, 30.0, what="a new cluster knows its size")
    some = half // 8  # and CephFS's varies with what else is in it
    pool.provision(request("v1", capacity=half))
    pool.provision(request("v1", capacity=half))
    with pytest.raises(
        NoSpaceError, match=r"^The pool p has promised .* \(overcommit 2\), so there is no room for .*\.$"
    ):
        pool.provision(request("v2", capacity=half + some))
    pool.provision(request("v2", capacity=half - some))
    pool.provision(request("v3", capacity=None))
    with pytest.raises(NoSpaceError, match="has promised"):
        pool.resize("v2", half + some, None)
    pool.resize("v2", half - some // 2, None)
    pool.close()
    again = open_pool(place, overcommit=2.0)
    with pytest.raises(NoSpaceError, match="has promised"):
        again.provision(request("v4", capacity=some))
    thrown = again.trash("v1")
    again.provision(request("v4", capacity=half - some))
    with pytest.raises(NoSpaceError, match="has promised"):
        again.restore(thrown)

    assert [v.id for v in again.volumes()] == ["v2", "v3", "v4"]
    assert [e.volume for e in again.trashed()] == ["v1"]
