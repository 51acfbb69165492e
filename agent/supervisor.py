"""Starts volume servers, knows which ones live, and tells when one dies.

The rest of the agent sees :class:`Supervisor` only. :class:`ProcessSupervisor` runs each server as a process of its own
session, which outlives the agent: its control socket and its log are in the runtime directory, where the next agent
finds and adopts it. A death is noticed through a pidfd, which also works for a server that an earlier agent started and
that is not our child.

What an agent that was killed leaves behind is told by the process table, not by files: a server that has not begun to
answer yet has no socket, and would otherwise go on beside the one that is started in its place. Its command line names
its spec.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trio

from agent.steps import Step, no_step
from fusevol.errors import ConflictError, TimeoutExpiredError, UnavailableError
from fusevol.server.client import call
from fusevol.server.spec import MountSpec
from fusevol.transport import mount

Obj = dict[str, Any]
Progress = Callable[[int], Awaitable[None]]
"""Called with the number of inodes that a starting server has counted so far."""

START_TIMEOUT = 60.0
"""Seconds that a starting server may say nothing at all (a scan in progress says something)."""
STOP_TIMEOUT = 30.0
GRACE = 5.0
"""Seconds that other mount namespaces may hold on to a volume that is unmounted everywhere here."""
ADOPT_TIMEOUT = 5.0
"""Seconds that a server of an earlier agent may take to answer."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Server:
    """A living volume server."""

    mount_id: str
    pid: int
    process: subprocess.Popen[bytes] | None = None
    """Our child; None for a server that an earlier agent started."""
    stopping: bool = False
    """Whether its end is wanted."""
    ended: trio.Event = field(default_factory=trio.Event)


class Supervisor(Protocol):
    """What the agent needs of whoever runs the volume servers."""

    @property
    def servers(self) -> dict[str, Server]:
        """The living servers by mount id."""

    async def start(self, spec: MountSpec, progress: Progress | None = None) -> Server:
        """Have *spec* mounted. Raises :class:`UnavailableError` with the server's sentence when it cannot."""

    async def adopt(self) -> None:
        """Take over the servers that an earlier agent started; end those that do not answer."""

    async def stop(self, mount_id: str, *, lazy: bool = False) -> None:
        """Unmount and end a server; nothing to do if there is none. Raises :class:`ConflictError` when it is busy."""

    async def ask(self, mount_id: str, request: Obj, seconds: float = 10.0) -> Obj:
        """One request on a server's control socket, answered within *seconds*. Raises :class:`UnavailableError`."""


class ProcessSupervisor:
    """A :class:`Supervisor` whose servers are processes, started one by one."""

    def __init__(
        self,
        directory: Path,
        nursery: trio.Nursery,
        died: Callable[[str], None],
        *,
        module: str = "fusevol.server",
        step: Step = no_step,
    ) -> None:
        """*directory* takes the specs, sockets and logs; *died* is called with the mount id of a server that ended
        without having been asked to."""
        self._directory = directory
        self._nursery = nursery
        self._died = died
        self._module = module
        self._step = step
        self._servers: dict[str, Server] = {}

    def __repr__(self) -> str:
        return f"<ProcessSupervisor {self._directory} servers={len(self._servers)}>"

    @property
    def servers(self) -> dict[str, Server]:
        """The living servers by mount id."""
        return self._servers

    def paths(self, mount_id: str) -> tuple[Path, Path, Path]:
        """Spec, control socket and log of a mount."""
        base = self._directory
        return base / f"{mount_id}.json", base / f"{mount_id}.sock", base / f"{mount_id}.log"

    async def start(self, spec: MountSpec, progress: Progress | None = None) -> Server:
        """Start the process and wait until it has mounted, or said why it cannot."""
        file, control, log_file = self.paths(spec.mount_id)
        reader, writer = os.pipe()
        try:
            with trio.CancelScope(shield=True):
                process = await trio.to_thread.run_sync(self._spawn, spec, file, control, log_file, writer)
        except OSError as e:
            os.close(reader)
            raise UnavailableError(f"The volume server of {spec.mount_id} cannot be started: {e}.") from e
        finally:
            os.close(writer)
        try:
            async with trio.lowlevel.FdStream(reader) as ready:
                self._step("server started")
                await self._ready(spec, ready, progress)
                self._step("server ready")
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_end, process)
            raise
        return self._watch(Server(spec.mount_id, process.pid, process))

    def _spawn(
        self, spec: MountSpec, file: Path, control: Path, log_file: Path, writer: int
    ) -> subprocess.Popen[bytes]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        control.unlink(missing_ok=True)
        spec.save(file)
        with log_file.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", self._module, "--spec", str(file), "--ready-fd", str(writer)],
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )

    async def _ready(self, spec: MountSpec, stream: trio.lowlevel.FdStream, progress: Progress | None) -> None:
        received = b""
        try:
            while True:
                with trio.fail_after(START_TIMEOUT):
                    chunk = await stream.receive_some(4096)
                if not chunk:
                    raise UnavailableError(
                        f"The volume server of {spec.mount_id} ended before it had mounted: see {spec.log}."
                    )
                *lines, received = (received + chunk).split(b"\n")
                for line in lines:
                    word, _, rest = line.decode(errors="replace").partition(" ")
                    if word == "READY":
                        return
                    if word == "ERROR":
                        raise UnavailableError(rest or f"The volume server of {spec.mount_id} failed: see {spec.log}.")
                    if word == "SCAN" and progress is not None and rest.isdigit():
                        await progress(int(rest))
        except trio.TooSlowError as e:
            raise TimeoutExpiredError(
                f"The volume server of {spec.mount_id} did not mount within {START_TIMEOUT:g} s: see {spec.log}."
            ) from e

    def _watch(self, server: Server) -> Server:
        """Follow a living server; called right after it was seen alive."""
        self._servers[server.mount_id] = server
        try:
            pidfd = os.pidfd_open(server.pid)
        except ProcessLookupError:
            self._ended(server)
            return server
        self._nursery.start_soon(self._follow, server, pidfd)
        return server

    async def _follow(self, server: Server, pidfd: int) -> None:
        try:
            await trio.lowlevel.wait_readable(pidfd)
            if server.process is not None:
                server.process.poll()  # collects it, so that it does not stay as a zombie
        finally:
            os.close(pidfd)
        self._ended(server)

    def _ended(self, server: Server) -> None:
        server.ended.set()
        mount_id = server.mount_id
        if self._servers.get(mount_id) is server:
            del self._servers[mount_id]
        if not server.stopping:
            log.warning("The volume server of %s (pid %d) ended unexpectedly.", mount_id, server.pid)
            self._died(mount_id)

    async def adopt(self) -> None:
        """Take over every server that answers, end those that do not, and forget the files of the dead."""
        running = await trio.to_thread.run_sync(_running, self._directory)
        known = {file.stem for suffix in ("json", "sock") for file in self._directory.glob(f"*.{suffix}")}
        async with trio.open_nursery() as nursery:
            for mount_id in sorted(known | set(running)):
                nursery.start_soon(self._adopt, mount_id, running.get(mount_id))

    async def _adopt(self, mount_id: str, pid: int | None) -> None:
        server = await self._living(mount_id)
        with trio.move_on_after(ADOPT_TIMEOUT):
            # one that the last agent had only just started needs a moment
            while server is None and pid is not None and _runs(pid):
                await trio.sleep(0.1)
                server = await self._living(mount_id)
        if server is not None:
            log.info("Adopted the volume server of %s (pid %d).", mount_id, server.pid)
            return
        if pid is not None and await trio.to_thread.run_sync(_end_stranger, pid):
            log.warning("The volume server of %s (pid %d) did not answer; it has been ended.", mount_id, pid)
        for file in self.paths(mount_id)[:2]:
            file.unlink(missing_ok=True)

    async def _living(self, mount_id: str) -> Server | None:
        control = self.paths(mount_id)[1]
        try:
            status = await trio.to_thread.run_sync(
                call, control, {"op": "status"}, ADOPT_TIMEOUT, abandon_on_cancel=True
            )
            if not status.get("ok") or status.get("mount_id") != mount_id:
                return None
            # one that hangs in a slow backing store is nevertheless in use
            if await trio.to_thread.run_sync(mount.probe, status["mountpoint"]) not in {"alive", "hung"}:
                return None
        except (UnavailableError, OSError):
            return None
        return self._watch(Server(mount_id, int(status["pid"])))

    async def stop(self, mount_id: str, *, lazy: bool = False) -> None:
        """Ask the server to unmount and wait for its end."""
        server = self._servers.get(mount_id)
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
            if not answer.get("ok"):
                server.stopping = False
                raise ConflictError(str(answer.get("error") or f"The mount of {mount_id} is in use: try again later."))
        with trio.move_on_after(GRACE):
            await server.ended.wait()
        if not server.ended.is_set():
            log.info(
                "Something still holds the unmounted %s (a container's copy of it): its server ends now.", mount_id
            )
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGTERM)
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

    async def ask(self, mount_id: str, request: Obj, seconds: float = 10.0) -> Obj:
        """One request, in a worker thread; bounded by *seconds*."""
        server = self._servers.get(mount_id)
        if server is None:
            raise UnavailableError(f"No volume server runs for {mount_id}: mount the volume first.")
        return await trio.to_thread.run_sync(call, self.paths(mount_id)[1], request, seconds)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server that never became ready; SIGTERM first, so that it can unmount."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


def _running(directory: Path) -> dict[str, int]:
    """Pids of the processes that were started with a spec in *directory*, by mount id; of this mount namespace."""
    found: dict[str, int] = {}
    ours = os.readlink("/proc/self/ns/mnt")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"--spec" not in words or os.readlink(process / "ns" / "mnt") != ours:
                continue
        except OSError:  # it has ended
            continue
        spec = Path(os.fsdecode(words[words.index(b"--spec") + 1]))
        if spec.parent == directory:
            found[spec.stem] = int(process.name)
    return found


def _runs(pid: int) -> bool:
    """Whether the process lives; a zombie, which waits for its parent, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _end_stranger(pid: int) -> bool:
    """End a process that is not our child; SIGTERM first, so that it can unmount. Whether there was one."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if select.select([pidfd], [], [], 5.0)[0]:
                return True
        log.error("The volume server with pid %d does not even end of SIGKILL: see what its storage waits for.", pid)
        return True
    finally:
        os.close(pidfd)
