"""Starts volume servers, knows which ones live, and tells when one dies for good.

The rest of the agent sees :class:`Supervisor` only. :class:`KeeperSupervisor` has the keeper fork each server
(:mod:`fusevol.keeper`). A server outlives the agent and the keeper: its control socket and its log are in the runtime
directory, where the next agent finds and adopts it. A death is noticed through a pidfd, which also works for a
process that is not our child. The keeper then says whether another process goes on in its place, which users of the
mount do not notice; only when none does is the mount dead, and has to be made again.

When a keeper dies while it starts a server, the ready pipe is the truth: the server has the only write end that is
left, so the pipe's end means that there is none and the next keeper may be asked; otherwise the first line names it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import trio

from agent import strangers
from agent.control import call
from agent.following import Following, Tell, no_tell, take
from agent.keeper import KeeperInfo, KeeperLink, Upgrade
from agent.ready import Progress, ReadyPipe
from agent.server import Server
from agent.steps import Step, no_step
from fusevol.errors import ConflictError, TimeoutExpiredError, UnavailableError
from fusevol.server.memory import counted
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from fusevol.usage import Usage

Obj = dict[str, Any]
ATTEMPTS = 5
"""How many keepers in a row may die while they start one server."""
STOP_TIMEOUT = 30.0
GRACE = 5.0
"""Seconds that other mount namespaces may hold on to a volume that is unmounted everywhere here."""
END_TIMEOUT = 5.0
ADOPT_TIMEOUT = 5.0
"""Seconds that a server of an earlier agent may take to answer."""

_MUTE = "The volume server of %s (pid %d) did not answer; it has been ended."

log = logging.getLogger(__name__)


class Supervisor(Protocol):
    """What the agent needs of whoever runs the volume servers."""

    @property
    def servers(self) -> dict[str, Server]:
        """The living servers by mount id."""

    @property
    def keeper(self) -> KeeperInfo | None:
        """The living keeper, which starts them."""

    async def start(self, spec: MountSpec, progress: Progress | None = None) -> Server:
        """Have *spec* mounted. Raises :class:`UnavailableError` with the server's sentence when it cannot."""

    async def adopt(self) -> None:
        """Take over the servers that an earlier agent started; end those that do not answer."""

    async def stop(self, mount_id: str, *, lazy: bool = False) -> None:
        """Unmount and end a server; nothing to do if there is none. Raises :class:`ConflictError` when it is busy."""

    async def upgrade(self) -> Upgrade:
        """Have all volumes served by the code that is installed now. Raises :class:`UnavailableError`; nothing has
        changed then."""

    def counted(self, mount_id: str) -> Usage | None:
        """What the ledger of a mount counts now, without asking its server; None where only that can tell."""

    async def ask(self, mount_id: str, request: Obj, seconds: float = 10.0) -> Obj:
        """One request on a server's control socket, answered within *seconds*. Raises :class:`UnavailableError`."""


class KeeperSupervisor:
    """A :class:`Supervisor` whose servers are forked by the keeper."""

    def __init__(
        self,
        directory: Path,
        keeper: KeeperLink,
        nursery: trio.Nursery,
        died: Callable[[str], None],
        *,
        tell: Tell = no_tell,
        step: Step = no_step,
    ) -> None:
        """*directory* takes the specs, sockets and logs; *died* is called with the mount id of a server that ended
        without having been asked to, and that no other one has followed."""
        self._directory = directory
        self._keeper = keeper
        self._step = step
        self._following = Following(keeper, nursery, self.paths, died, tell)

    def __repr__(self) -> str:
        return f"<KeeperSupervisor {self._directory} servers={len(self._following.servers)}>"

    @property
    def servers(self) -> dict[str, Server]:
        """The living servers by mount id."""
        return self._following.servers

    @property
    def keeper(self) -> KeeperInfo | None:
        """The living keeper."""
        return self._keeper.living

    async def run(self) -> None:
        """Hear what happens to the servers, for ever."""
        await self._following.run()

    def paths(self, mount_id: str) -> tuple[Path, Path, Path]:
        """Spec, control socket and log of a mount."""
        base = self._directory
        return base / f"{mount_id}.json", base / f"{mount_id}.sock", base / f"{mount_id}.log"

    async def start(self, spec: MountSpec, progress: Progress | None = None) -> Server:
        """Have the keeper start the server, and wait until that has mounted or said why it cannot."""
        await trio.to_thread.run_sync(self._prepare, spec)
        for _ in range(ATTEMPTS):
            reader, writer = os.pipe()
            async with ReadyPipe(reader, spec) as ready:
                try:
                    server = await self._ask_for(spec, writer)
                finally:
                    os.close(writer)
                if server is None:
                    server = await self._orphan(spec, ready)
                if server is None:
                    continue  # the keeper had not forked yet: the next one does it
                try:
                    self._step("server started")
                    await ready.mounted(progress)
                    self._step("server ready")
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await _end(server)
                        await trio.to_thread.run_sync(_detach, spec.mountpoint)
                    raise
                self._following.follow(server)
                await self._following.keep_spare(server)
                return server
        raise UnavailableError(f"The keeper ended {ATTEMPTS} times while it started {spec.mount_id}: see keeper.log.")

    def _prepare(self, spec: MountSpec) -> None:
        file, control, _ = self.paths(spec.mount_id)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        control.unlink(missing_ok=True)
        spec.save(file)

    async def _ask_for(self, spec: MountSpec, writer: int) -> Server | None:
        """The new server; None when the keeper ended before it answered."""
        file, _, log_file = self.paths(spec.mount_id)
        request = {"op": "start", "mount_id": spec.mount_id, "spec": str(file), "log": str(log_file)}
        answered = await self._keeper.call(request, [writer])
        if answered is None:
            return None
        answer, descriptors = answered
        if not answer.get("ok"):
            raise UnavailableError(f"The volume server of {spec.mount_id} was not started: {answer.get('error')}")
        return Server(spec.mount_id, int(answer["pid"]), descriptors[0])

    async def _orphan(self, spec: MountSpec, ready: ReadyPipe) -> Server | None:
        """The server that the keeper forked before it died without an answer, if it did."""
        with trio.CancelScope(shield=True):  # bounded; a server that was born must not be lost sight of
            pid = await ready.born()
        if pid is None:
            return None
        try:
            return Server(spec.mount_id, pid, os.pidfd_open(pid))
        except ProcessLookupError:
            return None

    # -- servers of an earlier agent ----------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Take over every server that is held or answers, end those that do not, and forget the files of the dead."""
        running = await trio.to_thread.run_sync(strangers.running, self._directory)
        known = {file.stem for suffix in ("json", "sock") for file in self._directory.glob(f"*.{suffix}")}
        async with trio.open_nursery() as nursery:
            for mount_id in sorted(known | set(running)):
                nursery.start_soon(self._adopt, mount_id, running.get(mount_id))

    async def _adopt(self, mount_id: str, pid: int | None) -> None:
        server = await self._held(mount_id) or await self._living(mount_id, pid)
        if server is not None:
            log.info("Adopted the volume server of %s (pid %d).", mount_id, server.pid)
            self._following.follow(server)
            if server.spare is None:  # it may have reported to a new keeper after that was asked, and before now
                await self._following.keep_spare(server)
            return
        if pid is not None and await trio.to_thread.run_sync(strangers.end, pid):
            log.warning(_MUTE, mount_id, pid)
        for file in self.paths(mount_id)[:2]:
            file.unlink(missing_ok=True)

    async def _held(self, mount_id: str) -> Server | None:
        """The server of a mount that goes on when this one dies: so it may, if it does not answer."""
        try:
            kept = await self._keeper.find(mount_id)
        except UnavailableError:
            return None
        if kept is None or kept.held is None:
            if kept is not None:
                kept.close()
            return None
        server = Server(mount_id, kept.pid, -1)
        if take(kept, server) and await self._answers_soon(mount_id, server.lives) is None and server.lives():
            log.warning(_MUTE, mount_id, server.pid)
            server.kill(signal.SIGKILL)
        return server

    async def _living(self, mount_id: str, pid: int | None) -> Server | None:
        """The server of a mount that ends with it."""
        told = await self._answers_soon(mount_id, lambda: pid is not None and strangers.runs(pid))
        try:
            return Server(mount_id, told, os.pidfd_open(told)) if told is not None else None
        except ProcessLookupError:  # it has just ended
            return None

    async def _answers_soon(self, mount_id: str, lives: Callable[[], bool]) -> int | None:
        """As :meth:`_answers`; one that the last agent had only just started needs a moment."""
        found: int | None = None
        with trio.move_on_after(ADOPT_TIMEOUT):
            found = await self._answers(mount_id)
            while found is None and lives():
                await trio.sleep(0.1)
                found = await self._answers(mount_id)
        return found

    async def _answers(self, mount_id: str) -> int | None:
        """The pid that the mount's server tells, if it answers and its mount is there."""
        control = self.paths(mount_id)[1]
        try:
            status = await call(control, {"op": "status"}, ADOPT_TIMEOUT)
            if not status.get("ok") or status.get("mount_id") != mount_id:
                return None
            # not asked whether it answers: one that hangs is in use, and one whose connection is over ends by itself
            if mount.root(status["mountpoint"]) is None:
                return None
        except (UnavailableError, OSError):
            return None
        return int(status["pid"])

    # -- requests -----------------------------------------------------------------------------------------------------

    async def stop(self, mount_id: str, *, lazy: bool = False) -> None:
        """Ask the server to unmount and wait for its end."""
        server = self._following.servers.get(mount_id)
        if server is None:
            return
        server.stopping = True
        try:
            answer = await self.ask(mount_id, {"op": "unmount", "lazy": lazy}, STOP_TIMEOUT)
        except UnavailableError:
            # it may have ended on its way to the answer
            with trio.move_on_after(2):
                await server.ended.wait()
            if not server.ended.is_set():
                server.stopping = False
                raise
        else:
            # EINVAL: it is unmounted already, by a stop that was interrupted
            if not answer.get("ok") and answer.get("errno") != errno.EINVAL:
                server.stopping = False
                raise ConflictError(str(answer.get("error") or f"The mount of {mount_id} is in use: try again later."))
        with trio.move_on_after(GRACE):
            await server.ended.wait()
        if not server.ended.is_set():
            log.info(
                "Something still holds the unmounted %s (a container's copy of it): its server ends now.", mount_id
            )
            server.kill(signal.SIGTERM)
        try:
            with trio.fail_after(STOP_TIMEOUT):
                await server.ended.wait()
        except trio.TooSlowError as e:
            raise TimeoutExpiredError(
                f"The volume server of {mount_id} (pid {server.pid}) does not end: see {self.paths(mount_id)[2]}."
            ) from e
        file, control, log_file = self.paths(mount_id)
        for path in (file, control, log_file):
            path.unlink(missing_ok=True)
        self._step("server ended")

    async def upgrade(self) -> Upgrade:
        """By the keeper: a new one takes over. Servers that cannot be followed stay as they are."""
        return await self._keeper.upgrade()

    def counted(self, mount_id: str) -> Usage | None:
        """What the ledger has written into the memory of which a copy is kept here."""
        server = self._following.servers.get(mount_id)
        return counted(server.spare.session) if server is not None and server.spare is not None else None

    async def ask(self, mount_id: str, request: Obj, seconds: float = 10.0) -> Obj:
        """One request, bounded by *seconds*. Asked again of the next server if this one dies."""
        server = self._following.servers.get(mount_id)
        end = trio.current_time() + seconds
        while server is not None and not server.ended.is_set():
            with trio.move_on_at(end):
                await server.settled.wait()
            pid = server.pid
            try:
                left = max(0.1, end - trio.current_time())
                return await call(self.paths(mount_id)[1], request, left)
            except UnavailableError:
                if server.pid == pid and server.lives():
                    raise
                if trio.current_time() > end:
                    raise
                await trio.lowlevel.checkpoint()
        raise UnavailableError(f"No volume server runs for {mount_id}: mount the volume first.")


async def _end(server: Server) -> None:
    """End a server that nobody follows yet; SIGTERM first, so that it can unmount."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        server.kill(number)
        with trio.move_on_after(END_TIMEOUT):
            await trio.lowlevel.wait_readable(server.pidfd)
            break
    server.close()


def _detach(mountpoint: str) -> None:
    """Take away the mount of a server that was ended between mounting and serving: nothing answers there any more."""
    found = mount.find(mountpoint)
    if found is not None and found.is_fuse:
        with contextlib.suppress(OSError):  # somebody else took it away
            mount.unmount(mountpoint, lazy=True)
