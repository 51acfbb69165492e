"""The memory that volume servers are forked from.

A forked server shares every page that it does not write to, and CPython writes a lot: reference counts of what it
touches, counters in code that was called less than eight times, and new objects into whatever hole of the heap is free.
Without further ado an idle server has 7.8 MiB to itself. So, before the first fork:

* nothing is left for the garbage collector, which would write into every object that it looks at;
* a child is forked as a server would be, and tells which code has run; functions made of that get copies of it that
  lie side by side: every call writes into code, and what a server needs to start is little of all that is loaded;
* rehearsals fill the interpreter's caches, whose entries count references to names, and specialise the code;
* the holes of the heap are filled, so that what a server allocates lies together;
* malloc has one arena, not one per thread.

Measured (CPython 3.11, private memory of an idle server with a ledger): 4.2 MiB, nine tenths of it reference counts;
0.1 more for what the keeper has done since it settled, however many mounts it has (the child looks at none of that: see
fusevol.keeper.child). Two fifths of the pages are word for word the keeper's again: counts went up and down.
Copied code is 0.3 of what is saved, full pools 0.15, rehearsals of a whole server instead of its parts 0.1, code that
need not be compiled first 0.2. It takes a keeper 60 ms of processor time to start.
Where the system merges equal pages (:func:`mergeable`), 0.8 MiB of the 4.2 are left to each.
Tried in vain: python -OO, code without line tables, functions laid side by side (0.06 MiB), no frozen modules (0.1 MiB
more), a fork without the interpreter's handlers (0.04 MiB).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from array import array
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Final

from fusevol.errors import UnavailableError
from fusevol.fs import FileSystem
from fusevol.fs.types import ROOT_NODE
from fusevol.server import logfile
from fusevol.server.client import call
from fusevol.server.held import Held
from fusevol.server.memory import SessionMemory
from fusevol.server.process import Server
from fusevol.server.spec import MountSpec
from fusevol.server.transports import mounted
from fusevol.transport import mount, pyfuse3
from fusevol.transport.hangs import Hangs
from fusevol.transport.kernel import protocol, session
from fusevol.transport.kernel.features import agree

log = logging.getLogger(__name__)

_M_ARENA_MAX: Final = -8
_PR_SET_MEMORY_MERGE: Final = 67
_TIMES: Final = 9
"""The interpreter specialises a function at its eighth call."""
_SMALL: Final = (60_000, range(16, 513, 16))
"""Bytes to fill for each size of Python's own allocator."""
_LARGE: Final = (4, range(528, 4200, 16))
"""How many pieces to take of each size from malloc."""
_POOL: Final = 16 << 10
"""Bytes of a pool of Python's allocator, which has pieces of one size (POOL_SIZE in obmalloc.c)."""
_POOL_HEADER: Final = 48
_BYTES_HEADER: Final = b"".__sizeof__()

IMAGE: Final = (pyfuse3, session)
"""What a server imports only when it has chosen its transport: here, so that it is shared."""

_UNWANTED: Final = frozenset({"over-io-uring", "passthrough"})
_REQUESTS: Final = ((protocol.Op.GETATTR, 16), (protocol.Op.STATFS, 0), (protocol.Op.LOOKUP, 0))
"""Operations, and how many bytes come before a name."""
_PATIENCE: Final = 10
"""Seconds that a rehearsal may take."""
_KEEPER: Final = ("fusevol.keeper.", "fusevol.server.")

_filling: list[object] = []


def mergeable() -> None:
    """Have the system merge pages of this process, and of all that it forks, that are word for word the same, if it
    merges pages at all (PR_SET_MEMORY_MERGE, prctl(2); Documentation/admin-guide/mm/ksm.rst)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0:
        log.info("pages cannot be merged: %s (Linux 6.4 can)", os.strerror(ctypes.get_errno()))


def settle(scratch: Path) -> None:
    """Make this process's memory fit to be shared. Call once, when all is imported and before logging is set up.

    *scratch* is a directory's name that is free to use. No thread is left behind.
    """
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    before = _descriptors()
    shutil.rmtree(scratch, ignore_errors=True)  # of a keeper of the same process id that was killed here
    try:
        data, control, log_file = scratch / "data", scratch / "control", scratch / "log"
        data.mkdir(mode=0o700, parents=True)
        MountSpec(
            mount_id="rehearsal",
            source=str(data),
            mountpoint=str(scratch),
            control=str(control),
            log=str(log_file),
            quota="ledger",
            ledger=str(scratch / "ledger"),
        ).save(scratch / "spec")
        ran = _what_runs(scratch)
        gc.collect()
        _fill()
        _move(ran)
        for _ in range(_TIMES):
            _rehearse(scratch)
    except Exception:  # it costs memory, not the keeper
        log.info("the rehearsal failed", exc_info=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
        handler.close()
    gc.collect()
    for descriptor in _descriptors() - before:  # a session leaves some to the end of its process
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _fill()
    gc.freeze()


def _rehearse(scratch: Path, *, whole: bool = False) -> None:
    """Do what a server does when it starts, but for what lasts: a mount and, unless *whole*, privileges and signal
    handlers.

    It goes on with a connection whose other end is not the kernel but this function. Nothing is synced to disk, which
    takes long on a busy machine: the ledger in *scratch* is never clean.
    """
    spec = MountSpec.load(scratch / "spec")
    logfile.set_up(Path(spec.log), spec.mount_id)
    _mount_nowhere(spec)
    memory = SessionMemory.create()
    memory.set_agreement(*agree(protocol.MINOR, -1, _UNWANTED), 1 << 16)
    lot = [end.detach() for end in memory.lot]
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernels.settimeout(_PATIENCE)
    with ours, kernels:
        for op, size in _REQUESTS:
            rest = bytes(size) + b"none\0"
            length = protocol.IN_HEADER.size + len(rest)
            kernels.send(protocol.IN_HEADER.pack(length, op, 2, ROOT_NODE, 0, 0, 0, 0) + rest)
        server = Server(
            spec,
            None,
            holder=lambda _held: _answered(kernels, server),
            held=Held(0, ours.fileno(), memory.fd, *lot),
            rehearsal=not whole,
        )
        server.run()
    os.close(memory.fd)
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()


def _mount_nowhere(spec: MountSpec) -> None:
    """What a first server does to mount, which fails in the end."""
    mount.find(spec.mountpoint)
    mount.root(spec.mountpoint)
    nowhere = dataclasses.replace(spec, mountpoint=f"{spec.mountpoint}/nowhere", transport="kernel")
    with (
        contextlib.closing(FileSystem(spec.source)) as fs,
        contextlib.suppress(UnavailableError),
    ):
        mounted(nowhere, fs, None, None, Hangs(spec.stuck_after_s, spec.abort_after_s, fs.close))


def _answered(kernels: socket.socket, server: Server) -> None:
    """Wait for the answers, and for what was asked before; have the server's status told, and its session end."""
    for _ in range(1 + len(_REQUESTS)):
        kernels.recv(4096)
    call(Path(server.spec.control), {"op": "status"}, _PATIENCE)
    server.leave()


def _what_runs(scratch: Path) -> set[int]:
    """The addresses of all code that runs in a forked server until it serves."""
    reader, writer = os.pipe()
    found: set[int] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            found.add(id(frame.f_code))

    threading.setprofile(note)
    sys.setprofile(note)
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(_PATIENCE)
            _rehearse(scratch, whole=True)
            sys.setprofile(None)
            threading.setprofile(None)
            os.write(writer, array("Q", found).tobytes())
        finally:
            os._exit(0)
    sys.setprofile(None)
    threading.setprofile(None)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        addresses = array("Q", said.read())
    os.waitpid(pid, 0)
    return set(addresses)


def _move(ran: set[int]) -> None:
    """Have functions run copies of their code that lie side by side, where that is at one of the addresses *ran*, or of
    the keeper: each call writes into the code."""
    copies: dict[int, tuple[CodeType, CodeType]] = {}
    functions = [found for found in gc.get_objects() if isinstance(found, FunctionType)]
    hot = [function for function in functions if id(function.__code__) in ran]
    warm = [function for function in functions if (function.__module__ or "").startswith(_KEEPER)]
    for function in dict.fromkeys(hot + warm):
        code = function.__code__
        _, function.__code__ = copies.setdefault(id(code), (code, code.replace()))
    _filling.append(copies)  # so that no holes come into being


def _descriptors() -> set[int]:
    """The numbers of this process's open descriptors, and one that is closed again."""
    return set(map(int, os.listdir("/proc/self/fd")))


def _fill() -> None:
    """Take what is free between the objects that there are, and keep it; to the end of a pool, so that the next object
    of that size is on the same page as the header of its pool, which is written to with it."""
    amount, sizes = _SMALL
    for size in sizes:
        _filling.extend(_piece(size) for _ in range(amount // size))
        for _ in range(_POOL // size):
            piece = _piece(size)
            if id(piece) % _POOL == _POOL_HEADER:
                break
            _filling.append(piece)
    number, sizes = _LARGE
    for size in sizes:
        _filling.extend(_piece(size) for _ in range(number))


def _piece(size: int) -> object:
    """An object that takes *size* bytes of memory, as near as can be."""
    return object() if size < 32 else 0.5 * size if size < _BYTES_HEADER else bytes(size - _BYTES_HEADER)
