"""An agent that kills itself at a step of its work. Started as ``python -m tests.support.mortal_agent agent …``.

Every step becomes a line in the file ``$FUSEVOL_TEST_STEPS``. When all lines of the file beside it that ends with
``.kill`` are among them, the agent dies of SIGKILL.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

from agent import daemon
from agent.cli import main, serve

_STEPS = Path(os.environ["FUSEVOL_TEST_STEPS"])
_KILL = _STEPS.with_suffix(".kill")
_lock = threading.Lock()


def step(name: str) -> None:
    """Put *name* on record, and die if it is time."""
    with _lock:
        with _STEPS.open("a") as file:
            file.write(f"{name}\n")
        if _KILL.exists() and Counter(_KILL.read_text().splitlines()) <= Counter(_STEPS.read_text().splitlines()):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve.serve = functools.partial(daemon.serve, step=step)
    sys.exit(main.main(sys.argv[1:]))
