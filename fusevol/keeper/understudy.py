"""A process that waits for the keeper's end, and is the next keeper at once.

A keeper takes a quarter of a second to start, and a mount whose server died together with its keeper would hang for so
long. So a keeper forks an understudy before it opens anything, of the same image, and gives it the socket that it
listens on: who connects when the keeper has died waits in the queue of that socket until the understudy has come on. It
forks one of its own first.

Keepers that die one after the other, each within moments, are not followed without end: the last one leaves that to the
agent, which takes its time.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from fusevol.keeper import title

_CALM: Final = 2.0
"""A keeper that lived for so many seconds has not died of what it began with."""
_SHORT_LIVES: Final = 5
"""After so many in a row that were shorter there is no understudy."""


class Understudy:
    """The understudy of this process."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        """Our child."""
        self.pidfd = os.pidfd_open(pid)
        self._line = line

    def __repr__(self) -> str:
        return f"<Understudy pid={self.pid}>"

    def learn(self, listener: socket.socket) -> None:
        """Give it what clients connect to; it takes this process's place from now on. Raises ``OSError``."""
        socket.send_fds(self._line, [b"listener"], [listener.fileno()])

    def dismiss(self) -> None:
        """End it; before an end that is meant."""
        os.kill(self.pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Take note of its end."""
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self._line.close()


class Role(NamedTuple):
    """What a process is to do that has become the keeper."""

    listener: socket.socket | None
    """What the keeper before listened on."""
    understudy: Understudy | None


def rehearse(forked: Callable[[], object]) -> Role:
    """Fork an understudy. Returns at once in this process; and in the understudy, which calls *forked* first, when its
    time has come. If that never comes, it ends. Raises ``OSError``."""
    listener: socket.socket | None = None
    short_lives = 0
    while short_lives < _SHORT_LIVES:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper = os.pidfd_open(os.getpid())
        began = time.monotonic()
        pid = os.fork()
        if pid:
            its.close()
            os.close(keeper)
            title.name(title.KEEPER)
            return Role(listener, Understudy(pid, ours))
        forked()
        title.name(title.UNDERSTUDY)
        ours.close()
        if listener is not None:
            listener.close()
        listener = _wait(keeper, its)
        os.close(keeper)
        its.close()
        short_lives = 0 if time.monotonic() - began > _CALM else short_lives + 1
    title.name(title.KEEPER)
    return Role(listener, None)


def _wait(keeper: int, line: socket.socket) -> socket.socket:
    """Wait for the end of the process behind the pidfd *keeper*; what it listened on. If it never did, it has failed,
    and said so: then this process ends."""
    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    poll.poll()
    line.setblocking(False)
    try:
        _, received, _, _ = socket.recv_fds(line, 16, 1)
    except BlockingIOError:
        received = []
    if not received:
        os._exit(0)
    os.set_inheritable(received[0], False)
    return socket.socket(fileno=received[0])
