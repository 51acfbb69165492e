"""What an agent says to systemd."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import Agent
from tests.support.logs import LogCheck

pytestmark = pytest.mark.root


class Manager:
    """The socket of a service manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hears(self, seconds: float = 30.0) -> str:
        """The next thing that is said; empty if nothing is within *seconds*."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return ""

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


@pytest.fixture
def manager(workdir: Path) -> Iterator[Manager]:
    """A service manager."""
    running = Manager(workdir / "notify")
    try:
        yield running
    finally:
        running.close()


def test_an_agent_says_that_it_lives(workdir: Path, logs: LogCheck, manager: Manager) -> None:
    """Ready, then a sign of life in time again and again, none while it hangs, and at last that it ends."""
    agent = Agent(workdir, logs, {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"})
    try:
        process = agent.launch()
        said = [manager.hears()] + [manager.hears(1.0) for _ in range(4)]
        process.send_signal(signal.SIGSTOP)
        while manager.hears(0.1):  # what was under way
            pass
        hanging = manager.hears(1.5)
        process.send_signal(signal.SIGCONT)
        again = manager.hears()
        process.terminate()
        last = [manager.hears() for _ in range(3)]
        assert process.wait(20) == 0
    finally:
        agent.close()

    assert said == ["READY=1", *["WATCHDOG=1"] * 4]
    assert hanging == ""
    assert again == "WATCHDOG=1"
    assert "STOPPING=1" in last


def test_an_agent_that_is_not_asked_says_nothing_of_its_life(workdir: Path, logs: LogCheck, manager: Manager) -> None:
    """Signs of life are for the process that they are asked of: not without a watchdog, nor with another one's."""
    agent = Agent(workdir, logs, {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"})
    try:
        agent.launch()
        first, second = manager.hears(), manager.hears(1.0)
    finally:
        agent.close()

    assert (first, second) == ("READY=1", "")
