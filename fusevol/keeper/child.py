"""What a forked child does before it is a volume server like any other."""

from __future__ import annotations

import ctypes
import logging
import os
import traceback
from pathlib import Path
from typing import Final, NoReturn

from fusevol.server import process

_READY: Final = 3
_PR_SET_NAME: Final = 15
NAME: Final = "fusevol-server"
"""What the process table calls a server; at most 15 bytes."""
_libc = ctypes.CDLL(None)


def become(spec: str, log_file: str, ready: int) -> NoReturn:
    """Turn this process, just forked from a keeper, into the volume server of *spec*.

    The first thing that the reader of *ready* gets is ``PID <number>``: it then knows of this process even when the
    keeper dies before it has answered. Signal handlers are the interpreter's own, since a keeper installs none.
    """
    status = 1
    try:
        os.write(ready, b"PID %d\n" % os.getpid())
        os.setsid()
        _libc.prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
        _let_go(ready)
        try:
            _redirect(log_file)
        except OSError as e:
            os.write(_READY, f"ERROR The log file {log_file} cannot be opened: {e.strerror}.\n".encode())
        else:
            status = process.serve(Path(spec), _READY)
            logging.shutdown()
    except BaseException:  # noqa: BLE001  # nothing may return into the keeper's code
        traceback.print_exc()
    finally:
        os._exit(status)


def _let_go(ready: int) -> None:
    """Close everything that is the keeper's: this process must not keep its socket or its siblings' alive.

    The keeper's objects still name these descriptors; they are below on the stack and never used or finalised again.
    Only the log handlers would close a number that means something else by then, so they go first.
    """
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
        handler.close()
    os.dup2(ready, _READY)
    os.closerange(_READY + 1, os.sysconf("SC_OPEN_MAX"))


def _redirect(log_file: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)
