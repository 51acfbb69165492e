"""The agent's link to the keeper: finds it, starts it when there is none, and sees its end at once.

The keeper is a process of its own session and outlives the agent; the next agent finds it on its socket. Losing it
costs nothing that is mounted, so it is replaced without ceremony when it died and when it does not answer. Its volume
servers report to the new one. A keeper of another version, which an earlier agent has left, is upgraded: a new one of
the installed code takes over (:mod:`fusevol.keeper.taking`). If that fails, the old one is as good.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

import fusevol
from agent.launch import launch
from fusevol.errors import ConflictError, FusevolError, TimeoutExpiredError, UnavailableError
from fusevol.keeper import client, wire
from fusevol.server.held import Held

WAIT: Final = 20.0
"""Seconds that a request waits for a keeper to be there."""
END_TIMEOUT: Final = 5.0
_CALM: Final = 2.0
"""A keeper that lived for so many seconds is replaced at once when it ends; one that did not, after a pause."""
_PAUSES: Final = (0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before the next start, after so many short lives in a row, if no understudy goes on. A volume whose
server died, too, waits for it."""

_SILENT: Final = 4
"""So many failed starts in a row are told, the last as a warning."""
_ANOTHER: Final = 0.2
"""Seconds between two looks for a keeper that somebody else starts."""
_MOVE_AGAIN: Final = (2.0, 600.0)
"""Seconds until mounts that could not be moved to this version are tried again: at first, and at most."""
_NOBODY: Final = (
    "No keeper is there, and the configuration says that this agent starts none: see that `fusevol keeper` runs."
)
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


class Upgrade(NamedTuple):
    """What an upgrade has done."""

    before: str
    """The version that served the mounts before."""
    after: str
    moved: int
    """How many mounts."""


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

    def __init__(self, directory: Path, *, starts: bool = True, upgrades: bool = True, merge: bool = False) -> None:
        """Without *starts* a keeper is what somebody else starts and replaces (:mod:`agent.keeping`). *upgrades*: one
        that is found and of another version is replaced. *merge*: see :func:`agent.launch.launch`."""
        self._directory = directory
        self._starts = starts
        self._merge = merge
        self._living: KeeperInfo | None = None
        self._here = trio.Event()
        """Set when a keeper is there, and once when one could not be started."""
        self._trouble = ""
        self._upgrading = trio.Lock()
        self._tried = not (starts and upgrades)
        """Whether an old keeper was found and an upgrade tried."""

    def __repr__(self) -> str:
        return f"<KeeperLink {self._directory} living={self._living}>"

    @property
    def living(self) -> KeeperInfo | None:
        """The keeper that is there now."""
        return self._living

    async def there(self) -> KeeperInfo:
        """The keeper, as soon as there is one."""
        while self._living is None:
            await self._here.wait()
        return self._living

    async def run(self) -> None:
        """Have a living keeper, for ever."""
        async with trio.open_nursery() as nursery:
            await self._keep(nursery)

    async def _keep(self, nursery: trio.Nursery) -> None:
        short_lives = 0
        while True:
            began = trio.current_time()
            try:
                found = await self._found()
                if found is None and not self._starts:
                    raise UnavailableError(_NOBODY)
                if found is None:
                    await trio.sleep(_PAUSES[min(short_lives, len(_PAUSES)) - 1] if short_lives else 0)
                    began = trio.current_time()
                    found = await self._launched()
            except (FusevolError, OSError) as e:
                if not self._starts:  # whoever wants one waits a little for it
                    self._trouble = str(e)
                    await trio.sleep(_ANOTHER)
                    continue
                self._trouble = f"The keeper cannot be started: {e}"
                # at first it may be one that a killed agent had started, or an understudy that is about to answer
                if short_lives < _SILENT:
                    log.log(logging.WARNING if short_lives == _SILENT - 1 else logging.INFO, "%s", self._trouble)
                self._here.set()
                self._here = trio.Event()
            else:
                await self._follow(found, nursery)
                if self._upgrading.locked() or not self._starts:
                    log.info("The keeper (pid %d) has handed over, or ended; another one is there soon.", found.pid)
                    began = -math.inf  # that is no short life
                else:
                    log.warning("The keeper (pid %d) ended; it is replaced, its volume servers live on.", found.pid)
            short_lives = 0 if trio.current_time() - began > _CALM else short_lives + 1

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
            except (OSError, ValueError) as e:
                log.info("The keeper tells no more: %s", e)
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

    async def upgrade(self) -> Upgrade:
        """Have all mounts served by the code that is installed now, whatever its version.

        Raises :class:`UnavailableError` with the reason when that cannot be: all is as it was then. Raises
        :class:`ConflictError` while another upgrade goes on.
        """
        if not self._starts:
            raise ConflictError(
                "The keeper is not this agent's: start a `fusevol keeper` of the new version, which takes over from it."
            )
        before = self._living
        if before is None:
            raise UnavailableError(self._trouble or "No keeper is there to be replaced: try again.")
        if self._upgrading.locked():
            raise ConflictError("An upgrade is going on already: wait for it.")
        async with self._upgrading:
            try:
                launched = await launch(self._directory, take_over=True, merge=self._merge)
            except UnavailableError as e:
                raise UnavailableError(f"The mounts stay with version {before.version}: {e}") from e
            await before.ended.wait()
            while self._living is None:
                await self._here.wait()
            after = self._living.version
        log.info("Moved %d mounts from version %s to %s.", launched.moved, before.version, after)
        return Upgrade(before.version, after, launched.moved)

    async def _upgrade_found(self, found: KeeperInfo) -> None:
        """Move the mounts of *found*; if that cannot be now (a storage may hang for a moment), then later.

        A reason is told once, until there is another.
        """
        log.info("The keeper (pid %d) is of version %s: its mounts are moved.", found.pid, found.version)
        pause, told = _MOVE_AGAIN[0], ""
        while not found.ended.is_set():
            try:
                await self.upgrade()
            except ConflictError:
                pass  # somebody has asked for one
            except FusevolError as e:
                if str(e) != told:
                    log.warning("%s", e)
                told = str(e)
            with trio.move_on_after(pause):
                await found.ended.wait()
            pause = min(2 * pause, _MOVE_AGAIN[1])

    async def _found(self) -> KeeperInfo | None:
        """The keeper that an earlier agent started, or that took over; unless we do not understand each other."""
        try:
            found, protocol = await self._hello()
        except UnavailableError:
            return None
        if protocol == wire.PROTOCOL:
            log.info("Found the keeper (pid %d).", found.pid)
            return found
        if not self._starts:
            os.close(found.pidfd)
            raise UnavailableError(
                f"The keeper (pid {found.pid}) is of version {found.version}, which this agent does not understand: "
                "start a `fusevol keeper` of its own version."
            )
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
        self._tried = True  # it is of the code that is installed
        launched = await launch(self._directory, merge=self._merge)
        log.info("Started the keeper (pid %d).", launched.pid)
        found, _ = await self._hello()
        return found

    async def _follow(self, found: KeeperInfo, nursery: trio.Nursery) -> None:
        """Until *found* has ended."""
        self._living = found
        self._trouble = ""
        self._here.set()
        if found.version != fusevol.__version__ and not self._tried:
            nursery.start_soon(self._upgrade_found, found)
        self._tried = True
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
