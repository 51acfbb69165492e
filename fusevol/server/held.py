"""What must outlive a volume server so that another one can go on: descriptors, and how they are handed over."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Self

from fusevol.errors import UnavailableError
from fusevol.passing import receive

_GREETING: Final = b"fusevol-held-2 "
_NUMBER: Final = 20
"""Digits of the minor number, at the most."""
MOST: Final = 5
"""Descriptors of one mount, at the most."""


class Held(NamedTuple):
    """Descriptors of one mount. A connection lives as long as one copy of ``device`` is open anywhere."""

    minor: int
    """The minor number of the mount's device, which names the connection in /sys/fs/fuse/connections."""
    device: int
    """/dev/fuse."""
    session: int
    """The memfd of :mod:`fusevol.server.memory`."""
    lot_in: int
    lot_out: int
    """The parking lot's two ends."""
    rings: int = -1
    """The memfd of the buffers of io_uring (:mod:`fusevol.transport.kernel.region`); -1 where requests do not come
    that way."""

    @classmethod
    def of(cls, minor: int, descriptors: Sequence[int]) -> Self:
        """What was taken apart into ``minor`` and :attr:`descriptors`. Raises ``ValueError`` for another number."""
        if len(descriptors) not in {MOST - 1, MOST}:
            raise ValueError(f"A mount is held by {MOST - 1} or {MOST} descriptors, not by {len(descriptors)}.")
        return cls(minor, *descriptors)

    @property
    def descriptors(self) -> list[int]:
        """Those that there are, in order."""
        return [fd for fd in self[1:] if fd >= 0]

    def over(self) -> bool:
        """Whether the connection has ended (unmounted everywhere, or aborted): nothing is left to go on with."""
        poll = select.poll()
        poll.register(self.device, 0)  # POLLERR is told unasked
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let go of it."""
        for fd in self.descriptors:
            os.close(fd)

    def send(self, to: socket.socket) -> None:
        """Hand copies over. Raises ``OSError``."""
        socket.send_fds(to, [_GREETING + b"%d" % self.minor], self.descriptors)

    @classmethod
    def receive(cls, of: socket.socket) -> Self:
        """Take copies. Raises :class:`UnavailableError` for anything else, and ``OSError``."""
        message, fds = receive(of, len(_GREETING) + _NUMBER, MOST)
        with contextlib.suppress(ValueError):
            if message.startswith(_GREETING):
                return cls.of(int(message.removeprefix(_GREETING)), fds)
        for fd in fds:
            socket.close(fd)
        raise UnavailableError("A volume server handed over something else than its descriptors.")


Holder = Callable[[Held], object]
"""Called by each server of a mount once that is usable: keeps copies, so that the next one can go on."""
