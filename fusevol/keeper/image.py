"""The memory that volume servers are forked from.

A forked server shares every page that it does not write to, and CPython writes a lot: reference counts of what it
touches, counters in code that was called less than eight times, and new objects into whatever hole of the heap is free.
Without further ado an idle server has 4.6 of its 13 MiB to itself. So, before the first fork:

* nothing is left for the garbage collector, which would write into every object that it looks at;
* a rehearsal fills the interpreter's caches and specialises the code;
* the holes of the heap are filled, so that what a server allocates lies together;
* malloc has one arena, not one per thread.

Measured (CPython 3.11, private memory of an idle server with a ledger): 3.8 MiB, nine tenths of it reference counts.
Tried in vain: python -OO, code without line tables, code objects of what a server runs laid side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import shutil
import threading
from pathlib import Path
from typing import Final

from fusevol.fs import FileSystem
from fusevol.fs.types import ROOT_NODE
from fusevol.quota.ledger import Ledger
from fusevol.server import logfile
from fusevol.server.control import ControlSocket
from fusevol.server.spec import MountSpec
from fusevol.transport import mount, pyfuse3
from fusevol.transport.kernel import protocol, session
from fusevol.transport.kernel.operations import Operations

log = logging.getLogger(__name__)

_M_ARENA_MAX: Final = -8
_TIMES: Final = 9
"""The interpreter specialises a function at its eighth call."""
_SMALL: Final = (200_000, range(16, 513, 16))
"""Bytes to fill for each size of Python's own allocator."""
_LARGE: Final = (10, range(528, 4200, 16))
"""How many pieces to take of each size from malloc."""
_BYTES_HEADER: Final = b"".__sizeof__()

IMAGE: Final = (pyfuse3, session)
"""What a server imports only when it has chosen its transport: here, so that it is shared."""

_filling: list[object] = []


def settle(scratch: Path) -> None:
    """Make this process's memory fit to be shared. Call once, when all is imported and before logging is set up.

    *scratch* is a directory's name that is free to use. No thread is left behind.
    """
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    shutil.rmtree(scratch, ignore_errors=True)  # of a keeper that was killed here
    try:
        (scratch / "data").mkdir(mode=0o700, parents=True)
        for _ in range(_TIMES):
            _rehearse(scratch)
    except Exception:  # it costs memory, not the keeper
        log.info("the rehearsal failed", exc_info=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    gc.collect()
    _fill()
    gc.freeze()


def _rehearse(scratch: Path) -> None:
    """Do what a server does when it starts, but for what lasts: a mount, privileges, signal handlers."""
    name, file, log_file, ledger_file = "rehearsal", scratch / "spec", scratch / "log", scratch / "ledger"
    source, control = scratch / "data", scratch / "control"
    MountSpec(mount_id=name, source=str(source), mountpoint=str(scratch), control=str(control), log=str(log_file)).save(
        file
    )
    spec = MountSpec.load(file)
    logfile.set_up(log_file, name)
    mount.find(spec.mountpoint)
    ControlSocket(control, {}).close()
    ledger_file.unlink(missing_ok=True)
    ledger = Ledger.open(ledger_file, source, limit_bytes=1 << 30, limit_inodes=None)
    with contextlib.closing(FileSystem(spec.source, quota=ledger)) as fs:
        fs.stats()
        fs.getattr(ROOT_NODE)
        fs.statfs(ROOT_NODE)
        with contextlib.suppress(FileNotFoundError):
            fs.lookup(ROOT_NODE, b"none")
        operations = Operations(fs, passthrough=None, setxattr_ext=True)
        for op in (protocol.Op.GETATTR, protocol.Op.STATFS, protocol.Op.LOOKUP):
            operations.carry_out(op, ROOT_NODE, bytes(64), 0, memoryview(b"none\0"), (0, 0, 0))
        session.Options(mountpoint=str(scratch), fsname=name, passthrough=False)
    ledger.close()
    event = threading.Event()
    thread = threading.Thread(target=event.wait, name=name, daemon=True)
    thread.start()
    event.set()
    thread.join()
    log.info("%s of %s", name, spec.source)


def _fill() -> None:
    """Take what is free between the objects that there are, and keep it."""
    amount, sizes = _SMALL
    for size in sizes:
        _filling.extend(_piece(size) for _ in range(amount // size))
    number, sizes = _LARGE
    for size in sizes:
        _filling.extend(_piece(size) for _ in range(number))


def _piece(size: int) -> object:
    """An object that takes *size* bytes of memory, as near as can be."""
    return object() if size < 32 else 0.5 * size if size < _BYTES_HEADER else bytes(size - _BYTES_HEADER)
