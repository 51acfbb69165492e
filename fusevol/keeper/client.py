"""Talks to a keeper. Blocks, with a bound: an event loop calls it on a worker thread."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fusevol.errors import TimeoutExpiredError, UnavailableError
from fusevol.keeper import wire
from fusevol.passing import receive

_TIMEVAL: Final = struct.Struct("@ll")
"""Seconds and microseconds (socket(7))."""


def call(
    directory: Path, request: wire.Message, descriptors: Sequence[int] = (), timeout: float = 10.0
) -> tuple[wire.Message, list[int]]:
    """Send *request* to the keeper of *directory*; its answer, and the descriptors that came with it (to be closed).

    *descriptors* are duplicated; they stay the caller's. Raises :class:`UnavailableError` when nobody listens or the
    keeper hung up without an answer (the request may have been carried out), :class:`TimeoutExpiredError` when there
    is none within *timeout* seconds.
    """
    path = wire.socket_path(directory)
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
            # a blocking connect(2) waits for room in the queue of the keeper, for as long as a send may (unix(7))
            connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*divmod(int(timeout * 1e6), 10**6))
            )
            connection.connect(os.fspath(path))
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            socket.send_fds(connection, [wire.encode(request)], descriptors)
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            data, received = receive(connection, wire.LIMIT + 1, wire.DESCRIPTORS)
    except (TimeoutError, BlockingIOError) as e:
        raise TimeoutExpiredError(
            f"The keeper behind {path} gave no answer within {timeout:g} seconds: end it (its pid is in keeper.lock)."
        ) from e
    except OSError as e:
        raise UnavailableError(f"No keeper answers on {path} ({e.strerror or e}): start the agent.") from e
    try:
        return wire.decode(data), received
    except ValueError as e:
        for descriptor in received:
            os.close(descriptor)
        raise UnavailableError(f"The keeper behind {path} hung up without an answer: see keeper.log.") from e


def servers(directory: Path) -> tuple[list[wire.Message], list[wire.Message]]:
    """All servers that the keeper started and that live, and the last that ended. Raises as :func:`call` does."""
    living: list[wire.Message] = []
    after = ""
    while True:
        answer, _ = call(directory, {"op": "list", "after": after})
        living += answer["servers"]
        if not answer["more"]:
            return living, answer["ended"]
        after = living[-1]["mount_id"]
