"""The keeper's process: what it can be asked for, and who may be the one of a directory.

One thread and one loop that never blocks: whatever a client does, the next one is served. No business logic is here;
the agent decides. A keeper may be killed at any moment: its servers live on, and report to the next keeper in the
directory, so that they are held again.

Who keeps a directory is decided by a lock on ``keeper.lock``, which no forked child can hold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fusevol import __version__
from fusevol.errors import FusevolError, UnavailableError, UsageError
from fusevol.files import locked
from fusevol.keeper import image, wire
from fusevol.keeper.door import Answer, Door, RefusedError, Request
from fusevol.keeper.loop import Loop
from fusevol.keeper.mounts import Mount, Server
from fusevol.keeper.notes import Notes
from fusevol.keeper.servers import Servers
from fusevol.server import logfile
from fusevol.server.held import Held

log = logging.getLogger(__name__)

_NAME_LENGTH: Final = 255
"""Longest mount id in bytes: it is a file's name."""


class Keeper:
    """The keeper of *directory*, whose lock the caller holds. Listens from construction on."""

    def __init__(self, directory: Path) -> None:
        self._loop = Loop()
        self._self = os.pidfd_open(os.getpid())
        self._notes = Notes()
        self._listeners: dict[socket.socket, int] = {}
        """Who waits for notes, and the last one that it has heard."""
        self._servers = Servers(self._loop, directory, self._self, self._tell)
        self._ending = False
        self._operations = {
            "hello": self._hello,
            "start": self._start,
            "adopt": self._adopt,
            "find": self._find,
            "list": self._list,
            "notes": self._hear,
            "shutdown": self._shutdown,
        }
        self._door = Door(wire.socket_path(directory), self._loop, self._operations)

    def __repr__(self) -> str:
        return f"<Keeper {self._door} mounts={len(self._servers.mounts)}>"

    def run(self) -> None:
        """Serve until told to end. The servers live on."""
        while not self._ending:
            self._loop.turn()
        self._door.close()

    def _hello(self, _request: Request) -> Answer:
        return {"protocol": wire.PROTOCOL, "version": __version__, "pid": os.getpid()}, [self._self]

    def _list(self, request: Request) -> Answer:
        return self._servers.mounts.page(request.text("after", empty=True)), []

    def _shutdown(self, _request: Request) -> Answer:
        log.info("ending as asked; %d servers live on", len(self._servers.mounts))
        self._ending = True
        return {}, []

    def _start(self, request: Request) -> Answer:
        mount_id, spec, log_file = _names(request)
        if len(request.descriptors) != 1:
            raise RefusedError("A start takes one descriptor, the write end of the ready pipe.")
        server = self._servers.start(mount_id, spec, log_file, request.descriptors[0])
        return {"pid": server.pid}, [server.pidfd]

    def _adopt(self, request: Request) -> Answer:
        mount_id, spec, log_file = _names(request)
        given = request.descriptors
        pid = request.number("pid") if "pid" in request.message else None
        held = Held.of(request.number("minor"), given if pid is None else given[:-1])
        server = Server(pid, given[-1], ours=False) if pid is not None else None
        self._servers.adopt(Mount(mount_id, spec, log_file, server, held=held))
        request.keep()
        return {}, [self._self]

    def _find(self, request: Request) -> Answer:
        mount = self._servers.find(request.text("mount_id"))
        if mount is None:
            return {"known": False}, []
        held = {"minor": mount.held.minor} if mount.held is not None else {}
        attached = [mount.server.pidfd] if mount.server is not None else []
        return {"known": True, **mount.describe(), **held}, attached + (mount.held.descriptors if mount.held else [])

    # -- notes --------------------------------------------------------------------------------------------------------

    def _hear(self, request: Request) -> Answer | None:
        after = request.number("after")
        found = self._notes.after(after)
        if found:
            return {"notes": found}, []
        self._listeners[request.client] = after
        return None

    def _tell(self, what: str, mount_id: str, **more: Any) -> None:
        self._notes.add(what, mount_id, **more)
        listeners, self._listeners = self._listeners, {}
        for client, after in listeners.items():
            self._door.answer(client, {"ok": True, "notes": self._notes.after(after)}, [])


def _names(request: Request) -> tuple[str, str, str]:
    mount_id, spec, log_file = (request.text(name) for name in ("mount_id", "spec", "log"))
    if len(os.fsencode(mount_id)) > _NAME_LENGTH:
        raise RefusedError(f"A mount id has at most {_NAME_LENGTH} bytes.")
    return mount_id, spec, log_file


def _already(pid: str, directory: Path) -> UnavailableError:
    return UnavailableError(f"Another keeper (pid {pid}) serves {directory}: use that one.")


def _arguments(argv: Sequence[str]) -> tuple[Path, int | None]:
    values = dict(zip(argv[::2], argv[1::2], strict=False))
    ready = values.pop("--ready-fd", None)
    directory = values.pop("--dir", None)
    if directory is None or values or len(argv) % 2 or not (ready or "0").isdigit():
        raise UsageError("usage: python -m fusevol.keeper --dir DIRECTORY [--ready-fd N]")
    return Path(directory).absolute(), int(ready) if ready else None


def main(argv: Sequence[str]) -> int:
    """Run a keeper; returns the exit status. READY, or ERROR and a sentence, on the ready descriptor."""
    ready: int | None = None
    try:
        directory, ready = _arguments(argv)
        os.chdir("/")
        with locked(directory / "keeper.lock", lambda pid: _already(pid, directory)):
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            image.settle(directory / ".rehearsal")
            logfile.set_up(directory / "keeper.log", "keeper")
            keeper = Keeper(directory)
            if ready is not None:
                _tell(ready, "READY")
            log.info("keeping %s, version %s", directory, __version__)
            with contextlib.suppress(KeyboardInterrupt):
                keeper.run()
            return 0
    except (FusevolError, OSError) as e:
        sentence = e.message if isinstance(e, FusevolError) else f"The keeper cannot start: {e}."
        print(sentence, file=sys.stderr)  # noqa: T201  # for whoever starts it by hand
        if ready is not None:
            _tell(ready, f"ERROR {' '.join(sentence.split())}")
        return e.exit_code if isinstance(e, FusevolError) else 1


def _tell(ready: int, line: str) -> None:
    with contextlib.suppress(OSError):  # whoever started it may have gone
        os.write(ready, line.encode() + b"\n")
    with contextlib.suppress(OSError):
        os.close(ready)
