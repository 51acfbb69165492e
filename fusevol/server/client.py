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
                    raise hung_up(control)
                received += chunk
    except TimeoutError as e:
        raise silent(control, timeout) from e
    except OSError as e:
        raise absent(control, e) from e
    return decoded(control, bytes(received))


def hung_up(control: Path) -> UnavailableError:
    """The error for a server that ended in the middle of a request."""
    return UnavailableError(f"The volume server behind {control} hung up without an answer: see its log file.")


def silent(control: Path, seconds: float) -> UnavailableError:
    """The error for a server that does not answer."""
    return UnavailableError(
        f"The volume server behind {control} gave no answer within {seconds:g} seconds: see its log file."
    )


def absent(control: Path, error: OSError) -> UnavailableError:
    """The error for a server that is not there."""
    return UnavailableError(
        f"No volume server answers on {control} ({error.strerror or error}): the volume is not mounted; mount it again."
    )


def decoded(control: Path, received: bytes) -> dict[str, Any]:
    """The answer in *received*. Raises :class:`UnavailableError` if it is none."""
    try:
        answer = json.loads(received)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UnavailableError(f"What listens on {control} is no volume server: remove the socket and mount again.")
    return answer
