"""The keeper's process: a socket, a fork per mount, and a note of who ended.

One thread and one loop that never blocks: whatever a client does, the next one is served. No business logic is here;
the agent decides, and a server that was started needs its keeper for nothing more. So a keeper may be killed at any
moment: its servers live on, and a new keeper takes its place in the directory.

Who keeps a directory is decided by a lock on ``keeper.lock``, which no forked child can hold.

Children are watched through pidfds in the same loop, not SIGCHLD: no handler is installed that a child would have to
undo, and the pidfd that the agent gets of a server cannot mean another process, as a number can.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from fusevol import __version__
from fusevol.errors import FusevolError, UnavailableError, UsageError
from fusevol.files import locked
from fusevol.keeper import image, wire
from fusevol.keeper.child import become
from fusevol.keeper.children import Child, Children
from fusevol.server import logfile

log = logging.getLogger(__name__)

_CLIENTS: Final = 32
"""Connections at the same time. One more, and the one that has been silent for longest is closed."""
_QUEUE: Final = 128
"""Connections that wait to be accepted."""
_SPARE: Final = 128
"""Descriptors that are kept for anything but servers."""
_NAME_LENGTH: Final = 255
"""Longest mount id in bytes: it is a file's name."""


_Operation = Callable[[wire.Message, list[int]], tuple[wire.Message, list[int]]]
"""Takes a request and its descriptors, which are closed afterwards; returns the answer and what to attach to it."""


class _RefusedError(Exception):
    """A request that is not carried out; one sentence."""


class Keeper:
    """The keeper of *directory*, whose lock the caller holds. Listens from construction on."""

    def __init__(self, directory: Path) -> None:
        self._path = wire.socket_path(directory)
        self._children = Children()
        self._clients: dict[socket.socket, None] = {}
        """Connected, the one that has been silent for longest first."""
        self._ending = False
        self._selector = selectors.DefaultSelector()
        self._self = os.pidfd_open(os.getpid())
        self._operations: dict[str, _Operation] = {
            "hello": self._hello,
            "start": self._start,
            "list": self._list,
            "shutdown": self._shutdown,
        }
        self._listener = self._listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def __repr__(self) -> str:
        return f"<Keeper {self._path} servers={len(self._children)} clients={len(self._clients)}>"

    def _listen(self) -> socket.socket:
        self._path.unlink(missing_ok=True)  # of a keeper that died: the lock is ours
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(self._path))
        finally:
            os.umask(before)
        listener.listen(_QUEUE)
        return listener

    def run(self) -> None:
        """Serve until told to end. The servers live on."""
        while not self._ending:
            for key, _ in self._selector.select():
                key.data()
        self._path.unlink(missing_ok=True)

    # -- clients ------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return  # gone again
        except OSError as e:
            log.warning("no connection can be accepted: %s", e.strerror)
            time.sleep(0.1)  # the machine is out of descriptors, and asking again at once would not help
            return
        if len(self._clients) >= _CLIENTS:
            self._drop(next(iter(self._clients)))
        client.setblocking(False)
        self._clients[client] = None
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

    def _drop(self, client: socket.socket) -> None:
        del self._clients[client]
        self._selector.unregister(client)
        client.close()

    def _serve(self, client: socket.socket) -> None:
        """One message of *client*, and the answer to it."""
        if client not in self._clients:
            return  # dropped while this call was waiting for its turn
        try:
            data, descriptors, _, _ = socket.recv_fds(client, wire.LIMIT + 1, wire.DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        with _closing(descriptors):
            if not data:
                self._drop(client)
                return
            self._clients[client] = self._clients.pop(client)  # heard last
            answer, attached = self._answer(data, descriptors)
            try:
                socket.send_fds(client, [wire.encode(answer)], attached)
            except OSError:  # has gone, or does not read its answers
                self._drop(client)

    def _answer(self, data: bytes, descriptors: list[int]) -> tuple[wire.Message, list[int]]:
        try:
            request = wire.decode(data)
            answer, attached = self._operation(request)(request, descriptors)
        except (_RefusedError, ValueError) as e:
            return _failure(str(e)), []
        except OSError as e:
            return _failure(f"The keeper could not do that: {e.strerror or e}."), []
        except Exception:
            log.exception("a request failed unexpectedly")
            return _failure("The keeper failed because of a bug: see keeper.log."), []
        return {"ok": True, **answer}, attached

    def _operation(self, request: wire.Message) -> _Operation:
        op = request.get("op")
        found = self._operations.get(op) if isinstance(op, str) else None
        if found is None:
            raise _RefusedError(f"There is no such operation: choose one of {', '.join(self._operations)}.")
        return found

    # -- operations ---------------------------------------------------------------------------------------------------

    def _hello(self, _request: wire.Message, _descriptors: list[int]) -> tuple[wire.Message, list[int]]:
        return {"protocol": wire.PROTOCOL, "version": __version__, "pid": os.getpid()}, [self._self]

    def _list(self, request: wire.Message, _descriptors: list[int]) -> tuple[wire.Message, list[int]]:
        return self._children.page(_text(request, "after", empty=True)), []

    def _shutdown(self, _request: wire.Message, _descriptors: list[int]) -> tuple[wire.Message, list[int]]:
        log.info("ending as asked; %d servers live on", len(self._children))
        self._ending = True
        return {}, []

    def _start(self, request: wire.Message, descriptors: list[int]) -> tuple[wire.Message, list[int]]:
        mount_id, spec, log_file = (_text(request, name) for name in ("mount_id", "spec", "log"))
        if len(os.fsencode(mount_id)) > _NAME_LENGTH:
            raise _RefusedError(f"A mount id has at most {_NAME_LENGTH} bytes.")
        if len(descriptors) != 1:
            raise _RefusedError("A start takes one descriptor, the write end of the ready pipe.")
        before = self._children.find(mount_id)
        if before is not None and not self._reap(before):
            raise _RefusedError(f"A volume server of {mount_id} (pid {before.pid}) runs already: stop it first.")
        if len(self._children) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE:
            raise _RefusedError(
                "The keeper may open no more descriptors: raise its limit (ulimit -n) to have more mounts."
            )
        pid = os.fork()
        if pid == 0:
            become(spec, log_file, descriptors[0])
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        child = self._children.add(mount_id, pid, pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._reap(child))
        log.info("%s: started, pid %d", mount_id, pid)
        return {"pid": pid}, [pidfd]

    # -- children -----------------------------------------------------------------------------------------------------

    def _reap(self, child: Child) -> bool:
        """Take note of the end of *child*; whether it has ended."""
        if self._children.find(child.mount_id) is not child:
            return True  # noted already, before its turn came in the loop
        pid, waited = os.waitpid(child.pid, os.WNOHANG)
        if pid == 0:
            return False
        status = os.waitstatus_to_exitcode(waited)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        self._children.remove(child, status)
        log.info("%s: ended, pid %d, status %d", child.mount_id, child.pid, status)
        return True


def _failure(sentence: str) -> wire.Message:
    return {"ok": False, "error": sentence}


def _text(request: wire.Message, name: str, *, empty: bool = False) -> str:
    value = request.get(name, "" if empty else None)
    if not isinstance(value, str) or "\0" in value or not (value or empty):
        raise _RefusedError(f"The request has no usable {name}.")
    return value


@contextlib.contextmanager
def _closing(descriptors: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


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
