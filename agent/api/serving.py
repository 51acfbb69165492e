"""An application on a listening socket, until it is told to stop."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import hypercorn.config
import hypercorn.trio
import trio
from starlette.applications import Starlette

GRACE = 2.0
"""Seconds that requests get to end."""


async def serve(
    app: Starlette,
    listener: socket.socket,
    stop: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *app* on *listener*, which stays the caller's, until *stop* returns."""
    served = os.dup(listener.fileno())  # the server closes what it is given
    settings = hypercorn.config.Config()
    settings.bind = [f"fd://{served}"]
    settings.accesslog = None
    settings.errorlog = logging.getLogger("agent.http")
    settings.graceful_timeout = GRACE
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(hypercorn.trio.serve, app, settings, shutdown_trigger=stop, mode="asgi"))  # type: ignore[arg-type]  # Starlette's scope type is wider
        # the server lets its workers inherit it: a keeper must not, which would be taken for this agent when that died
        os.set_inheritable(served, False)
        task_status.started()
