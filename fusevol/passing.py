"""Descriptors that come through a socket (SCM_RIGHTS, unix(7))."""

from __future__ import annotations

import socket
from array import array


def receive(of: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """A message of up to *size* bytes and *most* descriptors, which no program that is started inherits.

    Not by socket.recv_fds, which leaves them to be inherited and ignores its flags (Python 3.11). Raises ``OSError``.
    """
    numbers = array("i")
    room = socket.CMSG_LEN(most * numbers.itemsize)
    data, ancillary, _flags, _address = of.recvmsg(size, room, flags | socket.MSG_CMSG_CLOEXEC)
    for _level, _kind, content in ancillary:
        numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return data, list(numbers)
