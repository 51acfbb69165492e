"""An application on a listening socket, until it is told to stop.

hypercorn answers each connection; which ones there are is decided here, since it has no bounds of its own for peers
that are many or slow. A connection costs some 50 KiB, so there are `CONNECTIONS` of them at most; one more is told so.
Whoever sends no request for `IDLE` seconds, or sends its head for longer than that, is disconnected (by hypercorn), and
so is whoever does not read what it asked for: hypercorn's writing can be cancelled by nobody, so that a single such
peer would keep an agent from ending.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, cast

import hypercorn.config
import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.api.status import failure, status

CONNECTIONS: Final = 256
"""Connections of one socket at the same time, those included that only wait for the next request."""
IDLE: Final = 5.0
"""Seconds until a request must have been sent, but for its body."""
READING: Final = 30.0
"""Seconds that a peer may take to read `_PIECE` bytes."""
HEAD_LIMIT: Final = 16 * 1024
"""Bytes of a request's path and headers."""
GRACE: Final = 2.0
"""Seconds that requests get to end."""
_PIECE: Final = 64 * 1024
_REFUSING: Final = 64
"""Connections beyond the limit that are told why they are refused; even more are closed without a word."""


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    stop: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *app* on *listener*, which stays the caller's, until *stop* returns."""
    door = _Door(app)
    # a copy, which no child process inherits: a keeper that did would be taken for this agent when that died
    own = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
    async with own, trio.open_nursery() as connections:
        connections.start_soon(door.slam)
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, door.come_in, [own], handler_nursery=connections))
            task_status.started()
            await stop()
            accepting.cancel_scope.cancel()
        with trio.move_on_after(GRACE):
            await door.emptied()
        connections.cancel_scope.cancel()


class _Door:
    """The connections of one socket. For the trio loop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = wrap_app(cast("ASGIFramework", _Heads(app)), 0, "asgi")
        self._context = WorkerContext(None)
        self._settings = hypercorn.config.Config()
        self._settings.accesslog = None
        self._settings.errorlog = logging.getLogger("agent.http")
        self._settings.keep_alive_timeout = int(IDLE)
        self._settings.h11_max_incomplete_size = 4 * HEAD_LIMIT  # what is more than that gets no sentence
        self._settings.h2_max_concurrent_streams = 8
        self._open: set[trio.SocketStream] = set()
        self._empty = trio.Event()

    async def come_in(self, stream: trio.SocketStream) -> None:
        """Answer a connection's requests until it ends."""
        if len(self._open) >= CONNECTIONS + _REFUSING:
            await trio.aclose_forcefully(stream)
            return
        self._open.add(stream)
        try:
            if len(self._open) > CONNECTIONS:
                await _send_away(stream)
            else:
                patient = cast("trio.SSLStream[trio.SocketStream]", _Patient(stream))
                await _Connection(self._app, self._settings, self._context, ConnectionState({}), patient)
        finally:
            self._open.discard(stream)
            if not self._open:
                self._empty.set()
            await trio.aclose_forcefully(stream)

    async def emptied(self) -> None:
        """End connections without a request under way, and wait for the others to end."""
        await self._context.terminated.set()
        while self._open:
            self._empty = trio.Event()
            await self._empty.wait()

    async def slam(self) -> None:
        """When cancelled, end all connections: what hypercorn is writing ends with its connection only."""
        try:
            await trio.sleep_forever()
        finally:
            for stream in self._open:
                stream.socket.close()


class _Connection(TCPServer):
    """A connection that is over when its peer has gone: hypercorn's would wait for the next request even then."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Patient:
    """The part of a stream that hypercorn uses; a peer that does not read breaks it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.receive_some = stream.receive_some
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def send_all(self, data: bytes) -> None:
        """As of any stream. Raises ``BrokenResourceError`` for a peer that reads too slowly."""
        view = memoryview(data)
        for at in range(0, len(view), _PIECE):
            with trio.move_on_after(READING) as patience:
                await self._stream.send_all(view[at : at + _PIECE])
            if patience.cancelled_caught:
                await trio.aclose_forcefully(self._stream)
                raise trio.BrokenResourceError


class _Heads:
    """The application, with nothing but HTTP, and heads of a bounded size."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            head = [scope["raw_path"], scope["query_string"], *(part for pair in scope["headers"] for part in pair)]
            if sum(map(len, head)) > HEAD_LIMIT:
                refusal = failure(
                    431, "BadRequest", f"The request's path and headers have more than {HEAD_LIMIT} bytes: send less."
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _send_away(stream: trio.SocketStream) -> None:
    words = json.dumps(status(503, "ServiceUnavailable", f"There are {CONNECTIONS} connections already: try again."))
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close"
    with trio.move_on_after(1):
        await stream.receive_some(_PIECE)  # who is still sending would not read the answer
        await stream.send_all(f"{head}\r\nContent-Length: {len(words)}\r\n\r\n{words}".encode())
