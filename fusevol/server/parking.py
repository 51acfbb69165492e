"""A parking lot for descriptors: they outlive the process that has put them there.

They wait as messages in the queue of a pair of sockets, which nobody reads (SCM_RIGHTS of unix(7)). Whoever holds the
pair holds what they stand for. Descriptors that are wanted are in the queue at every moment: they are looked at without
taking them out (MSG_PEEK gives copies of them), and before one is taken out to get at those behind it, a copy is put
at the end. After a kill in between one is there twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from struct import Struct
from typing import Final

from fusevol.passing import receive

log = logging.getLogger(__name__)

_WORD: Final = Struct("=Q")
_PEEK_OFFSET: Final = 42
"""SO_PEEK_OFF of asm-generic/socket.h, which Python's socket does not name."""
_SEND_BUFFER_FORCE: Final = 32
"""SO_SNDBUFFORCE."""
_ROOM: Final = 8 << 20
"""Bytes of messages that may wait, about 800 for each (the kernel doubles this); they take memory as they come."""
_REPACK: Final = 64
"""Descriptors that nobody wants any longer from which on they are taken out."""


class ParkingLot:
    """See above. A descriptor has a number. Thread-safe."""

    def __init__(self, ends: tuple[socket.socket, socket.socket]) -> None:
        """*ends* do not block."""
        self._into, self._from = ends
        self._lock = threading.Lock()
        self._parked: set[int] = set()
        self._messages = 0

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """The ends of an empty one."""
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            end.setblocking(False)
        with contextlib.suppress(PermissionError):  # without CAP_NET_ADMIN there is room for less than 300
            ends[0].setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCE, _ROOM)
        return ends

    def park(self, number: int, fd: int) -> None:
        """Keep a copy of *fd*, unless *number* is there already."""
        with self._lock:
            if number not in self._parked:
                try:
                    self._send(number, fd)
                except OSError as e:  # the queue is full
                    log.info("inode of node %d would not survive this server: %s", number, e.strerror)
                else:
                    self._parked.add(number)

    def unpark(self, number: int) -> None:
        """The end of :meth:`park`; of what is not there, nothing."""
        with self._lock:
            if number in self._parked:
                self._parked.remove(number)
                if self._messages - len(self._parked) >= _REPACK:
                    self._repack()

    def parked(self) -> dict[int, int]:
        """Copies of all that is there, whoever has put it there, by number; the caller closes them."""
        with self._lock:
            self._from.setsockopt(socket.SOL_SOCKET, _PEEK_OFFSET, 0)
            found: dict[int, int] = {}
            self._messages = 0
            while (message := self._receive(socket.MSG_PEEK)) is not None:
                number, fd = message
                self._messages += 1
                if number in found:
                    os.close(fd)
                else:
                    found[number] = fd
            self._from.setsockopt(socket.SOL_SOCKET, _PEEK_OFFSET, -1)
            self._parked = set(found)
            return found

    def _repack(self) -> None:
        """Take out what is not wanted, going once around the queue."""
        kept: set[int] = set()
        for _ in range(self._messages):
            first = self._receive(socket.MSG_PEEK)
            if first is None:
                return
            try:
                if first[0] in self._parked and first[0] not in kept:
                    self._send(*first)
                    kept.add(first[0])
            except OSError:
                return  # it is full of what is wanted
            finally:
                os.close(first[1])
            taken = self._receive(0)
            if taken is not None:
                os.close(taken[1])
                self._messages -= 1

    def _send(self, number: int, fd: int) -> None:
        socket.send_fds(self._into, [_WORD.pack(number)], [fd])
        self._messages += 1

    def _receive(self, flags: int) -> tuple[int, int] | None:
        """A number and a descriptor; ``None`` if the queue is at its end."""
        try:
            message, descriptors = receive(self._from, _WORD.size, 1, flags)
        except BlockingIOError:
            return None
        if len(message) < _WORD.size or not descriptors:
            return None
        number: int = _WORD.unpack(message)[0]
        return number, descriptors[0]
