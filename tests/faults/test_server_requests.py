"""Operations that fail unexpectedly or hang, in a real volume server."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.support import eventually, transports
from tests.support.servers import VolumeServer

pytestmark = pytest.mark.root


class Faults:
    """The switch of :mod:`tests.support.faulty_server`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()

    @contextlib.contextmanager
    def on(self, operation: str, what: str) -> Iterator[None]:
        """*what* is ``raise`` or ``hang``."""
        switch = self._directory / f"{operation}.{what}"
        switch.touch()
        try:
            yield
        finally:
            switch.unlink(missing_ok=True)


@pytest.fixture
def faults(workdir: Path) -> Iterator[Faults]:
    """Faults of the server of :func:`faulty`."""
    yield Faults(workdir / "faults")
    for switch in (workdir / "faults").iterdir():
        switch.unlink()


@pytest.fixture(params=["kernel", "io_uring", "pyfuse3"])
def faulty(request: pytest.FixtureRequest, faults: Faults, volume_server: StartServer) -> VolumeServer:
    """A volume whose kernel caches nothing and passes nothing by, so that every system call reaches the server."""
    return volume_server(
        module="tests.support.faulty_server", cache="none", quota="ledger", **transports.fields(request.param)
    )


def _calls(root: Path) -> dict[str, Callable[[], object]]:
    """A system call that needs each operation. ``root`` has a file ``f``, a link ``l``, a directory ``d``."""
    flags = os.O_RDWR

    def with_file(use: Callable[[int], object], how: int = flags) -> object:
        fd = os.open(root / "f", how)
        try:
            return use(fd)
        finally:
            os.close(fd)

    def with_directory(use: Callable[[int], object]) -> object:
        return with_file_at(root / "d", use)

    def with_file_at(path: Path, use: Callable[[int], object]) -> object:
        fd = os.open(path, os.O_RDONLY)
        try:
            return use(fd)
        finally:
            os.close(fd)

    return {
        "lookup": lambda: os.stat(root / "f"),
        "getattr": lambda: os.stat(root),
        "setattr": lambda: os.chmod(root / "f", 0o600),
        "readlink": lambda: os.readlink(root / "l"),
        "mknod": lambda: os.mkfifo(root / "p"),
        "mkdir": lambda: os.mkdir(root / "d2"),
        "symlink": lambda: os.symlink("x", root / "l2"),
        "unlink": lambda: os.unlink(root / "f"),
        "rmdir": lambda: os.rmdir(root / "d"),
        "rename": lambda: os.rename(root / "f", root / "g"),
        "link": lambda: os.link(root / "f", root / "h"),
        "create": lambda: os.close(os.open(root / "n", os.O_CREAT | os.O_WRONLY)),
        "open": lambda: os.close(os.open(root / "f", flags)),
        "read": lambda: with_file(lambda fd: os.read(fd, 10)),
        "write": lambda: with_file(lambda fd: os.write(fd, b"y")),
        "fsync": lambda: with_file(os.fsync),
        "opendir": lambda: os.listdir(root / "d"),
        "readdir": lambda: os.listdir(root / "d"),
        "fsyncdir": lambda: with_directory(os.fsync),
        "statfs": lambda: os.statvfs(root),
        "getxattr": lambda: os.getxattr(root / "f", "user.a"),
        "setxattr": lambda: os.setxattr(root / "f", "user.b", b"2"),
        "listxattr": lambda: os.listxattr(root / "f"),
        "removexattr": lambda: os.removexattr(root / "f", "user.a"),
    }


def _under_way(server: VolumeServer) -> int:
    count: int = server.call("status")["stats"]["under_way"]
    return count


def _populate(root: Path) -> None:
    (root / "f").write_text("x")
    (root / "l").symlink_to("f")
    (root / "d").mkdir()
    os.setxattr(root / "f", "user.a", b"1")


@pytest.mark.expect_log("failed unexpectedly")
def test_any_exception_in_any_handler_is_eio_and_one_traceback(faulty: VolumeServer, faults: Faults) -> None:
    """A bug in an operation costs its caller an EIO; the log has one traceback, and the mount lives on."""
    _populate(faulty.source)
    got: dict[str, int | None] = {}
    calls = _calls(faulty.mountpoint)
    for operation, call in calls.items():
        with faults.on(operation, "raise"):
            try:
                call()
                got[operation] = None
            except OSError as e:
                got[operation] = e.errno
    with faults.on("forget", "raise"), faults.on("release", "raise"), faults.on("releasedir", "raise"):
        os.listdir(faulty.mountpoint)
        (faulty.mountpoint / "f").read_text()
    text = faulty.log.read_text()
    tracebacks = {operation: text.count(f"ZeroDivisionError: a bug in {operation}\n") for operation in calls}
    lives = (faulty.mountpoint / "f").read_text()

    assert got == dict.fromkeys(calls, errno.EIO)
    assert tracebacks == dict.fromkeys(calls, 1)
    assert lives == "x"


def test_hanging_operations_never_stop_others(faulty: VolumeServer, faults: Faults) -> None:
    """While 40 programs hang in the backing store, others get their answers at once; threads go when all is over."""
    _populate(faulty.source)
    code = "import os,sys; os.close(os.open(sys.argv[1], os.O_RDONLY))"
    with faults.on("open", "hang"):
        clients = [subprocess.Popen([sys.executable, "-ISc", code, str(faulty.mountpoint / "f")]) for _ in range(40)]
        eventually(lambda: _under_way(faulty) >= 40, 30, what="all of them hang")
        for i in range(20):
            (faulty.mountpoint / f"dir{i}").mkdir()
        hanging = sum(client.poll() is None for client in clients)
    statuses = [client.wait(20) for client in clients]
    ended = eventually(lambda: _under_way(faulty) == 0, 20, what="operations that end")
    if not faulty.call("status")["io_uring"]:  # whose threads stay
        eventually(lambda: faulty.call("status")["stats"]["threads"] <= 1, 20, what="threads that end")

    assert hanging == 40
    assert statuses == [0] * 40
    assert ended


def test_what_is_put_off_holds_up_nobody_either(faulty: VolumeServer, faults: Faults) -> None:
    """Letting go of removed inodes, which is done when no request waits, may hang like any operation."""
    _populate(faulty.source)
    code = "import os,sys\nfor _ in range(200): os.listdir(sys.argv[1]); os.statvfs(sys.argv[1])"
    with faults.on("forget_all", "hang"), faults.on("forget", "hang"):
        for i in range(20):
            (faulty.mountpoint / f"n{i}").touch()
            (faulty.mountpoint / f"n{i}").unlink()
        eventually(lambda: _under_way(faulty) > 0, 20, what="it hangs")
        done = subprocess.run([sys.executable, "-ISc", code, str(faulty.mountpoint)], timeout=30, check=False)
    ended = eventually(lambda: _under_way(faulty) == 0, 20, what="operations that end")

    assert done.returncode == 0
    assert ended


def test_control_socket_answers_while_requests_hang(faulty: VolumeServer, faults: Faults) -> None:
    """Status comes at once while an operation hangs, and the unmount says that the volume is in use."""
    _populate(faulty.source)
    code = "import os,sys; os.listdir(sys.argv[1])"
    with faults.on("opendir", "hang"):
        client = subprocess.Popen([sys.executable, "-ISc", code, str(faulty.mountpoint)])
        eventually(lambda: _under_way(faulty) > 0, what="the client hangs")
        refused = faulty.call("unmount")
    client.wait(20)

    assert (refused["ok"], refused["errno"]) == (False, errno.EBUSY)


@pytest.mark.expect_log("operations hang in the backing store")
def test_end_with_hanging_operation_is_bounded(faulty: VolumeServer, faults: Faults) -> None:
    """SIGTERM ends a server within seconds although an operation hangs, and says so by its status."""
    _populate(faulty.source)
    code = "import os,sys; os.listdir(sys.argv[1])"
    with faults.on("opendir", "hang"):
        client = subprocess.Popen([sys.executable, "-ISc", code, str(faulty.mountpoint)], stderr=subprocess.DEVNULL)
        eventually(lambda: _under_way(faulty) > 0, what="the client hangs")
        faulty.signal(signal.SIGTERM)
        status = faulty.wait(20)
    client.wait(20)

    assert status == 1


def test_idle_volume_uses_no_cpu(mounted: VolumeServer) -> None:
    """After work, one thread waits for requests; no thread of the server runs at all until the next one."""
    for i in range(200):
        (mounted.mountpoint / str(i)).touch()

    def switches() -> int:
        total = 0
        for task in Path(f"/proc/{mounted.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                lines = (task / "status").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        return total

    seen = [switches()]

    def quiet() -> bool:
        seen.append(switches())
        return len(seen) > 2 and seen[-1] == seen[-2]

    eventually(quiet, 20, interval=0.5, what="half a second without a context switch")

    assert seen[-1] > 0


def test_client_killed_while_waiting_does_no_harm(faulty: VolumeServer, faults: Faults) -> None:
    """Programs that are killed in the middle of requests leave a server that answers all others."""
    _populate(faulty.source)
    code = "import os,sys\nprint(flush=True)\nwhile True: os.stat(sys.argv[1])"
    killed = 0
    for _ in range(20):
        command = [sys.executable, "-ISc", code, str(faulty.mountpoint / "f")]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()  # it is under way
            os.stat(faulty.mountpoint / "f")
            client.kill()
            killed += client.wait(20) == -signal.SIGKILL
            client.stdout.close()
    answer = (faulty.mountpoint / "f").read_text()

    assert killed == 40
    assert answer == "x"
