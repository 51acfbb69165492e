"""The volume plugin on its socket."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import trio

from agent.api import serving
from agent.api.listener import listen
from agent.plugin.app import app
from agent.plugin.driver import Driver
from agent.tally import Requests
from fusevol.errors import UsageError

log = logging.getLogger(__name__)


async def serve(
    path: Path,
    driver: Driver,
    requests: Requests,
    stop: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *driver* at *path*, mode 0600, until *stop* returns; *requests* counts its calls.

    Raises :class:`UsageError` for the path.
    """
    with _listening(path) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.tidy)
            await nursery.start(serving.serve, app(driver, requests), listener, stop)
            log.info("Volume plugin on %s.", path)
            task_status.started()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        listener = listen(path, "another volume plugin", "choose another plugin socket")
    except OSError as e:
        raise UsageError(f"The plugin socket {path} cannot be opened: {e.strerror or e}.") from e
    with listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
