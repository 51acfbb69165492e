"""Processes that make one request of the own mount, so that the kernel gives out requests that wait.

A process of their own, since nothing may wait for the server that is the server: killed with a thread that waits for
its own answer, it would never end, and its mount would be neither alive nor dead. And a request that is answered from
nothing (:meth:`Askers.has`): where the backing store hangs, one that asks it for anything would hang as well.
"""

from __future__ import annotations

import contextlib
import os
import resource


class Askers:
    """The processes that ask at *mountpoint*. For one thread, but for :meth:`has`."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._pids: set[int] = set()

    def has(self, pid: int) -> bool:
        """Whether a STATFS of process *pid* is one of ours, and wants no true answer. For any thread."""
        return pid in self._pids

    def ask(self, cpu: int) -> None:
        """Make a request, on *cpu*. Does not wait for its answer. Raises ``OSError`` if no process can be started."""
        reader, writer = os.pipe()
        try:
            pid = os.fork()
            if pid == 0:
                self._child(reader, cpu)
            self._pids.add(pid)  # it asks when it sees the pipe's end: by then it is known
        finally:
            os.close(reader)
            os.close(writer)

    def _child(self, reader: int, cpu: int) -> None:
        try:
            os.dup2(reader, 3)
            # above all /dev/fuse, which would keep the connection of a dead server alive
            os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            os.read(3, 1)
            os.sched_setaffinity(0, {cpu})
            os.statvfs(self._mountpoint)
        finally:
            os._exit(0)

    def collect(self) -> None:
        """Let go of those that have their answer."""
        for pid in list(self._pids):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._pids.discard(pid)
