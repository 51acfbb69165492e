"""A process that waits for the keeper's end, and is the next keeper at once.

A keeper takes a quarter of a second to start, and a mount whose server died together with its keeper would hang for so
long. So a keeper forks an understudy before it opens anything, of the same image, and gives it the socket that it
listens on: who connects when the keeper has died waits in the queue of that socket until the understudy has come on. It
forks one of its own first.

A keeper whose understudy has died cannot fork another, since it has much that is open by then: it starts a new process,
which makes the image again.

Keepers that die one after the other, each within moments, are not followed without end: the last one takes its time
before it starts an understudy, and until then the next keeper is the agent's to start.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

from fusevol.keeper import title
from fusevol.passing import receive

CALM: Final = 2.0
"""A keeper, or an understudy, that lived for so many seconds has not died of what it began with."""
_SHORT_LIVES: Final = 5
"""After so many in a row that were shorter there is no understudy."""
_PAUSE_MOST: Final = 60.0


class Understudy:
    """The understudy of this process."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        """Our child."""
        self.pidfd = os.pidfd_open(pid)
        self._line = line
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"<Understudy pid={self.pid}>"

    @classmethod
    def start(cls, directory: Path, *, merge: bool = False) -> Self:
        """A new process as the understudy of the keeper of *directory*, which is this one. Raises ``OSError``."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper = os.pidfd_open(os.getpid())
        try:
            os.set_inheritable(keeper, True)
            its.set_inheritable(True)
            post = (*["--merge"] * merge, "--keeper-fd", str(keeper), "--line-fd", str(its.fileno()))
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "fusevol.keeper", "--dir", os.fspath(directory), "--understudy", *post],
                {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                setsigmask=(),
            )
        except OSError:
            ours.close()
            raise
        finally:
            os.close(keeper)
            its.close()
        return cls(pid, ours)

    @property
    def lived(self) -> float:
        """Seconds since it came to be."""
        return time.monotonic() - self._began

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


def pause(short_lives: int) -> float:
    """Seconds until another understudy is started, after so many in a row that lived for moments only."""
    return min(_PAUSE_MOST, 0.25 * 2 ** min(short_lives, 10)) if short_lives else 0.0


class Post(NamedTuple):
    """Where an understudy waits."""

    keeper: int
    """The pidfd of the process whose place it takes."""
    line: socket.socket
    """By which it is given the socket of the directory."""

    @classmethod
    def of(cls, keeper: int, line: int) -> Self:
        """By inherited descriptors, which no child shall inherit. Raises ``OSError``."""
        os.set_inheritable(keeper, False)
        os.set_inheritable(line, False)
        return cls(keeper, socket.socket(fileno=line))

    def wait(self) -> socket.socket:
        """Wait for the keeper's end; what that listened on. If it never did, it has failed, and said so: then this
        process ends."""
        title.name(title.UNDERSTUDY)
        poll = select.poll()
        poll.register(self.keeper, select.POLLIN)
        poll.poll()
        self.line.setblocking(False)
        try:
            _, received = receive(self.line, 16, 1)
        except BlockingIOError:
            received = []
        if not received:
            os._exit(0)
        os.close(self.keeper)
        self.line.close()
        return socket.socket(fileno=received[0])


def rehearse(forked: Callable[[], object], post: Post | None = None) -> Role:
    """Fork an understudy. Returns at once in this process; and in the understudy, which calls *forked* first, when its
    time has come. If that never comes, it ends. A process that has a *post* is an understudy itself to begin with.
    Raises ``OSError``."""
    listener = post.wait() if post is not None else None
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
        ours.close()
        if listener is not None:
            listener.close()
        listener = Post(keeper, its).wait()
        short_lives = 0 if time.monotonic() - began > CALM else short_lives + 1
    title.name(title.KEEPER)
    return Role(listener, None)
