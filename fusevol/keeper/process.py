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
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from fusevol import __version__
from fusevol.errors import FusevolError, UnavailableError, UsageError
from fusevol.files import locked
from fusevol.keeper import ending, image, title, wire
from fusevol.keeper.door import Answer, Door, Operation, RefusedError, Request
from fusevol.keeper.giving import Giving
from fusevol.keeper.loop import Loop
from fusevol.keeper.mounts import Mount, Server
from fusevol.keeper.notes import Notes
from fusevol.keeper.servers import Servers
from fusevol.keeper.taking import Said, Taking
from fusevol.keeper.understudy import CALM, Post, Role, Understudy, pause, rehearse
from fusevol.server import logfile
from fusevol.server.held import Held

log = logging.getLogger(__name__)

_SCRATCH: Final = ".rehearsal."
_NAME_LENGTH: Final = 255
"""Longest mount id in bytes: it is a file's name."""


class Keeper:
    """The keeper of *directory*; it serves from :meth:`listen` on, which takes the directory's lock."""

    def __init__(self, directory: Path, *, merge: bool = False) -> None:
        self._directory = directory
        self._merge = merge
        self._path = wire.socket_path(directory)
        self._loop = Loop()
        self._self = os.pidfd_open(os.getpid())
        self._notes = Notes()
        self._listeners: dict[socket.socket, int] = {}
        """Who waits for notes, and the last one that it has heard."""
        self._servers = Servers(self._loop, directory, self._self, self._tell)
        self._giving = Giving(self._loop, self._servers, self._tell, lambda: self._notes.after(0), self._end)
        self._door: Door | None = None
        self._understudy: Understudy | None = None
        """Who takes this process's place when it dies."""
        self._short_lives = 0
        """Of understudies, since the last that was not."""
        self._ending = False
        self._operations: dict[str, Operation] = {
            "hello": self._hello,
            "start": self._start,
            "adopt": self._adopt,
            "find": self._find,
            "list": self._list,
            "notes": self._hear,
            "shutdown": self._shutdown,
            **self._giving.operations,
        }

    def __repr__(self) -> str:
        return f"<Keeper {self._path} mounts={len(self._servers.mounts)}>"

    def take_over(self, directory: Path, said: Said) -> socket.socket:
        """As :meth:`fusevol.keeper.taking.Taking.run`; what listens on the keeper's socket."""
        listener, unheard = Taking(directory, self._loop, self._servers, said).run()
        self._notes.again(unheard)
        return listener

    def listen(self, listener: socket.socket | None = None) -> None:
        """Let clients in, by *listener* if another keeper has left that."""
        self._loop.watch(ending.heard(), self._leave)
        self._door = self._giving.door = Door(self._path, self._loop, self._operations, self._giving.gone, listener)

    def prepare(self, understudy: Understudy | None) -> None:
        """From :meth:`listen` on there is one who takes this process's place when it dies: *understudy* first."""
        if understudy is not None:
            self._relies_on(understudy)
        else:
            self._loop.later(CALM, self._replace)

    def _relies_on(self, understudy: Understudy) -> None:
        self._understudy = understudy
        self._loop.watch(understudy.pidfd, lambda: self._alone(understudy))
        if self._door is not None:
            with contextlib.suppress(OSError):  # it has died
                understudy.learn(self._door.listener)

    def _alone(self, understudy: Understudy) -> None:
        log.info(
            "the understudy, pid %d, has ended: until there is another, it is the agent that starts the next keeper",
            understudy.pid,
        )
        self._loop.unwatch(understudy.pidfd)
        self._understudy = None
        understudy.reap()
        self._short_lives = 0 if understudy.lived > CALM else self._short_lives + 1
        self._loop.later(pause(self._short_lives), self._replace)

    def _replace(self) -> None:
        if self._ending:
            return
        try:
            self._relies_on(Understudy.start(self._directory, merge=self._merge))
        except OSError as e:
            self._short_lives += 1
            log.info("no understudy can be started: %s", e)
            self._loop.later(pause(self._short_lives), self._replace)

    def run(self) -> None:
        """Serve until told to end, by a request or by SIGTERM or SIGINT. The servers live on."""
        while not self._ending:
            self._loop.turn()
        if self._understudy is not None:
            self._understudy.dismiss()

    def _end(self) -> None:
        self._ending = True

    def _hello(self, _request: Request) -> Answer:
        return {"protocol": wire.PROTOCOL, "version": __version__, "pid": os.getpid()}, [self._self]

    def _list(self, request: Request) -> Answer:
        return self._servers.mounts.page(request.text("after", empty=True)), []

    def _shutdown(self, _request: Request) -> Answer:
        self._leave()
        return {}, []

    def _leave(self) -> None:
        log.info("ending as asked; %d servers live on", len(self._servers.mounts))
        self._path.unlink(missing_ok=True)
        self._end()

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
        if self._door is not None:
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


class Arguments(NamedTuple):
    """The command line of a keeper."""

    directory: Path
    ready: int | None
    """Descriptor that is told READY or ERROR, and MOVED before."""
    takes_over: bool
    """Whether it takes the place of a keeper that lives."""
    understudy: bool
    """Whether another process is to take its place when it dies."""
    merge: bool
    """Whether the system may merge equal pages of this process and of those that it forks."""
    post: tuple[int, int] | None
    """If it is itself to take the place of a keeper that dies: that one's pidfd, and the socket by which it is told."""

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Self:
        """Raises :class:`UsageError`."""
        words = [word for word in argv if word not in {"--take-over", "--understudy", "--merge"}]
        values = dict(zip(words[::2], words[1::2], strict=False))
        directory = values.pop("--dir", None)
        ready, keeper, line = (values.pop(name, "") for name in ("--ready-fd", "--keeper-fd", "--line-fd"))
        numbers = all(number.isdigit() for number in (ready, keeper, line) if number)
        if directory is None or values or len(words) % 2 or not numbers or bool(keeper) != bool(line):
            raise UsageError(
                "usage: python -m fusevol.keeper --dir DIRECTORY [--ready-fd N] [--take-over] [--understudy] "
                "[--merge] [--keeper-fd N --line-fd N]"
            )
        return cls(
            Path(directory).absolute(),
            int(ready) if ready else None,
            "--take-over" in argv,
            "--understudy" in argv,
            "--merge" in argv,
            (int(keeper), int(line)) if keeper else None,
        )


def main(argv: Sequence[str]) -> int:
    """Run a keeper; returns the exit status. READY, or ERROR and a sentence, on the ready descriptor."""
    starter = Starter(None)
    try:
        arguments = Arguments.parse(argv)
        starter = Starter(arguments.ready)
        os.chdir("/")
        _run(arguments, starter)
    except (FusevolError, OSError) as e:
        sentence = e.message if isinstance(e, FusevolError) else f"The keeper cannot go on: {e}."
        log.info("ending: %s", sentence)
        print(sentence, file=sys.stderr)  # noqa: T201  # for whoever starts it by hand
        starter.say(f"ERROR {' '.join(sentence.split())}")
        return e.exit_code if isinstance(e, FusevolError) else 1
    return 0


class Starter:
    """Whoever started the keeper, and reads its ready pipe until READY."""

    def __init__(self, ready: int | None) -> None:
        self._ready = ready

    def say(self, line: str) -> None:
        """Tell it *line*, unless it has heard the last one."""
        if self._ready is not None:
            with contextlib.suppress(OSError):  # it may have gone
                os.write(self._ready, line.encode() + b"\n")

    def close(self) -> None:
        """That was the last one: the number means something else from now on."""
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None


def _run(arguments: Arguments, starter: Starter) -> None:
    directory = arguments.directory
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.merge:
        image.mergeable()
    if arguments.post is not None:
        title.name(title.UNDERSTUDY)
    image.settle(directory / f"{_SCRATCH}{os.getpid()}")
    post = Post.of(*arguments.post) if arguments.post is not None else None
    role = rehearse(starter.close, post) if arguments.understudy else Role(None, None)
    listener = role.listener
    logfile.set_up(directory / "keeper.log", "keeper")
    keeper = Keeper(directory, merge=arguments.merge)
    if arguments.takes_over and listener is None:
        listener = keeper.take_over(directory, starter.say)
    with locked(directory / "keeper.lock", lambda pid: _already(pid, directory)):
        for left in directory.glob(f"{_SCRATCH}*"):  # by keepers that were killed
            shutil.rmtree(left, ignore_errors=True)
        keeper.listen(listener)
        if arguments.understudy:
            keeper.prepare(role.understudy)
        starter.say("READY")
        starter.close()
        log.info("keeping %s, version %s", directory, __version__)
        keeper.run()
