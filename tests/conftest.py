"""Fixtures that all tests share. Everything that they make is gone after the test, also when it failed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from fusevol.transport.kernel import parameter
from tests.support import ceph
from tests.support.agent import Agent
from tests.support.devices import Kind, abort_all, make_loop_fs, tear_down
from tests.support.logs import LogCheck
from tests.support.servers import VolumeServer

_LONGER = {"FUSEVOL_STRESS_SECONDS": 1, "FUSEVOL_KILLS": 5, "FUSEVOL_UPGRADES": 20}
"""What makes tests longer that are asked for by hand, and by how many seconds for each."""
RESCUE = 400.0 + sum(seconds * float(os.environ.get(name, "0")) for name, seconds in _LONGER.items())
"""Seconds after which the mounts of a test are aborted; no test takes half as long."""


def _terminated(_number: int, _frame: object) -> None:
    """What a time limit around pytest sends is an interrupt like that of the keyboard: fixtures end what they began."""
    raise KeyboardInterrupt


def pytest_configure(config: pytest.Config) -> None:
    """Announce the markers of this file, and take a time limit's signal."""
    signal.signal(signal.SIGTERM, _terminated)
    config.addinivalue_line(
        "markers", "expect_log(*patterns): log records of WARNING and above that belong to the test"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``root`` are skipped for others."""
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root: it mounts"))


@pytest.fixture(autouse=True)
def io_uring_off() -> Iterator[None]:
    """FUSE over io_uring is off for the machine unless the test switches it on; afterwards it is as before.

    Kills of servers are promised to cost no system call on /dev/fuse only, and memory is measured there.
    """
    try:
        before = parameter.PARAMETER.read_text()
        if before != "N\n":
            parameter.PARAMETER.write_text("N")
    except OSError:  # this kernel has none, or an ordinary user tests
        yield
        return
    yield
    if parameter.PARAMETER.read_text() != before:
        parameter.PARAMETER.write_text(before)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The umask is as before afterwards: a filesystem leaves its caller's with the thread that carries requests out."""
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def logs(request: pytest.FixtureRequest) -> Iterator[LogCheck]:
    """The log check: the test fails on a record that it did not name by ``expect_log`` or ``logs.expect``."""
    check = LogCheck()
    for marker in request.node.iter_markers("expect_log"):
        check.expect(*marker.args)
    root = logging.getLogger()
    root.addHandler(check)
    try:
        yield check
    finally:
        root.removeHandler(check)
    unexpected = check.unexpected()
    if unexpected:
        pytest.fail("unexpected log records:\n" + "\n".join(unexpected), pytrace=False)


@pytest.fixture
def workdir(logs: LogCheck) -> Iterator[Path]:
    """An empty directory with a short path (unix sockets end at 107 bytes). Mounts below it are ended with the test.

    A test that hangs in one of them gets an error after a while: whatever it waits for, it does not wait for ever.
    """
    path = Path(tempfile.mkdtemp(prefix="t"))
    rescue = threading.Timer(RESCUE, abort_all, [path])
    rescue.daemon = True
    rescue.start()
    try:
        yield path
    finally:
        rescue.cancel()
        tear_down(path)
        logs.gather()
        shutil.rmtree(path)


class LoopFs(Protocol):
    """Makes a filesystem on a loop device; see :func:`loop_fs`."""

    def __call__(self, kind: Kind = "xfs", size: int = 512 << 20) -> Path: ...


@pytest.fixture
def loop_fs(workdir: Path) -> LoopFs:
    """A factory: ``loop_fs("xfs"|"ext4"|"btrfs", size)`` mounts a new filesystem and returns its mount point."""

    def make(kind: Kind = "xfs", size: int = 512 << 20) -> Path:
        return make_loop_fs(workdir, kind, size)

    return make


@pytest.fixture(scope="session")
def ceph_cluster() -> Iterator[ceph.Cluster]:
    """A real Ceph cluster with a CephFS in it, the same one for all tests; whoever harms it heals it."""
    reason = ceph.why_not()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="ceph"))
    with ceph.cluster(directory) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def cephfs(ceph_cluster: ceph.Cluster, workdir: Path) -> Iterator[Path]:
    """A new, empty directory of a mounted CephFS, as its administrator sees it."""
    with ceph_cluster.mounted(workdir / "cephfs") as point:
        yield Path(tempfile.mkdtemp(dir=point))


class StartServer(Protocol):
    """Starts a volume server; see :func:`volume_server`."""

    def __call__(self, source: Path | None = None, *, start: bool = True, **fields: Any) -> VolumeServer: ...


@pytest.fixture
def volume_server(workdir: Path, logs: LogCheck) -> Iterator[StartServer]:
    """A factory for mounted volumes: ``volume_server(source, quota="ledger", limit_bytes=…)``; all fields of MountSpec.

    ``start=False`` prepares it only; ``deadline=`` seconds until the connection is aborted.
    """
    from fusevol.server.spec import MountSpec

    servers: list[VolumeServer] = []
    own = {"deadline", "module", "command"}

    def make(source: Path | None = None, *, start: bool = True, **fields: Any) -> VolumeServer:
        name = f"m{len(servers)}"
        if source is None:
            source = workdir / f"{name}.src"
            source.mkdir()
        if fields.get("quota") == "ledger":
            fields.setdefault("ledger", str(workdir / f"{name}.ledger"))
        point = workdir / name
        if "mountpoint" not in fields:
            point.mkdir()
        base = {
            "mount_id": name,
            "source": str(source),
            "mountpoint": str(point),
            "control": str(workdir / f"{name}.sock"),
            "log": str(workdir / f"{name}.log"),
        }
        spec = MountSpec(**(base | {k: v for k, v in fields.items() if k not in own}))
        server = VolumeServer(spec, workdir, logs, **{k: v for k, v in fields.items() if k in own})
        servers.append(server)
        return server.start() if start else server

    try:
        yield make
    finally:
        for server in reversed(servers):
            server.close()


@pytest.fixture
def mounted(volume_server: StartServer) -> VolumeServer:
    """A volume without a quota, served by a real volume server process: ``.mountpoint``, ``.source``, ``.call(op)``."""
    return volume_server()


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> Iterator[Agent]:
    """A running agent with nothing configured."""
    running = Agent(workdir, logs)
    try:
        yield running.start()
    finally:
        running.close()
