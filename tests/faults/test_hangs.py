"""A backing store that really hangs, and what a volume server tells of it and does about it.

The store is a filesystem on a loop device that is frozen: who writes to it is in an uninterruptible sleep, which no
signal ends. Or it is a mount whose server is stopped: nothing at all is answered.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fusevol.transport import mount
from tests.conftest import LoopFs, StartServer
from tests.support import eventually, transports
from tests.support.devices import frozen
from tests.support.processes import alive
from tests.support.servers import VolumeServer

pytestmark = pytest.mark.root

_TELL = """
import errno, os, sys
try:
    %s
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
"""
_MAKE = _TELL % "os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY))"
_ASK = _TELL % "os.statvfs(sys.argv[1])"


@pytest.fixture(params=["kernel", "io_uring", "pyfuse3"])
def transport(request: pytest.FixtureRequest) -> str:
    """Each way in which requests reach a server."""
    name: str = request.param
    return name


@pytest.fixture
def store(loop_fs: LoopFs) -> Path:
    """A filesystem that can be frozen."""
    return loop_fs("ext4", 64 << 20)


def _serve(volume_server: StartServer, store: Path, transport: str, **fields: Any) -> VolumeServer:
    source = store / "volume"
    for name in ("sub", "other"):  # who makes a name has its directory locked, as on any filesystem
        (source / name).mkdir(parents=True)
    (source / "other" / "there").write_text("read me")
    return volume_server(source, quota="ledger", cache="none", **transports.fields(transport), **fields)


def _program(path: Path, what: str = _MAKE) -> subprocess.Popen[str]:
    """A program that makes a file, or does *what*, and tells the error that it gets."""
    return subprocess.Popen([sys.executable, "-ISc", what, str(path)], stdout=subprocess.PIPE, text=True)


def _stuck(server: VolumeServer) -> dict[str, Any]:
    found: dict[str, Any] = server.call("status")["stuck"]
    return found


@pytest.mark.expect_log("has not ended for .* the backing store does not answer", "do not end")
def test_what_hangs_is_told_while_the_rest_goes_on(volume_server: StartServer, store: Path, transport: str) -> None:
    """Status and log name operation, path, process and age; reads go on; after the thaw the program has its file."""
    server = _serve(volume_server, store, transport, stuck_after_s=1.0)
    with frozen(store) as thaw:
        client = _program(server.mountpoint / "sub" / "new")
        eventually(lambda: _stuck(server)["count"] == 1, 15, what="the request is told")
        eventually(lambda: _stuck(server)["oldest"] > 3, 15, what="its age grows")
        read = (server.mountpoint / "other" / "there").read_text()
        told = _stuck(server)
        waiting = client.poll() is None
        thaw()
    said = client.communicate(timeout=20)[0]
    eventually(lambda: _stuck(server)["count"] == 0, 15, what="nothing is stuck any more")
    log = server.log.read_text()

    assert read == "read me"
    assert waiting
    assert [(r["operation"], r["path"], r["pid"]) for r in told["requests"]] == [("create", "sub/new", client.pid)]
    assert said == ""
    assert f"create of 'sub/new' for process {client.pid} (python" in log
    assert " has ended after " in log


@pytest.mark.expect_log(
    "has not ended", "do not end", "the connection (is|was) aborted", "operations hang in the backing"
)
def test_the_limit_frees_the_programs(volume_server: StartServer, store: Path, transport: str) -> None:
    """With a limit, the server ends the connection, though its own thread cannot end before the thaw."""
    server = _serve(volume_server, store, transport, stuck_after_s=1.0, abort_after_s=3.0)
    with frozen(store):
        began = time.monotonic()
        client = _program(server.mountpoint / "sub" / "new")
        said = client.communicate(timeout=30)[0]
        took = time.monotonic() - began
        dead = mount.is_dead(server.mountpoint)
        lingers = alive(server.pid)
    status = server.wait(20)

    assert said.strip() in {"ECONNABORTED", "ENOTCONN"}
    assert 3.0 <= took < 15.0
    assert dead
    assert lingers
    assert status == 1


@pytest.mark.slow
@pytest.mark.expect_log("the connection was aborted")
def test_the_kernel_keeps_the_limit_of_a_server_that_cannot(volume_server: StartServer) -> None:
    """On /dev/fuse, a server that is stopped itself does not keep programs from their error: the kernel ends it."""
    server = volume_server(**transports.fields("kernel"), cache="none", abort_after_s=1.0)
    if "request-timeout" not in server.call("status")["stats"]["features"]:
        pytest.skip("this kernel has no request time-out (Linux 6.15)")
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    client = _program(server.mountpoint / "new")
    said = client.communicate(timeout=80)[0]
    took = time.monotonic() - began
    server.signal(signal.SIGCONT)
    status = server.wait(20)

    assert said.strip() in {"ECONNABORTED", "ENOTCONN"}
    assert 30.0 <= took < 70.0
    assert status == 1


@pytest.mark.expect_log("has not ended", "do not end")
def test_a_store_that_answers_nothing(volume_server: StartServer, transport: str) -> None:
    """Each program that hangs takes one thread; the server dies of kill -9 all the same, and its mount is dead then."""
    store = volume_server(**transports.fields("kernel"))
    (store.mountpoint / "volume").mkdir()
    server = volume_server(store.mountpoint / "volume", cache="none", **transports.fields(transport), stuck_after_s=2.0)
    threads = server.call("status")["stats"]["threads"]
    with store.stopped():
        clients = [_program(server.mountpoint, _ASK) for _ in range(12)]
        eventually(lambda: _stuck(server)["count"] == 12, 20, what="all of them hang")
        stats = server.call("status")["stats"]
        server.kill()
        dead = mount.is_dead(server.mountpoint)
    said = {client.communicate(timeout=20)[0].strip() for client in clients}

    assert stats["under_way"] == 12
    assert stats["threads"] <= threads + 12 + 2
    assert dead
    assert said <= {"ECONNABORTED", "ENOTCONN"}


def test_without_a_limit_nothing_is_ended(volume_server: StartServer, store: Path, transport: str) -> None:
    """A store that takes longer than anything expected is waited for: twenty programs wait, and none gets an error."""
    server = _serve(volume_server, store, transport)
    for i in range(20):
        (server.source / str(i)).mkdir()
    with frozen(store):
        clients = [_program(server.mountpoint / str(i) / "new") for i in range(20)]
        eventually(lambda: server.call("status")["stats"]["under_way"] >= 20, 30, what="all of them hang")
        others = [(server.mountpoint / "other" / "there").read_text() for _ in range(50)]
        quiet = _stuck(server)
    said = [client.communicate(timeout=20)[0] for client in clients]

    assert others == ["read me"] * 50
    assert quiet == {"count": 0, "oldest": 0.0, "requests": []}
    assert said == [""] * 20
    assert all((server.source / str(i) / "new").exists() for i in range(20))
