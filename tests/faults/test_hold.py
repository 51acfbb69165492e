"""Requests held up for a moment, so that what is copied meanwhile is one moment in time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.support import eventually, transports
from tests.support.servers import VolumeServer

pytestmark = pytest.mark.root


@pytest.fixture(params=["kernel", "io_uring", "pyfuse3"])
def server(request: pytest.FixtureRequest, volume_server: StartServer) -> VolumeServer:
    """A volume whose kernel caches nothing, so that every system call reaches the server."""
    return volume_server(cache="none", quota="ledger", **transports.fields(request.param))


class Writers:
    """Threads that write a pair of files, each pair the same, and count."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stop = threading.Event()
        self.counts = [0] * 4
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(len(self.counts))]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        while not self._stop.is_set():
            count = self.counts[number] + 1
            (self._root / f"{number}.a").write_text(str(count))
            (self._root / f"{number}.b").write_text(str(count))
            self.counts[number] = count

    def end(self) -> None:
        """Stop, and wait for it."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def writers(server: VolumeServer) -> Iterator[Writers]:
    """At work in the volume."""
    made = Writers(server.mountpoint)
    yield made
    made.end()


def state(server: VolumeServer) -> dict[str, bytes]:
    """What the backing directory has."""
    return {f.name: f.read_bytes() for f in server.source.iterdir()}


def test_nothing_changes_while_requests_are_held_up(server: VolumeServer, writers: Writers) -> None:
    """All writers stand still between the two answers, and go on afterwards, having noticed nothing."""
    for _ in range(20):
        before = list(writers.counts)
        eventually(lambda: all(now > was for now, was in zip(writers.counts, before, strict=True)), 20.0)  # noqa: B023
        answer = server.call("hold", seconds=20)
        assert answer["held"] is True
        first = state(server)
        counts = list(writers.counts)
        threading.Event().wait(0.02)  # a chance to do what must not be done
        assert state(server) == first
        # what was answered just before may be counted after it
        assert all(now <= was + 1 for now, was in zip(writers.counts, counts, strict=True))
        assert server.call("release")["held"] is True
    writers.end()
    assert {k: v for k, v in state(server).items() if k.endswith(".b")} == {
        f"{n}.b": str(count).encode() for n, count in enumerate(writers.counts)
    }


def test_a_hold_ends_by_itself(server: VolumeServer, writers: Writers) -> None:
    """Whoever asked for it may have died; and who asks for its end learns that it was over."""
    assert server.call("hold", seconds=0.2)["held"] is True
    before = list(writers.counts)
    eventually(lambda: all(now > was for now, was in zip(writers.counts, before, strict=True)), 20.0)
    assert server.call("release")["held"] is False


def test_one_at_a_time(server: VolumeServer, writers: Writers) -> None:
    """A second hold is refused and leaves the first one as it is; nonsense is refused."""
    assert server.call("hold", seconds=20)["held"] is True
    assert server.call("hold", seconds=20)["held"] is False
    assert server.call("release")["held"] is True
    assert server.call("release")["held"] is False
    for wrong in (0, -1, 1000, "5", None):
        assert server.call("hold", seconds=wrong)["ok"] is False


def test_the_end_of_a_server_ends_a_hold(server: VolumeServer) -> None:
    """Ending it waits for nobody who waits for it: who was held up gets an answer, or an error."""
    file = server.mountpoint / "f"
    waiting = threading.Thread(target=_try_to_write, args=(file,))
    assert server.call("hold", seconds=60)["held"] is True
    waiting.start()
    server.signal(signal.SIGTERM)
    server.wait(20)
    waiting.join(20)
    assert not waiting.is_alive()


def _try_to_write(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.write_text("x")
