"""The keeper's socket: lets clients in, has their requests carried out, and never waits for any of them."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from fusevol.keeper import wire
from fusevol.keeper.loop import Loop
from fusevol.passing import receive

log = logging.getLogger(__name__)

_CLIENTS: Final = 32
"""Connections at the same time. One more, and the one that has been silent for longest is closed."""
_QUEUE: Final = 128
"""Connections that wait to be accepted."""

Answer = tuple[wire.Message, list[int]]
"""What is answered, and the descriptors to attach, which stay the keeper's."""


class Request(NamedTuple):
    """What a client asks for."""

    client: socket.socket
    message: wire.Message
    descriptors: list[int]
    """Closed when the request was carried out, unless :meth:`keep` is called."""

    def text(self, name: str, *, empty: bool = False) -> str:
        """A text in the message. Raises :class:`RefusedError`."""
        value = self.message.get(name, "" if empty else None)
        if not isinstance(value, str) or "\0" in value or not (value or empty):
            raise RefusedError(f"The request has no usable {name}.")
        return value

    def number(self, name: str) -> int:
        """A whole number in the message. Raises :class:`RefusedError`."""
        value = self.message.get(name)
        if type(value) is not int or value < 0:
            raise RefusedError(f"The request has no usable {name}.")
        return value

    def keep(self) -> None:
        """Do not close the descriptors: they have found their place."""
        self.descriptors.clear()


class RefusedError(Exception):
    """A request that is not carried out; one sentence."""


Operation = Callable[[Request], Answer | None]
"""Raises :class:`RefusedError`. ``None``: :meth:`Door.answer` will be called later."""


class Door:
    """Listens from construction on."""

    def __init__(
        self,
        path: Path,
        loop: Loop,
        operations: Mapping[str, Operation],
        gone: Callable[[socket.socket], object],
        listener: socket.socket | None,
    ) -> None:
        """On *path*, or on what listens there already. *gone* is called with each client that hangs up."""
        self._path = path
        self._loop = loop
        self._operations = operations
        self._gone = gone
        self._clients: dict[socket.socket, bool] = {}
        """Whether it waits for an answer; the one that has been silent for longest first."""
        self.listener = listener if listener is not None else self._listen()
        loop.watch(self.listener.fileno(), self._accept)

    def __repr__(self) -> str:
        return f"<Door {self._path} clients={len(self._clients)}>"

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

    def _accept(self) -> None:
        try:
            client, _ = self.listener.accept()
        except BlockingIOError:
            return  # gone again
        except OSError as e:
            log.warning("no connection can be accepted: %s", e.strerror)
            time.sleep(0.1)  # the machine is out of descriptors, and asking again at once would not help
            return
        if len(self._clients) >= _CLIENTS:
            self._drop(next((c for c, waits in self._clients.items() if not waits), next(iter(self._clients))))
        client.setblocking(False)
        self._clients[client] = False
        self._loop.watch(client.fileno(), lambda: self._serve(client))

    def _drop(self, client: socket.socket) -> None:
        del self._clients[client]
        self._loop.unwatch(client.fileno())
        client.close()
        self._gone(client)

    def _serve(self, client: socket.socket) -> None:
        """One message of *client*, and the answer to it."""
        try:
            data, descriptors = receive(client, wire.LIMIT + 1, wire.DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        try:
            if not data:
                self._drop(client)
                return
            del self._clients[client]
            self._clients[client] = True  # heard last
            found = self._carry_out(client, data, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if found is not None:
            self.answer(client, *found)

    def answer(self, client: socket.socket, message: wire.Message, attached: list[int]) -> None:
        """Answer the last request of *client*, unless it has gone."""
        if client not in self._clients:
            return
        self._clients[client] = False
        try:
            socket.send_fds(client, [wire.encode(message)], attached)
        except OSError:  # has gone, or does not read its answers
            self._drop(client)

    def _carry_out(self, client: socket.socket, data: bytes, descriptors: list[int]) -> Answer | None:
        try:
            request = Request(client, wire.decode(data), descriptors)
            found = self._operation(request)(request)
        except (RefusedError, ValueError) as e:
            return failure(str(e)), []
        except OSError as e:
            return failure(f"The keeper could not do that: {e.strerror or e}."), []
        except Exception:
            log.exception("a request failed unexpectedly")
            return failure("The keeper failed because of a bug: see keeper.log."), []
        return found if found is None else ({"ok": True, **found[0]}, found[1])

    def _operation(self, request: Request) -> Operation:
        op = request.message.get("op")
        found = self._operations.get(op) if isinstance(op, str) else None
        if found is None:
            raise RefusedError(f"There is no such operation: choose one of {', '.join(self._operations)}.")
        return found


def failure(sentence: str) -> wire.Message:
    """The answer to a request that was not carried out."""
    return {"ok": False, "error": sentence}
