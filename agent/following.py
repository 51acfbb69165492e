"""Follows volume servers through their deaths.

A death is noticed through a pidfd, which also works for a process that is not our child. The keeper then says whether
another process goes on in its place, which users of the mount do not notice; only when none does is the mount dead, and
has to be made again. A copy of what the next process needs is kept here, too: should a server and its keeper die
together, the next keeper goes on with that.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from agent.keeper import KeeperLink, Kept
from agent.server import Server
from fusevol.errors import UnavailableError
from fusevol.server.held import Held

Obj = dict[str, Any]

log = logging.getLogger(__name__)

Tell = Callable[[str, str, str, bool], Awaitable[object]]
"""Called with a mount id, a reason, what the mount's volume server did (the rest of a sentence), and whether it is a
warning."""


async def no_tell(mount_id: str, reason: str, what: str, warning: bool) -> None:
    """The :data:`Tell` where nobody wants to know."""


class Following:
    """The volume servers of one agent. For the trio loop; :meth:`run` must be running."""

    def __init__(
        self,
        keeper: KeeperLink,
        nursery: trio.Nursery,
        files: Callable[[str], tuple[Path, Path, Path]],
        died: Callable[[str], None],
        tell: Tell,
    ) -> None:
        """*files*: spec, control socket and log of a mount. *died* is called with the mount id of a server that ended
        without having been asked to, and that no other one follows."""
        self._keeper = keeper
        self._nursery = nursery
        self._files = files
        self._died = died
        self._tell = tell
        self._news = trio.Event()
        """Set, and a new one made, when the keeper may have something else to say of a server than before."""
        self.servers: dict[str, Server] = {}
        """Those whose mounts have a server or will have the next one, by mount id."""

    async def run(self) -> None:
        """Hear what happens to the servers, for ever."""
        await self._keeper.listen(self._hear, self._stir)

    def follow(self, server: Server) -> None:
        """See to it that *server* is what lives, until it has ended for good."""
        self.servers[server.mount_id] = server
        self._nursery.start_soon(self._follow, server)

    async def _follow(self, server: Server) -> None:
        try:
            while True:
                if server.pidfd >= 0:
                    await trio.lowlevel.wait_readable(server.pidfd)
                    server.died()
                if not await self._goes_on(server):
                    break
        finally:
            server.close()
        self._ended(server)

    async def _goes_on(self, server: Server) -> bool:
        """Whether another process serves the mount of one that died: the keeper knows, sooner or later."""
        while not (server.spare.over() if server.spare is not None else server.stopping):
            news = self._news
            try:
                kept = await self._keeper.find(server.mount_id)
                if kept is None:
                    if server.spare is None or not await self._rescue(server, server.spare):
                        break
                    continue
            except UnavailableError as e:
                log.warning("What became of the volume server of %s is not known: %s", server.mount_id, e)
                break
            if take(kept, server):
                return True
            await news.wait()
        return False

    async def _rescue(self, server: Server, spare: Held) -> bool:
        """Server and keeper died together: have the new keeper go on with what is kept here; whether it does."""
        file, _, log_file = self._files(server.mount_id)
        request = {"op": "adopt", "mount_id": server.mount_id, "spec": str(file), "log": str(log_file)}
        answered = await self._keeper.call(request | {"minor": spare.minor}, spare.descriptors)
        if answered is None:
            return True  # that one has ended, too: the next is asked
        answer, descriptors = answered
        for descriptor in descriptors:
            os.close(descriptor)
        if not answer.get("ok"):
            log.warning("The mount %s is not taken over: %s", server.mount_id, answer.get("error"))
        return bool(answer.get("ok"))

    async def keep_spare(self, server: Server) -> None:
        """Have a copy here, too, of what is held of its mount."""
        with contextlib.suppress(UnavailableError):
            kept = await self._keeper.find(server.mount_id)
            if kept is not None:
                if kept.held is not None and not server.ended.is_set():
                    server.keep(kept.held)
                    kept = kept._replace(held=None)
                kept.close()

    def _ended(self, server: Server) -> None:
        server.end()
        mount_id = server.mount_id
        if self.servers.get(mount_id) is server:
            del self.servers[mount_id]
        if not server.stopping:
            log.warning("The volume server of %s (pid %d) ended unexpectedly.", mount_id, server.pid)
            self._died(mount_id)

    def _stir(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _hear(self, note: Obj) -> None:
        self._stir()
        mount_id, what = str(note["mount_id"]), note["what"]
        if what == "adopted" and mount_id in self.servers:
            await self.keep_spare(self.servers[mount_id])
        elif what == "replaced":
            message = f"died ({_how(note)}) and was replaced, {note['ms']} ms."
            await self._tell(mount_id, "VolumeServerReplaced", message, True)
        elif what == "moved":
            message = f"was replaced by one of version {note['version']}, {note['ms']} ms."
            await self._tell(mount_id, "VolumeServerMoved", message, False)
        elif what == "failed":
            words = f" Its last words: {note['words']}" if note["words"] else ""
            message = (
                f"died {note['times']} times in a row within moments ({_how(note)}): the mount was ended, and files "
                f"that were open on it are lost.{words}"
            )
            await self._tell(mount_id, "VolumeServerFailed", message, True)


def take(kept: Kept, server: Server) -> bool:
    """Have *server* be what the keeper knows; whether it lives and serves."""
    server.restarts = kept.restarts
    if kept.held is not None:
        server.keep(kept.held)
    if kept.pidfd >= 0 and kept.state == "serving":
        server.goes_on(kept.pid, kept.pidfd)
        return True
    if kept.pidfd >= 0:
        os.close(kept.pidfd)
    return False


def _how(note: Obj) -> str:
    status = note["status"]
    if status is None:
        return "how is not known, since its keeper had died, too"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
