"""One inode that the kernel knows, as :mod:`fusevol.fs.nodes` keeps it."""

from __future__ import annotations

import errno
import os
import threading


class Node:
    """One inode. Fields are the table's and the accounting's; others read ``number`` and ``generation``."""

    __slots__ = (
        "charged",
        "fd",
        "generation",
        "handle",
        "hold",
        "key",
        "lock",
        "lookups",
        "moving",
        "name",
        "number",
        "opens",
        "parent",
        "pins",
        "unlinked",
        "where",
    )

    def __init__(self, number: int, generation: int, key: tuple[int, int], fd: int, charged: int) -> None:
        self.number = number
        self.generation = generation
        self.key = key
        self.fd = fd
        self.lookups = 0
        self.opens = 0
        self.pins = 0
        self.handle: bytes | None = None
        self.parent: Node | None = None
        self.name: bytes | None = None
        self.unlinked = False
        self.charged = charged
        """Bytes that the accounting has counted; negative as in ``fusevol.fs.memory``."""
        self.where = -1
        """Its record in the session memory, if there is one."""
        self.hold = 0
        self.moving = False
        self.lock: threading.Lock | None = None

    def __repr__(self) -> str:
        return f"<Node {self.number} fd={self.fd} lookups={self.lookups} opens={self.opens} pins={self.pins}>"


def stale() -> OSError:
    """The error for an inode that is gone."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))
