"""The agent's link to the keeper: finds it, starts it when there is none, and sees its end at once.

The keeper is a process of its own session and outlives the agent; the next agent finds it on its socket. Losing it
costs nothing that is mounted, so it is replaced without ceremony when it died, when it is of another version than this
agent, and when it does not answer. Its volume servers report to the new one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

import fusevol
from fusevol.errors import FusevolError, TimeoutExpiredError, UnavailableError
from fusevol.keeper import client, wire
from fusevol.server.held import Held

START_TIMEOUT: Final = 20.0
"""Seconds that a new keeper may take until it listens."""
WAIT: Final = 20.0
"""Seconds that a request waits for a keeper to be there."""
END_TIMEOUT: Final = 5.0
_READY: Final = 3
"""The ready pipe's descriptor in a new keeper."""
_CALM: Final = 2.0
"""A keeper that lived for so many seconds is replaced at once when it ends; one that did not, after a pause."""
_PAUSES: Final = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before the next start, after so many short lives in a row."""

_DEAF: Final = 1.0
"""Seconds before a living keeper that hung up is listened to again."""

Hear = Callable[[wire.Message], Awaitable[object]]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class KeeperInfo:
    """A keeper that was seen alive."""

    pid: int
    version: str
    pidfd: int
    ended: trio.Event = field(default_factory=trio.Event)


class Kept(NamedTuple):
    """What the keeper knows of a mount at this moment."""

    state: str
    """``serving``, or ``starting`` or ``waiting`` for the next server (fusevol.keeper.mounts)."""
    pid: int
    pidfd: int
    """-1 when no server lives."""
    restarts: int
    held: Held | None
    """What the next server needs to go on; copies."""

    def close(self) -> None:
        """Let go of all of it."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if self.held is not None:
            self.held.close()


class KeeperLink:
    """The keeper of *directory*. For the trio loop; :meth:`run` must be running."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._living: KeeperInfo | None = None
        self._here = trio.Event()
        """Set when a keeper is there, and once when one could not be started."""
        self._trouble = ""

    def __repr__(self) -> str:
        return f"<KeeperLink {self._directory} living={self._living}>"

    @property
    def living(self) -> KeeperInfo | None:
        """The keeper that is there now."""
        return self._living

    async def run(self) -> None:
        """Have a living keeper, for ever."""
        short_lives = 0
        while True:
            began = trio.current_time()
            try:
                found = await self._found() or await self._launched()
            except (FusevolError, OSError) as e:
                self._trouble = f"The keeper cannot be started: {e}"
                if short_lives == 0:
                    log.warning("%s", self._trouble)
                self._here.set()
                self._here = trio.Event()
            else:
                await self._follow(found)
                log.warning("The keeper (pid %d) ended; it is replaced, its volume servers live on.", found.pid)
            short_lives = 0 if trio.current_time() - began > _CALM else short_lives + 1
            await trio.sleep(_PAUSES[min(short_lives, len(_PAUSES)) - 1] if short_lives else 0)

    async def call(
        self, request: wire.Message, descriptors: Sequence[int] = (), seconds: float = 10.0
    ) -> tuple[wire.Message, list[int]] | None:
        """One request, as :func:`fusevol.keeper.client.call`; waits for a keeper first if there is none.

        None when the keeper ended before it answered: it may have carried the request out, and will not do so later.
        One that does not answer is ended. Raises :class:`UnavailableError` when there is no keeper to ask.
        """
        if self._living is None:
            with trio.move_on_after(WAIT):
                await self._here.wait()
        living = self._living
        if living is None:
            raise UnavailableError(self._trouble or "No keeper is there to start volume servers: try again.")
        try:
            return await trio.to_thread.run_sync(partial(client.call, self._directory, request, descriptors, seconds))
        except TimeoutExpiredError as e:
            log.warning("%s This is done now.", e)
            if not living.ended.is_set():
                signal.pidfd_send_signal(living.pidfd, signal.SIGKILL)
        except UnavailableError as e:
            log.info("%s", e)
        with trio.move_on_after(END_TIMEOUT, shield=True):
            await living.ended.wait()
        return None

    async def find(self, mount_id: str) -> Kept | None:
        """What the keeper knows of a mount; None when it does not know it. The descriptors are the caller's.

        Raises :class:`UnavailableError` when there is no keeper to ask.
        """
        while (answered := await self.call({"op": "find", "mount_id": mount_id})) is None:
            pass  # it ended: the next one is asked
        answer, descriptors = answered
        if not answer.get("known"):
            return None
        pidfd = descriptors.pop(0) if answer["pid"] is not None else -1
        held = Held.of(answer["minor"], descriptors) if "minor" in answer else None
        return Kept(answer["state"], answer["pid"] or 0, pidfd, answer["restarts"], held)

    async def listen(self, hear: Hear, lost: Callable[[], object]) -> None:
        """Call *hear* with each note of what happens to servers (fusevol.keeper.notes), and *lost* whenever the keeper
        that told them ends; for ever. Begins with what no agent has heard yet."""
        while True:
            living = self._living
            if living is None:
                await self._here.wait()
                continue
            try:
                await self._listen(hear)
            except OSError as e:
                log.info("The keeper tells no more: %s", e.strerror)
            with trio.move_on_after(_DEAF):
                await living.ended.wait()
            lost()

    async def _listen(self, hear: Hear) -> None:
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET) as connection:
            await connection.connect(os.fspath(wire.socket_path(self._directory)))
            heard = 0
            while True:
                await connection.send(wire.encode({"op": "notes", "after": heard}))
                data = await connection.recv(wire.LIMIT + 1)
                notes = wire.decode(data).get("notes") if data else None
                if not notes:
                    return
                for note in notes:
                    await hear(note)
                    heard = note["serial"]

    async def _found(self) -> KeeperInfo | None:
        """The keeper that an earlier agent started, unless it is of another version."""
        try:
            found, protocol = await self._hello()
        except UnavailableError:
            return None
        if (protocol, found.version) == (wire.PROTOCOL, fusevol.__version__):
            log.info("Found the keeper (pid %d).", found.pid)
            return found
        log.info("The keeper (pid %d) is of version %s: it is replaced.", found.pid, found.version)
        try:
            with contextlib.suppress(FusevolError):
                await trio.to_thread.run_sync(partial(client.call, self._directory, {"op": "shutdown"}))
            with trio.move_on_after(END_TIMEOUT) as waited:
                await trio.lowlevel.wait_readable(found.pidfd)
            if waited.cancelled_caught:
                signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)
                with trio.move_on_after(END_TIMEOUT):
                    await trio.lowlevel.wait_readable(found.pidfd)
        finally:
            os.close(found.pidfd)
        return None

    async def _hello(self) -> tuple[KeeperInfo, object]:
        answer, descriptors = await trio.to_thread.run_sync(client.call, self._directory, {"op": "hello"})
        if len(descriptors) != 1:
            raise UnavailableError(f"What listens on {wire.socket_path(self._directory)} is no keeper: end it.")
        return KeeperInfo(int(answer["pid"]), str(answer["version"]), descriptors[0]), answer["protocol"]

    async def _launched(self) -> KeeperInfo:
        """A new keeper, which listens already."""
        reader, writer = os.pipe()
        async with trio.lowlevel.FdStream(reader) as ready:
            try:
                pid = await trio.to_thread.run_sync(self._spawn, writer)
            finally:
                os.close(writer)
            try:
                with trio.fail_after(START_TIMEOUT):
                    said = (await ready.receive_some(4096)).decode(errors="replace").strip()
                if said != "READY":
                    sentence = said.removeprefix("ERROR ")
                    raise UnavailableError(sentence or f"it ended at once: see {self._directory}/keeper.log.")  # noqa: TRY301
                found, _ = await self._hello()
            except BaseException as e:
                os.kill(pid, signal.SIGKILL)  # our child until it is waited for: the number means no other process
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(os.waitpid, pid, 0)
                if isinstance(e, trio.TooSlowError):
                    raise UnavailableError(f"it did not listen within {START_TIMEOUT:g} s.") from e
                raise
        log.info("Started the keeper (pid %d).", pid)
        return found

    def _spawn(self, writer: int) -> int:
        """Start the process. Not by subprocess, which wants its children to end before their parent."""
        log_file = os.fspath(self._directory / "keeper.log")
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "fusevol.keeper", "--dir", os.fspath(self._directory), "--ready-fd", str(_READY)],
            {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, writer, _READY),
            ],
            setsid=True,
        )

    async def _follow(self, found: KeeperInfo) -> None:
        """Until *found* has ended."""
        self._living = found
        self._trouble = ""
        self._here.set()
        try:
            await trio.lowlevel.wait_readable(found.pidfd)
        finally:
            self._living = None
            self._here = trio.Event()
            found.ended.set()
            collect(found.pidfd)
            os.close(found.pidfd)


def collect(pidfd: int) -> None:
    """Take the exit status of an ended process if it is our child, so that it does not stay as a zombie.

    A keeper is, if this agent started it; and to the first process of a container, so are servers whose keeper died.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
