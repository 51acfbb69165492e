"""A keeper that takes over from a living one, and has the mounts served by its own code: an upgrade without a pause.

One mount after the other: the old keeper has its server finish what it has begun and leave; this one starts a server on
what is left, and looks whether it answers: a request through the mount, and its status. If it does not, it is ended,
and the old keeper goes on with a server of the old code; so it is with all that were moved before, and nothing has
happened but pauses. What the old code needs for that is still there, since a session memory keeps its layout for as
long as its mount lives.

It all happens on one connection. The requests are made one after the other, while the loop goes on: whatever happens to
a server that was moved already is dealt with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fusevol import __version__
from fusevol.errors import FusevolError, UnavailableError
from fusevol.keeper import client, wire
from fusevol.keeper.door import RefusedError
from fusevol.keeper.giving import LEAVE
from fusevol.keeper.loop import Loop
from fusevol.keeper.mounts import Mount
from fusevol.keeper.servers import Servers
from fusevol.passing import receive
from fusevol.server.client import call
from fusevol.server.held import Held
from fusevol.server.memory import SessionMemory
from fusevol.server.spec import MountSpec
from fusevol.transport import mount as mount_table

log = logging.getLogger(__name__)

_START: Final = 5.0
"""Seconds in which a new server must be ready."""
_CHECK: Final = 5.0
"""Seconds in which it must answer all that it is asked."""
_LATER: Final = 0.1

Said = Callable[[str], object]


class _OverError(Exception):
    """The old keeper has ended."""


class Taking:
    """See above. *said* hears how far it is, in lines for the ready pipe."""

    def __init__(self, directory: Path, loop: Loop, servers: Servers, said: Said) -> None:
        self._loop = loop
        self._servers = servers
        self._said = said
        self._directory = directory
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._answer: tuple[wire.Message, list[int]] | None = None
        self._moved: list[Mount] = []

    def run(self) -> tuple[socket.socket, list[wire.Message]]:
        """Take over; returns what listens on the keeper's socket, and the notes that nobody has heard yet, when the old
        keeper has ended.

        Raises :class:`UnavailableError` with the reason when it cannot: nothing has changed then.
        """
        answer, received = client.call(self._directory, {"op": "hello"})
        old = received[0]
        if answer["protocol"] != wire.PROTOCOL:
            raise UnavailableError(
                f"The keeper of version {answer['version']} cannot hand its mounts over: unmount them first."
            )
        try:
            self._connection.connect(os.fspath(wire.socket_path(self._directory)))
            self._connection.setblocking(False)
            self._loop.watch(self._connection.fileno(), self._receive)
            me = os.pidfd_open(os.getpid())
            self._ask({"op": "take-over"}, [me])
            os.close(me)
            self._said("MOVED 0")
            ended_with = self._all()
        except _OverError:
            raise UnavailableError(
                "The old keeper ended while it was replaced: its servers find another one."
            ) from None
        self._loop.unwatch(self._connection.fileno())
        ended: list[bool] = []
        self._loop.watch(old, lambda: ended.append(True))
        self._until(lambda: bool(ended), None)
        self._loop.unwatch(old)
        os.close(old)
        self._connection.close()
        return ended_with

    def _all(self) -> tuple[socket.socket, list[wire.Message]]:
        """Move every mount; all or none."""
        try:
            for name in self._names():
                self._look_at(name)
            while True:
                for name in self._names():
                    self._move(name)
                answer, received = self._ask({"op": "commit"})
                if not answer.get("more"):
                    return socket.socket(fileno=received[0]), answer["notes"]
                self._wait(_LATER)
        except FusevolError:
            for mount in reversed(self._moved):
                self._give_back(mount)
            raise

    def _names(self) -> list[str]:
        """The mounts that are still the old keeper's."""
        ours = {mount.mount_id for mount in self._servers.mounts}
        found, after = [], ""
        while True:
            answer, _ = self._ask({"op": "list", "after": after})
            found += [server["mount_id"] for server in answer["servers"]]
            if not answer["more"]:
                return [name for name in found if name not in ours]
            after = found[-1]

    def _look_at(self, name: str) -> None:
        """Raise :class:`UnavailableError` if the mount cannot be served by this code."""
        answer, received = self._ask({"op": "find", "mount_id": name})
        try:
            if "minor" in answer:
                left = received[1:] if answer["pid"] is not None else received
                SessionMemory.check(Held.of(answer["minor"], left).session)
        except UnavailableError as e:
            raise UnavailableError(f"The mount {name} cannot be moved to version {__version__}. {e}") from e
        finally:
            for descriptor in received:
                os.close(descriptor)

    def _move(self, name: str) -> None:
        self._look_at(name)
        answer, received = self._ask({"op": "give", "mount_id": name}, seconds=LEAVE + 2)
        if answer.get("gone") or answer.get("later"):
            return
        held = Held.of(answer["minor"], received)
        mount = Mount(name, answer["spec"], answer["log"], held=held, restarts=answer["restarts"])
        ended: list[bool] = []
        mount.heir = lambda: ended.append(True)
        try:
            self._servers.adopt(mount)
        except RefusedError as e:
            held.close()
            self._ask({"op": "back", "mount_id": name})
            raise UnavailableError(str(e)) from e
        self._until(lambda: bool(ended) or mount.state == "serving", _START)
        if mount.held is None:
            self._ask({"op": "back", "mount_id": name})
            return  # unmounted meanwhile
        why = self._trouble(mount)
        if why:
            self._give_back(mount)
            raise UnavailableError(f"The mount {name} stays with the old version: {why}")
        mount.heir = None
        self._moved.append(mount)
        assert mount.server is not None  # noqa: S101  # without one there is trouble
        took = {"op": "took", "mount_id": name, "pid": mount.server.pid, "ms": mount.pause, "version": __version__}
        self._ask(took, [mount.server.pidfd])
        self._said(f"MOVED {len(self._moved)}")

    def _trouble(self, mount: Mount) -> str:
        """Why the new server of *mount* cannot be trusted; empty if it can."""
        if mount.server is None:
            return mount.words or f"the new server ended at once; see {mount.log}."
        if mount.state != "serving":
            return f"the new server was not ready within {_START:g} s."
        pid = os.fork()
        if pid == 0:
            _check(mount)
        pidfd = os.pidfd_open(pid)
        ended: list[bool] = []
        self._loop.watch(pidfd, lambda: ended.append(True))
        if not self._until(lambda: bool(ended) or mount.server is None, _CHECK):
            os.kill(pid, signal.SIGKILL)  # it dies when the old code has answered what it waits for
        self._loop.unwatch(pidfd)
        os.close(pidfd)
        if mount.server is None:
            return f"the new server ended when it was asked; see {mount.log}."
        if not ended:
            return f"the new server did not answer within {_CHECK:g} s."
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return f"the new server failed the check; see {mount.log}." if status else ""

    def _give_back(self, mount: Mount) -> None:
        """Have the old keeper go on with *mount*."""
        ended: list[bool] = []
        self._servers.leave(mount, lambda: ended.append(True))
        if mount.held is not None and not self._until(lambda: bool(ended), LEAVE if mount in self._moved else 0):
            if mount.server is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(mount.server.pidfd, signal.SIGKILL)
            self._until(lambda: bool(ended), None)
        if mount.held is not None:
            self._servers.let_go(mount)
        self._ask({"op": "back", "mount_id": mount.mount_id})

    # -- waiting, while the loop goes on ------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool], seconds: float | None) -> bool:
        """Turn the loop until *done*; whether it is, before so many *seconds* are over."""
        late: list[bool] = []
        timer = self._loop.later(seconds, lambda: late.append(True)) if seconds is not None else None
        while not done() and not late:
            self._loop.turn()
        if timer is not None:
            timer.cancel()
        return done()

    def _wait(self, seconds: float) -> None:
        self._until(lambda: False, seconds)

    def _ask(
        self, request: wire.Message, descriptors: list[int] | None = None, seconds: float = 10.0
    ) -> tuple[wire.Message, list[int]]:
        """One request to the old keeper. Raises :class:`UnavailableError` when it refuses or does not answer."""
        self._answer = None
        try:
            socket.send_fds(self._connection, [wire.encode(request)], descriptors or [])
        except OSError as e:
            raise _OverError from e
        if not self._until(lambda: self._answer is not None, seconds):
            raise UnavailableError(f"The old keeper did not answer within {seconds:g} s.")
        assert self._answer is not None  # noqa: S101  # waited for
        answer, received = self._answer
        if not answer.get("ok"):
            raise UnavailableError(str(answer.get("error")))
        return answer, received

    def _receive(self) -> None:
        try:
            data, received = receive(self._connection, wire.LIMIT + 1, wire.DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError as e:
            raise _OverError from e
        if not data:
            raise _OverError
        self._answer = wire.decode(data), received


def _check(mount: Mount) -> None:
    """In a process of its own, which may hang: ask the mount and its server, and end with 0 if both answer."""
    status = 1
    try:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # a process that hangs must not keep a connection alive
        spec = MountSpec.load(Path(mount.spec))
        found = mount_table.find(spec.mountpoint)
        assert mount.server is not None  # noqa: S101
        assert mount.held is not None  # noqa: S101
        if found is not None and found.is_fuse and found.minor == mount.held.minor:
            os.statvfs(spec.mountpoint)  # never answered by the kernel itself
        told = call(Path(spec.control), {"op": "status"}, _CHECK)
        status = 0 if told.get("pid") == mount.server.pid and told.get("version") == __version__ else 1
    finally:
        os._exit(status)
