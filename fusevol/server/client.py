"""Talks to a volume server over its control socket. Standard library only: every call-out starts it."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from fusevol.errors import UnavailableError


def call(control: Path, request: dict[str, Any], timeout: float = 10.0) -> dict[str, Any]:
    """Send *request* to the server that listens on *control* and return its answer.

    Raises :class:`UnavailableError` if nobody listens, or if there is no whole answer within *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    received = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(control))
            connection.sendall(json.dumps(request).encode() + b"\n")
            while not received.endswith(b"\n"):
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = connection.recv(65536)
                if not chunk:
                    raise UnavailableError(
                        f"The volume server behind {control} hung up without an answer: see its log file."
                    )
                received += chunk
    except TimeoutError as e:
        raise UnavailableError(
            f"The volume server behind {control} gave no answer within {timeout:g} seconds: see its log file."
        ) from e
    except OSError as e:
        raise UnavailableError(
            f"No volume server answers on {control} ({e.strerror or e}): the volume is not mounted; mount it again."
        ) from e
    try:
        answer = json.loads(received)
    except ValueError as e:
        raise UnavailableError(
            f"What listens on {control} is no volume server: remove the socket and mount again."
        ) from e
    if not isinstance(answer, dict):
        raise UnavailableError(f"What listens on {control} is no volume server: remove the socket and mount again.")
    return answer
