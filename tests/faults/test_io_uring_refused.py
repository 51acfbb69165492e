"""io_uring is agreed on with the kernel, and then refused: requests come over /dev/fuse, and nobody hangs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.server.client import call
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from fusevol.transport.kernel import uring
from tests.conftest import StartServer
from tests.support import transports
from tests.support.logs import LogCheck
from tests.support.processes import descriptors
from tests.support.servers import VolumeServer
from tests.support.takeover import Holder

pytestmark = pytest.mark.root

SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")
REFUSALS = Path(__file__).parents[1] / "support" / "refusals.py"
WARNING = "requests come over /dev/fuse, since the system refuses io_uring"


def _refused(start: StartServer, what: str) -> VolumeServer:
    """A volume whose server meets the refusal *what*."""
    command = [sys.executable, str(REFUSALS), what]
    return start(command=command, deadline=20.0, cache="none", **transports.fields("io_uring"))


def _use(server: VolumeServer) -> str:
    """Requests of many kinds, from every CPU, and an unmount; what the server said of io_uring while it was mounted."""
    before = os.sched_getaffinity(0)
    try:
        for cpu in before:
            os.sched_setaffinity(0, {cpu})
            file = server.mountpoint / f"of-{cpu}"
            file.write_text("data")
            assert file.read_text() == "data"
            assert file.name in os.listdir(server.mountpoint)
            file.unlink()
    finally:
        os.sched_setaffinity(0, before)
    status = server.call("status")
    said = "" if status["io_uring"] else status["why_not"]["io_uring"]
    assert server.umount() == 0
    assert not mount.is_mounted(server.mountpoint)
    return said


@pytest.fixture
def forbidden_by_sysctl() -> Iterator[None]:
    """io_uring is forbidden on this machine while the test lasts."""
    if not SYSCTL.exists():
        pytest.skip("this kernel has no kernel.io_uring_disabled (Linux 6.6)")
    before = SYSCTL.read_text()
    SYSCTL.write_text("2")
    try:
        yield
    finally:
        SYSCTL.write_text(before)


@pytest.mark.usefixtures("forbidden_by_sysctl")
def test_forbidden_by_the_administrator(volume_server: StartServer) -> None:
    """kernel.io_uring_disabled=2: nothing is agreed on, and the status says why."""
    server = volume_server(**transports.fields("io_uring"))
    said = _use(server)

    assert said == "the system refuses it: Operation not permitted"


def test_forbidden_by_seccomp(volume_server: StartServer) -> None:
    """A container's profile without io_uring."""
    said = _use(_refused(volume_server, "seccomp"))

    assert said == "the system refuses it: Operation not permitted"


@pytest.mark.expect_log(WARNING)
def test_any_number_of_rings(volume_server: StartServer) -> None:
    """Memory for one ring less than needed, and less, down to none: io_uring with all threads, or /dev/fuse."""
    queues = uring.queues()
    wanted = queues * (2 if queues <= 8 else 1)
    said = [_use(_refused(volume_server, f"memlock={rings * 8192}")) for rings in range(wanted + 2)]

    assert [bool(why) for why in said] == [True] * (wanted + 1) + [False], said
    assert {why for why in said if why} == {"the system refuses it: Cannot allocate memory"}


@pytest.mark.expect_log(WARNING)
def test_too_few_descriptors(volume_server: StartServer) -> None:
    """With enough for the mount, but not for the rings, a volume is served; with fewer still it says why it is not."""
    plain = volume_server(**transports.fields("kernel"))
    few = max(descriptors(plain.pid)) + 4  # some are in use for a moment only
    each = 4 * uring.queues() * 2  # a ring, and Python's copies of its descriptor for three mappings
    said: list[str] = []
    for limit in range(few, few + each + 16, 3):
        command = [sys.executable, str(REFUSALS), f"nofile={limit}"]
        server = volume_server(start=False, command=command, deadline=20.0, **transports.fields("io_uring"))
        try:
            server.start()
        except AssertionError:
            assert "Too many open files" in server.ready_lines[-1]
            assert not mount.is_mounted(server.mountpoint)
        else:
            said.append(_use(server))

    assert set(said) == {"the system refuses it: Too many open files", ""}
    assert sorted(said, reverse=True) == said


@pytest.mark.expect_log(WARNING)
@pytest.mark.parametrize("queue", range(uring.queues()))
def test_a_queue_whose_entries_are_refused(volume_server: StartServer, queue: int) -> None:
    """Some entries are registered already when the kernel refuses others: they are taken back, and forgotten."""
    said = _use(_refused(volume_server, f"entry={queue}"))

    assert said == "the system refuses it: Bad address"


@pytest.fixture
def holder(workdir: Path, logs: LogCheck) -> Iterator[Holder]:
    """A mount whose server may be killed, and be followed by another one."""
    source, point = workdir / "src", workdir / "mnt"
    source.mkdir()
    point.mkdir()
    logs.watch(workdir / "log")
    base = {"mount_id": "m", "source": str(source), "mountpoint": str(point)}
    files = {"control": str(workdir / "control"), "log": str(workdir / "log")}
    holder = Holder(MountSpec(**base, **files, cache="none", **transports.fields("io_uring")), workdir / "spec.json")
    rescue = threading.Timer(60, mount.abort, [point])
    rescue.start()
    try:
        yield holder
    finally:
        rescue.cancel()
        logs.expect("the connection was aborted")
        for found in mount.below(point):
            mount.abort(found.minor)
            mount.unmount(point, lazy=True)
        holder.close()


@pytest.mark.expect_log(WARNING)
def test_the_next_server_goes_on_without_it(holder: Holder, workdir: Path) -> None:
    """A server that had to do without io_uring is killed: the next one does without it too, and nothing is lost."""
    assert holder.launch(sys.executable, str(REFUSALS), f"memlock={2 * 8192}") == "READY"
    file = workdir / "mnt" / "f"
    with file.open("w") as f:
        f.write("one")
        f.flush()
        holder.kill()
        holder.start()
        f.write(" two")
    status = call(workdir / "control", {"op": "status"})

    assert file.read_text() == "one two"
    assert not status["io_uring"]
    assert "over-io-uring" not in status["stats"]["features"]


def test_the_next_server_is_refused_it(holder: Holder, workdir: Path) -> None:
    """Requests come over io_uring and cannot be told to come otherwise: the next server says so and does not hang."""
    holder.start()
    (workdir / "mnt" / "f").touch()
    holder.kill()
    said = holder.launch(sys.executable, str(REFUSALS), "seccomp")

    assert said == (
        f"ERROR The mount at {workdir}/mnt cannot be taken over: requests come over io_uring, which the system "
        "refuses: Operation not permitted"
    )


def test_a_mount_that_wants_none(volume_server: StartServer) -> None:
    """Switched off for one mount, io_uring is not even asked for."""
    transports.fields("io_uring")
    server = volume_server(transport="kernel", io_uring=False)
    status = server.call("status")

    assert status["why_not"]["io_uring"] == "it is switched off for this mount"
    assert "over-io-uring" not in status["stats"]["features"]
