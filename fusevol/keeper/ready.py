"""The keeper's end of a ready pipe: what a starting volume server says, line by line."""

from __future__ import annotations

import os
from collections.abc import Callable

from fusevol.keeper.loop import Loop


class Ready:
    """Calls *said* with the first word and the rest of each line, until the server closes the pipe or dies."""

    def __init__(self, loop: Loop, reader: int, said: Callable[[str, str], object]) -> None:
        os.set_blocking(reader, False)
        self._loop = loop
        self._reader = reader
        self._said = said
        self._rest = b""
        loop.watch(reader, self.read)

    def read(self) -> None:
        """Take what has been said so far."""
        while self._reader >= 0:
            try:
                chunk = os.read(self._reader, 4096)
            except BlockingIOError:
                return
            if not chunk:
                self.close()
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                word, _, rest = line.decode(errors="replace").partition(" ")
                self._said(word, rest)

    def close(self) -> None:
        """Do not listen any longer."""
        if self._reader >= 0:
            self._loop.unwatch(self._reader)
            os.close(self._reader)
            self._reader = -1
