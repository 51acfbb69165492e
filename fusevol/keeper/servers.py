"""Starts volume servers, holds what must outlive them, and follows each that dies by another one at once.

A server that is ready hands over copies of what the next one needs (:mod:`fusevol.server.held`). When it ends, whether
there is anything to go on with is asked of the connection itself: it is over when the volume was unmounted or the
connection aborted, which is how a server ends that was asked to.

Servers are watched through pidfds in the keeper's loop, not SIGCHLD: no handler is installed that a child would have
to undo, a pidfd cannot mean another process, as a number can, and it works for the children of a keeper that died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fusevol.keeper.child import Birth, become
from fusevol.keeper.door import RefusedError
from fusevol.keeper.lives import Lives
from fusevol.keeper.loop import Loop
from fusevol.keeper.mounts import DESCRIPTORS, Mount, Mounts, Server
from fusevol.keeper.ready import Ready
from fusevol.server.process import LEAVE
from fusevol.transport import mount as mount_table

log = logging.getLogger(__name__)

_SPARE: Final = 128
"""Descriptors that are kept for anything but mounts."""

Tell = Callable[..., object]
"""Called with what happened, a mount id, and more by name (:class:`fusevol.keeper.notes.Notes`)."""


class Servers:
    """The volume servers of one keeper."""

    def __init__(self, loop: Loop, directory: Path, myself: int, tell: Tell) -> None:
        """*myself*: a pidfd of this process, by which servers notice its end. *tell* hears what happens to them."""
        self._loop = loop
        self._directory = directory
        self._myself = myself
        self._tell = tell
        self.mounts = Mounts()

    def find(self, mount_id: str) -> Mount | None:
        """The mount of that id, as it is at this moment."""
        mount = self.mounts.find(mount_id)
        if mount is not None and mount.server is not None and _ended(mount.server.pidfd):
            self._died(mount)
        elif mount is not None and mount.state in {"given", "moved"} and mount.held is not None and mount.held.over():
            self._end(mount)
        return self.mounts.find(mount_id)

    def start(self, mount_id: str, spec: str, log_file: str, ready: int) -> Server:
        """Start the first server of a mount. Raises :class:`RefusedError` if it has one."""
        before = self.find(mount_id)
        if before is not None:
            raise _taken(before)
        self._check_room()
        mount = Mount(mount_id, spec, log_file)
        server = self._fork(mount, ready)
        self.mounts.add(mount)
        return server

    def adopt(self, wanted: Mount) -> None:
        """Hold *wanted*, and follow its server by another one; at once, if it has none. Raises :class:`RefusedError`.

        Its descriptors are the keeper's then. It may be a server's own report, or come from somebody who knows what is
        held of a mount without a server.
        """
        mount = self.find(wanted.mount_id)
        if mount is None:
            self._check_room()
            self.mounts.add(wanted)
            if wanted.server is not None:
                self._watch(wanted, wanted.server)
                log.info("%s: adopted, pid %d", wanted.mount_id, wanted.server.pid)
                self._tell("adopted", wanted.mount_id, pid=wanted.server.pid)
            else:
                wanted.died = time.monotonic()
                self._succeed(wanted)
            return
        if wanted.server is None or (mount.server is not None and mount.server.pid != wanted.server.pid):
            raise _taken(mount)
        if mount.held is not None:
            mount.held.close()
        mount.held = wanted.held
        if mount.server is None:  # while the next one was waited for, this one turned up
            _stop_waiting(mount)
            self.serve(mount, wanted.server)
            self._tell("adopted", mount.mount_id, pid=wanted.server.pid)
        else:
            os.close(wanted.server.pidfd)

    def serve(self, mount: Mount, server: Server) -> None:
        """*mount* is served by *server* from now on."""
        mount.state = "serving"
        mount.heir = None
        self._watch(mount, server)

    def leave(self, mount: Mount, heir: Callable[[], object]) -> None:
        """Have the server of *mount* end, and *heir* called then; the mount may be gone by then, too."""
        mount.heir = heir
        _stop_waiting(mount)
        if mount.server is None:
            heir()
            return
        mount.state = "leaving"
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(mount.server.pidfd, LEAVE)

    def stay(self, mount: Mount) -> None:
        """The opposite: whoever serves *mount* goes on, and is followed as always. If nobody does, the next one is
        started.
        """
        mount.heir = None
        if mount.server is not None:
            mount.state = "serving"
        else:
            mount.lives = Lives()
            self._succeed(mount)

    def take_back(self, mount: Mount) -> None:
        """Have the next server of *mount* started here, though another keeper has had it."""
        if mount.server is not None:
            os.close(mount.server.pidfd)
            mount.server = None
        mount.news = "stayed"
        self.stay(mount)

    def let_go(self, mount: Mount) -> None:
        """Forget *mount*, whose server has ended or is another keeper's; the connection is not touched."""
        _stop_waiting(mount)
        if mount.held is not None:
            mount.held.close()
            mount.held = None
        self.mounts.remove(mount)

    def _check_room(self) -> None:
        if (len(self.mounts) + 1) * DESCRIPTORS > resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE:
            raise RefusedError(
                "The keeper may open no more descriptors: raise its limit (ulimit -n) to have more mounts."
            )

    def _fork(self, mount: Mount, ready: int) -> Server:
        """A new server of *mount*. Raises ``OSError``."""
        pid = os.fork()
        if pid == 0:
            become(Birth(mount.mount_id, mount.spec, mount.log, ready, self._directory, self._myself, mount.held))
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        server = Server(pid, pidfd, ours=True)
        self._watch(mount, server)
        log.info("%s: started, pid %d", mount.mount_id, pid)
        return server

    def _watch(self, mount: Mount, server: Server) -> None:
        mount.server = server
        self._loop.watch(server.pidfd, lambda: self._died(mount))

    # -- the end of a server, and the next one ------------------------------------------------------------------------

    def _died(self, mount: Mount) -> None:
        """Take note of the end of the server, and have the next one started if there is something to go on with."""
        server = mount.server
        if server is None:
            return
        if mount.state == "moved":  # another keeper sees to it
            os.close(server.pidfd)
            mount.server = None
            return
        status = None
        if server.ours:
            pid, waited = os.waitpid(server.pid, os.WNOHANG)
            if pid == 0:
                return
            status = os.waitstatus_to_exitcode(waited)
        self._loop.unwatch(server.pidfd)
        os.close(server.pidfd)
        mount.server = None
        if mount.ready is not None:
            mount.ready.read()
            mount.ready.close()
            mount.ready = None
        self.mounts.note_end(mount, server, status)
        log.info("%s: ended, pid %d, status %s", mount.mount_id, server.pid, status)
        if mount.state in {"serving", "leaving"}:
            mount.died, mount.last = time.monotonic(), (server.pid, status)
        over = mount.held is None or mount.held.over()
        if over:
            self._end(mount)
        if mount.heir is not None:
            mount.heir()
        elif not over:
            self._go_on(mount, time.monotonic() - server.born)

    def _go_on(self, mount: Mount, lived: float) -> None:
        """Have another server for *mount*, whose last one lived for so many seconds; or give it up."""
        if mount.heir is not None:
            mount.heir()
            return
        mount.lives = mount.lives.after(lived)
        pause = mount.lives.pause
        if pause is None:
            self._give_up(mount)
        elif pause > 0:
            mount.state = "waiting"
            mount.timer = self._loop.later(pause, lambda: self._succeed(mount))
        else:
            self._succeed(mount)

    def _succeed(self, mount: Mount) -> None:
        """Start the next server of *mount*."""
        mount.timer = None
        mount.state = "starting"
        reader, writer = os.pipe()
        try:
            server = self._fork(mount, writer)
        except OSError as e:
            os.close(reader)
            mount.words = f"{e.strerror}."
            log.warning("%s: no server can be started: %s", mount.mount_id, e.strerror)
            self._go_on(mount, 0.0)
            return
        finally:
            os.close(writer)
        mount.ready = Ready(self._loop, reader, lambda word, rest: self._said(mount, server, word, rest))

    def _said(self, mount: Mount, server: Server, word: str, rest: str) -> None:
        if word == "ERROR":
            mount.words = rest
        elif word == "READY" and mount.state == "starting":
            mount.state = "serving"
            mount.words = ""
            mount.pause = round((time.monotonic() - mount.died) * 1000)
            log.info("%s: pid %d went on after %d ms", mount.mount_id, server.pid, mount.pause)
            if mount.heir is None:
                mount.restarts += mount.news == "replaced"
                old, status = mount.last
                self._tell(mount.news, mount.mount_id, pid=server.pid, old=old, status=status, ms=mount.pause)
                mount.news = "replaced"

    def _give_up(self, mount: Mount) -> None:
        """Let *mount* fail: its users get errors instead of waiting for ever."""
        old, status = mount.last
        times = mount.lives.short
        log.error("%s: given up after %d servers: status %s. %s", mount.mount_id, times, status, mount.words)
        if mount.held is not None and not mount.held.over():
            with contextlib.suppress(OSError):
                mount_table.abort(mount.held.minor)
        self._tell("failed", mount.mount_id, old=old, status=status, times=times, words=mount.words)
        self.let_go(mount)

    def _end(self, mount: Mount) -> None:
        old, status = mount.last
        self._tell("ended", mount.mount_id, old=old, status=status)
        self.let_go(mount)


def _stop_waiting(mount: Mount) -> None:
    if mount.timer is not None:
        mount.timer.cancel()
        mount.timer = None


def _taken(mount: Mount) -> RefusedError:
    who = f"pid {mount.server.pid}" if mount.server is not None else "its next one is about to start"
    return RefusedError(f"A volume server of {mount.mount_id} ({who}) runs already: stop it first.")


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
