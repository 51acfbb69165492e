"""What a keeper does when a volume server dies: another one goes on, or the mount is given up; and the next keeper."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusevol.keeper import client
from fusevol.keeper.lives import PAUSES
from fusevol.keeper.mounts import DESCRIPTORS
from fusevol.server.client import call
from fusevol.server.held import Held
from fusevol.transport import mount
from tests.support import eventually
from tests.support.keepers import KeeperProcess, rescued
from tests.support.logs import LogCheck
from tests.support.processes import alive, descriptors

pytestmark = pytest.mark.root

MIB = 1 << 20
_ENDED = {errno.ENOTCONN, errno.ECONNABORTED}


@pytest.fixture
def keeper(workdir: Path, logs: LogCheck) -> Iterator[KeeperProcess]:
    """A running keeper without servers."""
    with rescued(KeeperProcess(workdir, logs)) as running:
        yield running


@pytest.fixture
def faulty(workdir: Path, logs: LogCheck) -> Iterator[KeeperProcess]:
    """One whose servers die on command."""
    (workdir / "faults").mkdir()
    with rescued(KeeperProcess(workdir, logs, module="tests.support.faulty_keeper")) as running:
        yield running


def _notes(keeper: KeeperProcess, what: str) -> list[dict[str, Any]]:
    return [note for note in keeper.call("notes", after=0)["notes"] if note["what"] == what]


def _write(file: Any) -> int:
    """The errno of a write; 0 if it succeeds."""
    try:
        file.write(b"x")
    except OSError as e:
        return e.errno or -1
    return 0


@pytest.mark.parametrize("quota", ["none", "ledger"])
def test_killed_server_is_followed(keeper: KeeperProcess, quota: str) -> None:
    """After kill -9, again and again, open files and names go on in the same mount, and the keeper says what was."""
    kept = keeper.serve("a", quota=quota, limit_bytes=64 * MIB if quota == "ledger" else None)
    before = mount.find(kept.mountpoint)
    pids = [kept.pid]
    with (kept.mountpoint / "f").open("wb", buffering=0) as held:
        for number in range(3):
            os.kill(pids[-1], signal.SIGKILL)
            held.write(b"%d" % number)
            (kept.mountpoint / f"d{number}").mkdir()
            pids.append(keeper.server_of("a"))
    notes = _notes(keeper, "replaced")
    listed = client.servers(keeper.directory)[0]

    assert (kept.source / "f").read_bytes() == b"012"
    assert sorted(os.listdir(kept.source)) == ["d0", "d1", "d2", "f"]
    assert mount.find(kept.mountpoint) == before
    assert len(set(pids)) == 4
    assert [(n["old"], n["pid"], n["status"]) for n in notes] == [
        (old, new, -signal.SIGKILL) for old, new in itertools.pairwise(pids)
    ]
    assert [(s["pid"], s["restarts"]) for s in listed] == [(pids[-1], 3)]


def test_many_killed_at_once_are_all_followed(keeper: KeeperProcess) -> None:
    """Twenty servers that die at the same time each have a successor, and no open file notices."""
    kept = [keeper.serve(f"v{i}", limit_bytes=MIB) for i in range(20)]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context((k.mountpoint / "f").open("wb", buffering=0)) for k in kept]
        for k in kept:
            os.kill(k.pid, signal.SIGKILL)
        failed = [e for file in held if (e := _write(file))]
    pids = {keeper.server_of(f"v{i}") for i in range(20)}

    assert failed == []
    assert len(pids) == 20
    assert not pids & {k.pid for k in kept}


def test_unmounted_server_is_not_followed(keeper: KeeperProcess) -> None:
    """A server whose volume is unmounted ends, and the keeper lets go of all that it held."""
    before = len(descriptors(keeper.pid))
    kept = keeper.serve("a", limit_bytes=MIB)
    held = DESCRIPTORS - 1  # it has no rings
    holding = eventually(lambda: len(descriptors(keeper.pid)) == before + held, what="what holds the mount")
    mount.unmount(kept.mountpoint)
    eventually(lambda: len(descriptors(keeper.pid)) == before, what="the keeper has let go")

    assert holding
    assert keeper.servers() == []


def test_sigterm_ends_a_held_mount(keeper: KeeperProcess) -> None:
    """A server that is told to end takes the mount with it, though the keeper holds it: its users get errors."""
    kept = keeper.serve("a", limit_bytes=MIB)
    with contextlib.suppress(OSError), (kept.mountpoint / "f").open("wb", buffering=0) as held:
        held.write(b"x")
        os.kill(kept.pid, signal.SIGTERM)
        eventually(lambda: not alive(kept.pid), what="the server has ended")
        failed = _write(held)
    eventually(lambda: not keeper.call("find", mount_id="a")["known"], what="the keeper has let go")

    assert failed in _ENDED
    assert not mount.is_mounted(kept.mountpoint)
    assert _notes(keeper, "replaced") == []


def test_killed_after_a_lazy_unmount_is_followed(keeper: KeeperProcess) -> None:
    """A mount that is only in use by an open file any more is served on after a kill, and ends with that file."""
    kept = keeper.serve("a", limit_bytes=MIB)
    with (kept.mountpoint / "f").open("wb", buffering=0) as held:
        mount.unmount(kept.mountpoint, lazy=True)
        os.kill(kept.pid, signal.SIGKILL)
        failed = _write(held)
        follower = keeper.server_of("a")
    eventually(lambda: not alive(follower), what="the last server has ended")

    assert failed == 0
    assert (kept.source / "f").read_bytes() == b"x"


@pytest.mark.expect_log("given up after")
def test_request_that_kills_every_server(faulty: KeeperProcess) -> None:
    """What kills one server after the other is given up within seconds: everybody gets an error, nobody hangs."""
    kept = faulty.serve("a", limit_bytes=MIB)
    with contextlib.suppress(OSError), (kept.mountpoint / "f").open("wb", buffering=0) as held:
        (faulty.directory / "faults" / "mkdir.kill").touch()
        began = time.monotonic()
        with pytest.raises(OSError) as refused:  # noqa: PT011  # the errno is what counts
            (kept.mountpoint / "poison").mkdir()
        took = time.monotonic() - began
        failed = _write(held)
    note = eventually(lambda: _notes(faulty, "failed"))[0]
    alike = [end["status"] for end in client.servers(faulty.directory)[1]]

    assert refused.value.errno in _ENDED
    assert failed in _ENDED
    assert sum(PAUSES) < took < sum(PAUSES) + 10
    assert (note["mount_id"], note["times"], note["status"]) == ("a", len(PAUSES) + 1, -signal.SIGKILL)
    assert alike == [-signal.SIGKILL] * (len(PAUSES) + 1)
    assert not faulty.call("find", mount_id="a")["known"]
    assert faulty.servers() == []


def test_request_that_kills_some_servers(faulty: KeeperProcess) -> None:
    """A request that a later server stands is answered then, and nothing but time is lost."""
    kept = faulty.serve("a", limit_bytes=MIB)
    with (kept.mountpoint / "f").open("wb", buffering=0) as held:
        poison = faulty.directory / "faults" / "mkdir.kill"
        poison.touch()
        code = "import os,sys; os.mkdir(sys.argv[1])"
        command = [sys.executable, "-ISc", code, str(kept.mountpoint / "poison")]
        client_of_it = subprocess.Popen(command)
        eventually(lambda: len(client.servers(faulty.directory)[1]) > 3, 20, what="three servers have died of it")
        poison.unlink()
        status = client_of_it.wait(30)
        failed = _write(held)

    assert status == 0
    assert (kept.source / "poison").is_dir()
    assert failed == 0
    assert len(_notes(faulty, "failed")) == 0


@pytest.mark.expect_log("given up after")
def test_server_that_cannot_go_on_says_why(keeper: KeeperProcess) -> None:
    """Where no server can go on, the mount ends, and the reason is what the last one said."""
    kept = keeper.serve("a", limit_bytes=MIB)
    (keeper.directory / "a.json").unlink()
    with contextlib.suppress(OSError), (kept.mountpoint / "f").open("wb", buffering=0) as held:
        os.kill(kept.pid, signal.SIGKILL)
        failed = _write(held)
    note = _notes(keeper, "failed")[0]

    assert failed in _ENDED
    assert note["words"].startswith(f"The mount file {keeper.directory}/a.json cannot be read")


def test_one_server_at_a_time(keeper: KeeperProcess) -> None:
    """While a server lives no other one can serve its mount, though it has all it takes."""
    kept = keeper.serve("a", limit_bytes=MIB)
    answer, received = client.call(keeper.directory, {"op": "find", "mount_id": "a"})
    pidfd, *left = received
    held = Held.of(answer["minor"], left)
    words = ["--spec", str(keeper.directory / "a.json"), "--held", ",".join(map(str, (held.minor, *held.descriptors)))]
    command = [sys.executable, "-m", "fusevol.server", *words]
    second = subprocess.run(
        command, pass_fds=left, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=30, check=False
    )
    held.close()
    os.close(pidfd)
    (kept.mountpoint / "f").write_text("x")

    assert second.returncode == 1
    assert "Another volume server serves the mount" in second.stderr
    assert call(Path(kept.spec.control), {"op": "status"})["pid"] == kept.pid


@pytest.mark.parametrize("how", ["killed", "asked to end"])
def test_next_keeper_holds_what_it_finds(keeper: KeeperProcess, how: str) -> None:
    """Servers report to the next keeper, which follows them by others as if it had started them."""
    kept = [keeper.serve(f"v{i}", limit_bytes=MIB) for i in range(3)]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context((k.mountpoint / "f").open("wb", buffering=0)) for k in kept]
        if how == "killed":
            keeper.kill()
        else:
            keeper.call("shutdown")
            assert keeper.wait() == 0
        keeper.start()
        eventually(lambda: len(client.servers(keeper.directory)[0]) == 3, what="all are held again")
        adopted = [s["pid"] for s in client.servers(keeper.directory)[0]]
        for k in kept:
            os.kill(k.pid, signal.SIGKILL)
        failed = [e for file in held if (e := _write(file))]
    pids = {keeper.server_of(f"v{i}") for i in range(3)}

    assert adopted == [k.pid for k in kept]
    assert failed == []
    assert len(pids) == 3
    assert not pids & set(adopted)
    assert {n["mount_id"] for n in _notes(keeper, "adopted")} == {"v0", "v1", "v2"}


def test_server_that_died_without_a_keeper(keeper: KeeperProcess) -> None:
    """Who has copies of what was held gives them to the next keeper, which goes on with them, once."""
    kept = keeper.serve("a", limit_bytes=MIB)
    answer, (pidfd, *left) = client.call(keeper.directory, {"op": "find", "mount_id": "a"})
    os.close(pidfd)
    request = {"op": "adopt", "mount_id": "a", "spec": f"{keeper.directory}/a.json", "log": kept.spec.log}
    request["minor"] = answer["minor"]
    (kept.mountpoint / "g").touch()  # closing a file is never asked for again: a process could not be started, below
    with (kept.mountpoint / "f").open("wb", buffering=0) as held:
        keeper.kill()
        kept.kill()
        keeper.start()
        answers = []
        for _ in range(2):
            found, received = client.call(keeper.directory, request, left)
            answers.append(found["ok"])
            for descriptor in received:
                os.close(descriptor)
        failed = _write(held)
    for descriptor in left:
        os.close(descriptor)

    assert answers == [True, False]
    assert failed == 0
    assert keeper.servers() == [keeper.server_of("a")]


def test_listener_is_told_when_something_happens(keeper: KeeperProcess) -> None:
    """Who asks for notes when there are none has its answer when a server dies, and not before."""
    kept = keeper.serve("a", limit_bytes=MIB)
    told: list[dict[str, Any]] = []
    listener = threading.Thread(target=lambda: told.append(keeper.call("notes", after=0)))
    listener.start()
    eventually(lambda: keeper.call("hello")["ok"], what="others are answered meanwhile")
    waiting = listener.is_alive()
    os.kill(kept.pid, signal.SIGKILL)
    listener.join(20)

    assert waiting
    assert [(n["what"], n["mount_id"]) for n in told[0]["notes"]] == [("replaced", "a")]
