"""One connection to the kernel: the mount, what was agreed on in INIT, answers and notifications."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from typing import Final, NamedTuple, Self

from fusevol.errors import UnavailableError
from fusevol.transport import mount
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel.features import Agreement, agree
from fusevol.transport.kernel.protocol import Notify, Op

_HEADER: Final = p.IN_HEADER.size
_ANSWER: Final = p.OUT_HEADER.size
_SMALL: Final = 1024
"""Bytes of an answer for which copying is quicker than naming two places."""
_INIT_SIZE: Final = 8192
"""FUSE_MIN_READ_BUFFER: what a read must have room for."""
_BACKGROUND: Final = 256
"""Requests that nobody waits for (read-ahead, releases) which the kernel may have in flight."""


class Wishes(NamedTuple):
    """What a server wants of a connection."""

    fsname: str
    read_only: bool
    allow_other: bool
    devices: bool
    unwanted: frozenset[str]
    """Features not to be used, though the kernel offers them."""
    max_write: int
    """Bytes of the largest write; buffers are so large."""
    stack_depth: int
    """1, or 2 where the backing store is stacked itself (overlayfs): passthrough needs to know."""
    request_timeout: int = 0
    """Seconds after which the kernel ends the connection for a request that has no answer; 0 for never."""


class Connection:
    """See above. Answers may be sent by any thread."""

    def __init__(self, fd: int, minor: int, agreed: Agreement, max_write: int) -> None:
        self.fd = fd
        """The descriptor of /dev/fuse."""
        self.minor = minor
        """The minor number of the mount's device, which names the connection in /sys/fs/fuse/connections."""
        self.agreed = agreed
        self.max_write = max_write
        self.buffer_size = max(max_write, 4096) + 4096

    def __repr__(self) -> str:
        return f"<Connection fd={self.fd} 7.{self.agreed.minor} {' '.join(self.agreed.names())}>"

    @classmethod
    def open(cls, mountpoint: str, wishes: Wishes) -> Self:
        """Mount at *mountpoint* and answer INIT.

        Raises ``OSError`` or :class:`UnavailableError`; nothing is mounted then.
        """
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            mount.fuse(
                fd,
                mountpoint,
                fsname=wishes.fsname,
                read_only=wishes.read_only,
                allow_other=wishes.allow_other,
                devices=wishes.devices,
            )
            try:
                found = mount.root(mountpoint)
                return cls._greet(fd, found.minor if found is not None else -1, wishes)
            except BaseException:
                with contextlib.suppress(OSError):
                    mount.unmount(mountpoint, lazy=True)
                raise
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _greet(cls, fd: int, minor: int, wishes: Wishes) -> Self:
        request = os.read(fd, _INIT_SIZE)
        _len, op, unique, *_rest = p.IN_HEADER.unpack_from(request)
        if op != Op.INIT:
            raise UnavailableError(f"The kernel began with operation {op} instead of INIT: use the transport pyfuse3.")
        major, spoken, readahead, flags = p.INIT_IN.unpack_from(request, _HEADER)
        if len(request) >= _HEADER + p.INIT_IN.size + 4:
            flags |= p.INIT_IN_FLAGS2.unpack_from(request, _HEADER + p.INIT_IN.size)[0] << 32
        if major != p.MAJOR or spoken < p.OLDEST_MINOR:
            os.write(fd, p.OUT_HEADER.pack(p.OUT_HEADER.size, -errno.EPROTO, unique))
            raise UnavailableError(
                f"The kernel speaks FUSE {major}.{spoken}, {p.MAJOR}.{p.OLDEST_MINOR} (Linux 5.4) is needed: "
                "use the transport pyfuse3."
            )
        agreed = agree(spoken, flags, wishes.unwanted)
        connection = cls(fd, minor, agreed, wishes.max_write)
        connection.answer(
            unique,
            p.INIT_OUT.pack(
                p.MAJOR,
                agreed.minor,
                readahead,
                agreed.flags & 0xFFFFFFFF,
                _BACKGROUND,
                _BACKGROUND * 3 // 4,
                wishes.max_write,
                1,
                wishes.max_write // 4096,
                0,
                agreed.flags >> 32,
                wishes.stack_depth if agreed.has("passthrough") else 0,
                wishes.request_timeout if agreed.has("request-timeout") else 0,
            ),
        )
        return connection

    def answer(self, unique: int, found: bytes | int) -> None:
        """Answer a request: bytes, or an errno. Never raises: what the kernel has given up wants no answer."""
        try:
            if isinstance(found, int):
                os.write(self.fd, p.OUT_HEADER.pack(_ANSWER, -found, unique))
            elif len(found) <= _SMALL:
                os.write(self.fd, p.OUT_HEADER.pack(_ANSWER + len(found), 0, unique) + found)
            else:
                os.writev(self.fd, (p.OUT_HEADER.pack(_ANSWER + len(found), 0, unique), found))
        except OSError:
            pass

    def notify(self, what: Notify, payload: bytes = b"") -> None:
        """Tell the kernel something. Raises ``OSError`` (ENOENT: it does not know that inode)."""
        os.write(self.fd, p.OUT_HEADER.pack(p.OUT_HEADER.size + len(payload), what, 0) + payload)

    def over(self) -> bool:
        """Whether it has ended: unmounted everywhere, or aborted."""
        poll = select.poll()
        poll.register(self.fd, 0)  # POLLERR is told unasked
        return bool(poll.poll(0))

    def abort(self) -> None:
        """End the connection, whoever holds its descriptor: requests in it and all later ones fail."""
        if not self.over():  # else its number may be another one's by now
            mount.abort(self.minor)

    def close(self) -> None:
        """Give the descriptor back; the connection ends when it was the last one."""
        os.close(self.fd)
