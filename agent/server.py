"""A volume server as the agent knows it: a mount's, through all the processes that serve it one after another."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import trio

from agent.keeper import collect
from fusevol.server.held import Held


class Server:
    """See above. For the trio loop."""

    def __init__(self, mount_id: str, pid: int, pidfd: int) -> None:
        """*pidfd* means this process and no later one of the same number; -1: it has ended, and there may be another
        one."""
        self.mount_id = mount_id
        self.pid = pid
        self.pidfd = pidfd
        self.restarts = 0
        """How many processes have followed the first."""
        self.stopping = False
        """Whether its end is wanted."""
        self.spare: Held | None = None
        """What another process needs to go on, for when this one and its keeper die together."""
        self.settled = trio.Event()
        """Set while it lives, and when it has ended for good."""
        self.gone = trio.Event()
        """Set when the process that was seen last has ended; a new one is made for the next."""
        self.ended = trio.Event()
        if pidfd >= 0:
            self.settled.set()

    def __repr__(self) -> str:
        return f"<Server {self.mount_id} pid={self.pid} stopping={self.stopping} ended={self.ended.is_set()}>"

    def lives(self) -> bool:
        """Whether the process that was seen last is there at this moment."""
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def kill(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def died(self) -> None:
        """The process has ended; whether there is another one is not known yet."""
        if self.pidfd >= 0:
            collect(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
            self.settled = trio.Event()
            self.gone.set()

    def goes_on(self, pid: int, pidfd: int) -> None:
        """Another process serves the mount."""
        self.pid, self.pidfd = pid, pidfd
        self.gone = trio.Event()
        self.settled.set()

    def close(self) -> None:
        """Let go of it."""
        self.died()
        self.keep(None)

    def keep(self, spare: Held | None) -> None:
        """Have *spare* in place of what was kept before."""
        if self.spare is not None:
            self.spare.close()
        self.spare = spare

    def end(self) -> None:
        """It has ended for good."""
        self.close()
        self.settled.set()
        self.ended.set()
