"""The ready pipe: what a starting volume server says until it has mounted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

import trio

from fusevol.errors import TimeoutExpiredError, UnavailableError
from fusevol.server.spec import MountSpec

Progress = Callable[[int], Awaitable[None]]
"""Called with the number of inodes that a starting server has counted so far."""

START_TIMEOUT: Final = 60.0
"""Seconds that a starting server may say nothing at all (a scan in progress says something)."""
_BIRTH_TIMEOUT: Final = 10.0


class ReadyPipe:
    """The read end of one server's ready pipe; an async context manager that closes it."""

    def __init__(self, descriptor: int, spec: MountSpec) -> None:
        self._stream = trio.lowlevel.FdStream(descriptor)
        self._spec = spec
        self._lines: list[bytes] = []
        self._rest = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.aclose()

    async def _next(self) -> tuple[str, str] | None:
        """The next line's first word and its rest; None at the end."""
        while not self._lines:
            chunk = await self._stream.receive_some(4096)
            if not chunk:
                return None
            *self._lines, self._rest = (self._rest + chunk).split(b"\n")
        word, _, rest = self._lines.pop(0).decode(errors="replace").partition(" ")
        return word, rest

    async def born(self) -> int | None:
        """The process id that a forked server tells first; None when there never was a server.

        Call when the write end is closed here, and nobody but a server can have it any more.
        """
        with trio.move_on_after(_BIRTH_TIMEOUT):
            said = await self._next()
            return int(said[1]) if said is not None and said[0] == "PID" and said[1].isdigit() else None
        raise TimeoutExpiredError(
            f"Whether a volume server of {self._spec.mount_id} was started did not become known: see keeper.log."
        )

    async def mounted(self, progress: Progress | None) -> None:
        """Return when the server has mounted. Raises :class:`UnavailableError` with its sentence when it cannot."""
        name, log_file = self._spec.mount_id, self._spec.log
        while True:
            with trio.move_on_after(START_TIMEOUT) as waited:
                said = await self._next()
            if waited.cancelled_caught:
                raise TimeoutExpiredError(
                    f"The volume server of {name} did not mount within {START_TIMEOUT:g} s: see {log_file}."
                )
            if said is None:
                raise UnavailableError(f"The volume server of {name} ended before it had mounted: see {log_file}.")
            word, rest = said
            if word == "READY":
                return
            if word == "ERROR":
                raise UnavailableError(rest or f"The volume server of {name} failed: see {log_file}.")
            if word == "SCAN" and progress is not None and rest.isdigit():
                await progress(int(rest))
