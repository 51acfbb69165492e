"""The keeper by itself: what it starts, what its clients can do to it, and what its death costs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusevol.errors import UnavailableError
from fusevol.keeper import client, wire
from fusevol.server.client import call
from fusevol.transport import mount
from tests.support import eventually
from tests.support.keepers import KeeperProcess, read_lines
from tests.support.logs import LogCheck
from tests.support.processes import alive, descriptors, private_bytes

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def keeper(workdir: Path, logs: LogCheck) -> Iterator[KeeperProcess]:
    """A running keeper without servers."""
    process = KeeperProcess(workdir, logs)
    try:
        yield process.start()
    finally:
        process.close()


def _connect(keeper: KeeperProcess) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    path = os.fspath(wire.socket_path(keeper.directory))
    eventually(lambda: connection.connect(path) is None, what="room in the queue of the keeper")
    return connection


def _ended(keeper: KeeperProcess) -> dict[str, int]:
    """Exit statuses of the last servers by mount id."""
    return {end["mount_id"]: end["status"] for end in client.servers(keeper.directory)[1]}


def test_serves_and_ends_like_any_server(keeper: KeeperProcess) -> None:
    """A forked server serves, answers on its control socket, ends with its mount, and its status is kept."""
    kept = keeper.serve("a", limit_bytes=8 * MIB)
    (kept.mountpoint / "f").write_text("hello")
    listed = client.servers(keeper.directory)[0]
    status = call(Path(kept.spec.control), {"op": "status"})
    mount.unmount(kept.mountpoint)
    ended = eventually(lambda: _ended(keeper))

    assert (kept.source / "f").read_text() == "hello"
    assert [(s["mount_id"], s["pid"], s["restarts"]) for s in listed] == [("a", kept.pid, 0)]
    assert status["pid"] == kept.pid
    assert kept.said[0] == f"PID {kept.pid}"
    assert ended == {"a": 0}
    assert client.servers(keeper.directory)[0] == []


def test_servers_share_nothing_with_the_keeper_but_memory(keeper: KeeperProcess) -> None:
    """A server has its own session, name and log, and none of the descriptors of the keeper and its siblings."""
    first = keeper.serve("a")
    with _connect(keeper):
        second = keeper.serve("b")
        sockets = [d for d in descriptors(second.pid).values() if d.startswith("socket:")]
        other = [d for d in descriptors(second.pid).values() if "keeper" in d or d == f"{keeper.directory}/a.log"]
        pidfds = [d for d in descriptors(second.pid).values() if "pidfd" in d]
    name = Path(f"/proc/{second.pid}/comm").read_text().strip()

    assert os.getsid(first.pid) == first.pid
    assert os.getsid(second.pid) == second.pid
    assert name == "fusevol-server"
    assert len(sockets) == 3  # its control socket, and the two ends of the parking lot
    assert other == []
    assert len(pidfds) == 1  # by which it notices the keeper's end
    assert descriptors(second.pid)[0] == "/dev/null"
    assert descriptors(second.pid)[2] == second.spec.log


def test_a_dead_server_is_noted_and_may_be_started_again(keeper: KeeperProcess) -> None:
    """A server that nobody can follow leaves its signal in the list, and the mount may have another one at once."""
    kept = keeper.serve("a", transport="pyfuse3")
    kept.kill()
    eventually(lambda: _ended(keeper))
    again = keeper.serve("a", transport="pyfuse3")
    (again.mountpoint / "f").write_text("x")

    assert _ended(keeper) == {"a": -signal.SIGKILL}
    assert [s["pid"] for s in client.servers(keeper.directory)[0]] == [again.pid]


def test_a_server_that_cannot_mount_says_why(keeper: KeeperProcess, workdir: Path) -> None:
    """A start that fails is one sentence on the ready pipe, whatever is wrong, and leaves nothing."""
    said = []
    for name, fields in {"a": {"source": f"{workdir}/none"}, "b": {"log": f"{workdir}/none/log"}}.items():
        _, answer, reader = keeper.ask_for(name, **fields)
        said.append(read_lines(reader)[-1])
        assert answer["ok"]
    ended = eventually(lambda: found if len(found := _ended(keeper)) == 2 else None)

    assert said[0].startswith(f"ERROR The volume's directory {workdir}/none is not there")
    assert said[1].startswith(f"ERROR The log file {workdir}/none/log cannot be opened")
    assert ended == {"a": 1, "b": 1}
    assert mount.below(workdir) == []


def test_requests_that_make_no_sense_are_refused(keeper: KeeperProcess) -> None:
    """What cannot be done gets one sentence: no descriptor, two of them, no path, a second server for a mount."""
    keeper.serve("a")
    good = {"mount_id": "b", "spec": "/s", "log": "/l"}
    refused = [
        keeper.call("start", **good),
        keeper.call("start", 0, 1, **good),
        keeper.call("start", 0, mount_id="b", spec="/s"),
        keeper.call("start", 0, **(good | {"spec": "a\0b"})),
        keeper.call("start", 0, **(good | {"mount_id": "x" * 300})),
        keeper.call("start", 0, **(good | {"mount_id": "a"})),
        keeper.call("list", after=7),
        keeper.call("fly"),
    ]

    assert [r["ok"] for r in refused] == [False] * len(refused)
    assert all(r["error"].endswith(".") for r in refused)
    assert "runs already" in refused[5]["error"]
    assert len(client.servers(keeper.directory)[0]) == 1


GARBAGE = {
    "no JSON": b"\xff\xfe nonsense",
    "no object": b"[]",
    "no operation": b"{}",
    "a list for an operation": b'{"op": []}',
    "too deep": b"[" * 60_000,
    "too long": b" " * (wire.LIMIT + 1),
}


@pytest.mark.parametrize("message", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_answered(keeper: KeeperProcess, message: bytes) -> None:
    """What is no request gets one sentence, and the next message on the same connection is heard."""
    with _connect(keeper) as connection:
        connection.send(message)
        first = json.loads(connection.recv(wire.LIMIT))
        connection.send(b'{"op": "hello"}')
        second = json.loads(connection.recv(wire.LIMIT))

    assert not first["ok"]
    assert first["error"].endswith(".")
    assert (second["ok"], second["pid"]) == (True, keeper.pid)


def _send_without_listening(connection: socket.socket) -> int:
    """How many requests were sent until the keeper hung up."""
    connection.settimeout(10)
    for sent in range(100_000):
        try:
            connection.send(b'{"op": "list"}')
        except (BrokenPipeError, ConnectionResetError):
            return sent
    raise AssertionError("the keeper takes requests without end from somebody who does not read the answers")


def test_rude_clients_disturb_nobody(keeper: KeeperProcess) -> None:
    """Clients that say nothing, hang up, never read their answers or send many descriptors keep nobody waiting."""
    before = len(descriptors(keeper.pid))
    silent = [_connect(keeper) for _ in range(300)]
    deaf = _connect(keeper)
    sent = _send_without_listening(deaf)
    with _connect(keeper) as hasty:
        hasty.send(b'{"op": "list"}')
    with _connect(keeper) as generous:
        socket.send_fds(generous, [b'{"op": "hello"}'], [0] * 100)
        answered = json.loads(generous.recv(wire.LIMIT))
    kept = keeper.serve("a")
    (kept.mountpoint / "f").write_text("x")
    for connection in (*silent, deaf):
        connection.close()
    mount.unmount(kept.mountpoint)
    eventually(lambda: len(descriptors(keeper.pid)) == before, what="every descriptor of the clients is closed")

    assert sent > 10
    assert answered["ok"]
    assert keeper.call("hello")["pid"] == keeper.pid


def test_a_full_queue_is_waited_for(keeper: KeeperProcess) -> None:
    """A client that finds the keeper's queue full gets its answer when there is room again."""
    os.kill(keeper.pid, signal.SIGSTOP)
    waiting: list[socket.socket] = []
    full = False
    while not full:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        waiting.append(connection)
        try:
            connection.connect(os.fspath(wire.socket_path(keeper.directory)))
        except BlockingIOError:
            full = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(keeper.call, "hello")
        eventually(answer.running, what="the request is under way")
        os.kill(keeper.pid, signal.SIGCONT)
        pid = answer.result(20)["pid"]
    for connection in waiting:
        connection.close()

    assert len(waiting) > 100
    assert pid == keeper.pid


def test_second_keeper_is_refused(keeper: KeeperProcess, workdir: Path, logs: LogCheck) -> None:
    """A directory has one keeper: another one says whose it is and ends, and the first does not notice."""
    kept = keeper.serve("a")
    second = KeeperProcess(workdir, logs)
    try:
        said = second.launch()
        status = second.wait()
    finally:
        second.end()
    (kept.mountpoint / "f").write_text("x")

    assert said.startswith(f"ERROR Another keeper (pid {keeper.pid}) serves {workdir}")
    assert status == 1
    assert keeper.call("hello")["pid"] == keeper.pid


def test_shutdown_leaves_the_servers_alone(keeper: KeeperProcess) -> None:
    """A keeper that is told to end does so with status 0 and without its socket; its servers live on."""
    kept = keeper.serve("a")
    keeper.call("shutdown")
    status = keeper.wait()
    with pytest.raises(UnavailableError, match=r"keeper\.sock"):
        keeper.call("hello")
    (kept.mountpoint / "f").write_text("x")

    assert status == 0
    assert alive(kept.pid)
    assert not wire.socket_path(keeper.directory).exists()


def test_killed_under_load_nobody_notices(keeper: KeeperProcess) -> None:
    """kill -9 of the keeper costs no operation of programs at work; a new one takes its place and mounts more."""
    kept = keeper.serve("a", limit_bytes=256 * MIB)
    script = Path(__file__).parents[1] / "support" / "writer.py"
    writers = [
        subprocess.Popen([sys.executable, "-IS", script, kept.mountpoint, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    with (kept.mountpoint / "held").open("wb", buffering=0) as held:
        eventually(lambda: len(os.listdir(kept.source)) > 20, what="writing is under way")
        first = keeper.pid
        running = [w.poll() for w in writers]
        held.write(b"before")
        keeper.kill()
        held.write(b" between")
        keeper.start()
        other = keeper.serve("b")
        (other.mountpoint / "f").write_text("x")
        held.write(b" after")
        seen = len(os.listdir(kept.source))
        eventually(lambda: len(os.listdir(kept.source)) != seen, what="writing goes on")
    for writer in writers:
        writer.terminate()
    done = [w.communicate(timeout=30)[0] for w in writers]
    mount.unmount(kept.mountpoint)
    eventually(lambda: not alive(kept.pid), what="a server of the dead keeper ends with its mount")

    assert running == [None, None]
    assert [w.returncode for w in writers] == [0, 0], done
    assert (kept.source / "held").read_bytes() == b"before between after"
    assert keeper.pid != first
    assert [s["mount_id"] for s in client.servers(keeper.directory)[0]] == ["b"]


def test_stale_socket_is_replaced(keeper: KeeperProcess) -> None:
    """The socket file that a killed keeper leaves is for root only, and does not stand in the way of the next one."""
    path = wire.socket_path(keeper.directory)
    mode = path.stat().st_mode & 0o777
    keeper.kill()
    left = path.exists()
    with pytest.raises(UnavailableError):
        keeper.call("hello")
    keeper.start()

    assert mode == 0o600
    assert left
    assert keeper.call("hello")["pid"] == keeper.pid


def test_private_memory_is_small(keeper: KeeperProcess) -> None:
    """An idle mounted volume has at most 4.3 MiB of memory of its own; 4.0 to 4.05 is what was measured.

    On /dev/fuse: io_uring's threads and rings take 0.3 MiB more, and so does code that a keeper must compile first.
    """
    kept = [keeper.serve(f"v{i}", limit_bytes=MIB, io_uring=False) for i in range(5)]
    used = [private_bytes(volume.pid) / MIB for volume in kept]

    assert max(used) <= 4.3, used
