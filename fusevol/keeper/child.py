"""What a forked child does before it is a volume server like any other."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import traceback
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from fusevol.keeper import ending, title
from fusevol.keeper.tie import Tie
from fusevol.server import process
from fusevol.server.held import Held

_FIRST: Final = 3
_ASIDE: Final = 64
"""Above all that is kept: descriptors are moved there before they get their places."""


class Birth(NamedTuple):
    """What a keeper gives a new server."""

    mount_id: str
    spec: str
    log: str
    ready: int
    directory: Path
    """The keeper's."""
    keeper: int
    """A pidfd of the keeper."""
    held: Held | None
    """What an earlier server of the mount has left; its descriptors stay the keeper's."""


def become(birth: Birth) -> NoReturn:
    """Turn this process, just forked from a keeper, into the volume server that *birth* says.

    The first thing that the reader of the ready pipe gets is ``PID <number>``: it then knows of this process even when
    the keeper dies before it has answered. Signal handlers are the interpreter's own, since a keeper installs none.
    """
    gc.freeze()  # what the keeper has of its other mounts is nothing to look at: a collection writes to all it sees
    status = 1
    try:
        with contextlib.suppress(OSError):  # an agent that has gone does not keep a volume from being served
            os.write(birth.ready, b"PID %d\n" % os.getpid())
        ending.usual()
        os.setsid()
        title.name(title.SERVER)
        birth = _let_go(birth)
        try:
            _redirect(birth.log)
        except OSError as e:
            os.write(birth.ready, f"ERROR The log file {birth.log} cannot be opened: {e.strerror}.\n".encode())
        else:
            tie = Tie(birth.directory, birth.mount_id, birth.spec, birth.log, birth.keeper, held=birth.held is not None)
            status = process.serve(Path(birth.spec), birth.ready, holder=tie, held=birth.held)
            logging.shutdown()
    except BaseException:  # noqa: BLE001  # nothing may return into the keeper's code
        traceback.print_exc()
    finally:
        os._exit(status)


def _let_go(birth: Birth) -> Birth:
    """Close everything that is the keeper's: this process must not keep its socket, or other mounts, alive.

    The keeper's objects still name these descriptors; they are below on the stack and never used or finalised again.
    Only the log handlers would close a number that means something else by then, so they go first.
    """
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
        handler.close()
    wanted = [birth.ready, birth.keeper, *(birth.held.descriptors if birth.held is not None else [])]
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE) for fd in wanted]
    kept = list(range(_FIRST, _FIRST + len(wanted)))
    for fd, place in zip(aside, kept, strict=True):
        os.dup2(fd, place, inheritable=False)
    os.closerange(_FIRST + len(wanted), os.sysconf("SC_OPEN_MAX"))
    ready, keeper, *left = kept
    held = Held.of(birth.held.minor, left) if birth.held is not None else None
    return birth._replace(ready=ready, keeper=keeper, held=held)


def _redirect(log_file: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)
