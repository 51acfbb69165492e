"""A peer that speaks HTTP as it likes: byte by byte, too much of it, or half of it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Place = Path | tuple[str, int]


@contextlib.contextmanager
def connected(place: Place, timeout: float = 30.0) -> Iterator[socket.socket]:
    """A connection to a unix socket or a TCP address."""
    with socket.socket(socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET) as peer:
        # not by a time limit alone: a unix socket with one says EAGAIN when its queue of connections is full
        peer.connect(str(place) if isinstance(place, Path) else place)
        peer.settimeout(timeout)
        yield peer


def head(method: str, path: str, **headers: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(peer: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON body, if it is that, of the answer that *peer* gets."""
    text = b""
    while b"\r\n\r\n" not in text:
        received = peer.recv(65536)
        assert received, f"the connection ended: {text!r}"
        text += received
    first, _, body = text.partition(b"\r\n\r\n")
    lines = first.decode().lower().split("\r\n")
    size = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    while len(body) < size:
        body += peer.recv(65536)
    return int(lines[0].split()[1]), json.loads(body) if body.startswith(b"{") else {}


def post(place: Place, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and answer of one POST."""
    with connected(place) as peer:
        peer.sendall(head("POST", path, Content_Length=str(len(body))) + body)
        return answer(peer)


def ends(peer: socket.socket) -> float:
    """Seconds until the other end closes the connection, whatever it sends before."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while peer.recv(65536):
            pass
    return time.monotonic() - began
