"""A keeper whose servers die of a request. Started as ``python -m tests.support.poisoned_keeper``.

Whoever looks up a name that begins with ``poison`` kills the server; while the file ``cured`` is in the volume, nobody
does.
"""

from __future__ import annotations

import os
import signal
import sys

from fusevol.fs import FileSystem
from fusevol.fs.types import Entry
from fusevol.keeper import process as keeper
from fusevol.server import process


class Poisoned(FileSystem):
    """See above."""

    def lookup(self, parent: int, name: bytes) -> Entry:
        """As the real one, or death."""
        if name.startswith(b"poison") and not os.path.exists(os.path.join(self._source, "cured")):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().lookup(parent, name)

    def __init__(self, source: str, **kwargs: object) -> None:
        """As the real one."""
        self._source = source
        super().__init__(source, **kwargs)  # type: ignore[arg-type]


if __name__ == "__main__":
    process.FileSystem = Poisoned  # type: ignore[misc]
    sys.exit(keeper.main(sys.argv[1:]))
