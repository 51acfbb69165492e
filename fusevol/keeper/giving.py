"""A keeper that is being replaced: gives its mounts to the next one, one by one, and takes them back if that fails.

Until the last is given and the new keeper has said so (``commit``), this one stays the keeper: it listens, it starts
servers, and it holds a copy of everything. The connection of the new keeper is the attempt: when it ends before that,
the new keeper has died, and this one goes on where that has ended, with servers of its own code.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from fusevol.keeper.door import Answer, Door, Operation, RefusedError, Request, failure
from fusevol.keeper.loop import Loop, Timer
from fusevol.keeper.mounts import Mount, Server
from fusevol.keeper.servers import Servers, Tell
from fusevol.keeper.wire import Message

log = logging.getLogger(__name__)

LEAVE: Final = 8.0
"""Seconds that a server may take to finish what it has begun; it gives up after fewer itself."""
_TURN_UP: Final = 0.5
"""Seconds in which a server of a new keeper that died may report."""


class Giving:
    """See above."""

    def __init__(
        self,
        loop: Loop,
        servers: Servers,
        tell: Tell,
        unheard: Callable[[], list[Message]],
        end: Callable[[], object],
    ) -> None:
        """*unheard*: the notes that nobody has heard. *end* is called when there is nothing left to do."""
        self._loop = loop
        self._servers = servers
        self._tell = tell
        self._unheard = unheard
        self._end = end
        self._taker: socket.socket | None = None
        self._taker_pidfd = -1
        self.door: Door | None = None
        """Whose clients ask; set once."""
        self.operations: dict[str, Operation] = {
            "take-over": self._begin,
            "give": self._give,
            "took": self._took,
            "back": self._back,
            "commit": self._commit,
        }

    def gone(self, client: socket.socket) -> None:
        """*client* has hung up: if it was the new keeper, all is as before."""
        if client is not self._taker:
            return
        log.info("the keeper that was to take over has ended: this one goes on")
        self._taker = None
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._taker_pidfd, signal.SIGKILL)  # it may have hung up without being dead
        os.close(self._taker_pidfd)
        for mount in self._servers.mounts:
            if mount.state == "moved" and mount.server is not None:
                self._servers.serve(mount, mount.server)
            elif mount.state in {"given", "moved"}:
                # the new keeper may have started a server, which will report; two cannot serve one mount
                mount.state = "waiting"
                mount.timer = self._loop.later(_TURN_UP, partial(self._servers.take_back, mount))
            elif mount.state == "leaving":
                self._servers.stay(mount)

    def _begin(self, request: Request) -> Answer:
        if self._taker is not None:
            raise RefusedError("Another keeper is taking over already: wait for it.")
        if len(request.descriptors) != 1:
            raise RefusedError("Who takes over sends one descriptor, a pidfd of itself.")
        self._taker, self._taker_pidfd = request.client, request.descriptors[0]
        request.keep()
        log.info("another keeper takes over")
        return {}, []

    def _mount(self, request: Request) -> Mount | None:
        if request.client is not self._taker:
            raise RefusedError("Only a keeper that takes over may ask for that.")
        return self._servers.find(request.text("mount_id"))

    def _give(self, request: Request) -> Answer | None:
        mount = self._mount(request)
        if mount is None or mount.held is None or mount.state in {"given", "moved"}:
            return {"gone": True}, []
        if mount.state == "starting":
            return {"later": True}, []
        asked = time.monotonic()
        timer = self._loop.later(LEAVE, lambda: self._refuse(mount, request.client))
        self._servers.leave(mount, lambda: self._given(mount, request.client, timer, asked))
        return None

    def _refuse(self, mount: Mount, client: socket.socket) -> None:
        """The server has not left in time."""
        self._servers.stay(mount)
        self._answer(
            client, failure(f"Operations of {mount.mount_id} hang in its storage: see what that waits for."), []
        )

    def _given(self, mount: Mount, client: socket.socket, timer: Timer, asked: float) -> None:
        """The server has left."""
        timer.cancel()
        mount.heir = None
        if mount.held is None:
            self._answer(client, {"ok": True, "gone": True}, [])
            return
        mount.state = "given"
        mount.pause = round((time.monotonic() - asked) * 1000)
        answer = {"ok": True, "spec": mount.spec, "log": mount.log, "restarts": mount.restarts}
        self._answer(client, answer | {"minor": mount.held.minor}, mount.held.descriptors)

    def _answer(self, client: socket.socket, message: Message, attached: list[int]) -> None:
        if self.door is not None:
            self.door.answer(client, message, attached)

    def _took(self, request: Request) -> Answer:
        mount, pid = self._mount(request), request.number("pid")
        if mount is None or mount.state not in {"given", "moved"} or len(request.descriptors) != 1:
            raise RefusedError("That mount was not given away.")
        old = mount.last[0]
        mount.state = "moved"
        mount.server = Server(pid, request.descriptors[0], ours=False)
        request.keep()
        took = mount.pause + request.number("ms")
        self._tell("moved", mount.mount_id, pid=pid, old=old, ms=took, version=request.text("version"))
        return {}, []

    def _back(self, request: Request) -> Answer:
        mount = self._mount(request)
        if mount is not None and mount.state in {"given", "moved"}:
            self._servers.take_back(mount)
        return {}, []

    def _commit(self, request: Request) -> Answer:
        if request.client is not self._taker:
            raise RefusedError("Only a keeper that takes over may ask for that.")
        if self.door is None or any(m.held is not None and m.state != "moved" for m in self._servers.mounts):
            return {"more": True}, []
        log.info("ending: another keeper has taken over")
        self._end()
        return {"notes": self._unheard()}, [self.door.listener.fileno()]
