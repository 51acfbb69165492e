"""A volume server whose filesystem fails or hangs on command. Started as ``python -m tests.support.faulty_server``.

Commands are files in the directory ``faults`` beside the served one: while ``<operation>.raise`` exists, that operation
raises an arbitrary exception; while ``<operation>.hang`` exists, it blocks; while ``<operation>.kill`` exists, it kills
the server.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from fusevol.fs import FileSystem
from fusevol.server import process

OPERATIONS = frozenset({
    "lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename", "link",
    "create", "open", "read", "write", "release", "fsync", "opendir", "readdir", "releasedir", "fsyncdir", "statfs",
    "getxattr", "setxattr", "listxattr", "removexattr", "forget", "forget_all",
})  # fmt: skip


class FaultyFileSystem(FileSystem):
    """See above."""

    def __getattribute__(self, name: str) -> Any:
        """Slip a fault under every operation."""
        found = super().__getattribute__(name)
        if name not in OPERATIONS:
            return found
        faults = super().__getattribute__("_faults")

        def operation(*args: Any, **kwargs: Any) -> Any:
            if os.path.exists(f"{faults}/{name}.raise"):
                raise ZeroDivisionError(f"a bug in {name}")
            if os.path.exists(f"{faults}/{name}.kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            while os.path.exists(f"{faults}/{name}.hang"):
                time.sleep(0.005)  # a backing store that hangs
            function: Callable[..., Any] = found
            return function(*args, **kwargs)

        return operation

    def __init__(self, source: str, **kwargs: Any) -> None:
        """As the real one."""
        self._faults = os.path.join(os.path.dirname(source), "faults")
        super().__init__(source, **kwargs)


if __name__ == "__main__":
    process.FileSystem = FaultyFileSystem  # type: ignore[misc]
    sys.exit(process.main(sys.argv[1:]))
