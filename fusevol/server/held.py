"""What must outlive a volume server so that another one can go on: descriptors, and how they are handed over."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple, Self

from fusevol.errors import UnavailableError

_GREETING: Final = b"fusevol-held-1"


class Held(NamedTuple):
    """Descriptors of one mount. A connection lives as long as one copy of ``device`` is open anywhere."""

    device: int
    """/dev/fuse."""
    session: int
    """The memfd of :mod:`fusevol.server.memory`."""
    rings: int
    """The memfd of the buffers of io_uring (:mod:`fusevol.transport.kernel.region`)."""
    lot_in: int
    lot_out: int
    """The parking lot's two ends."""

    def send(self, to: socket.socket) -> None:
        """Hand copies over. Raises ``OSError``."""
        socket.send_fds(to, [_GREETING], list(self))

    @classmethod
    def receive(cls, of: socket.socket) -> Self:
        """Take copies. Raises :class:`UnavailableError` for anything else, and ``OSError``."""
        message, fds, _flags, _address = socket.recv_fds(of, len(_GREETING), len(cls._fields))
        if message != _GREETING or len(fds) != len(cls._fields):
            for fd in fds:
                socket.close(fd)
            raise UnavailableError("A volume server handed over something else than its descriptors.")
        return cls(*fds)
