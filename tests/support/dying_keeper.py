"""A keeper that dies in the middle of a start. Started as ``python -m tests.support.dying_keeper``.

While the file ``die.before`` is in its directory, it kills itself instead of forking a server; while ``die.after`` is
there, when it has forked and not yet answered.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from fusevol.keeper import process
from fusevol.keeper.door import Answer, Request


class DyingKeeper(process.Keeper):
    """See above."""

    def __init__(self, directory: Path, *, merge: bool = False) -> None:
        super().__init__(directory, merge=merge)
        self._directory = directory
        self._operations["start"] = self._start_and_die

    def _start_and_die(self, request: Request) -> Answer:
        if not (self._directory / "die.before").exists():
            answer = self._start(request)
            if not (self._directory / "die.after").exists():
                return answer
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


if __name__ == "__main__":
    process.Keeper = DyingKeeper  # type: ignore[misc]
    sys.exit(process.main(sys.argv[1:]))
