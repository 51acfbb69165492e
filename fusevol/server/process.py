"""The life of a volume server: spec, ledger, filesystem, mount, requests, and an orderly end.

It ends when its mount is gone, whoever unmounted it, with status 0 and a clean checkpoint of the ledger; and on
SIGTERM, which unmounts (lazily if the mount is in use). On SIGUSR1 it leaves the mount to another server, which is no
business of anybody's but the keeper's. If an operation still hangs in the backing store at the end,
the ledger stays marked as in use and is rebuilt by a scan at the next start.

A mount lives as long as anything uses it, bind mounts included: a server that was asked to unmount goes on serving
those and ends with the last of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from fusevol import __version__
from fusevol.errors import FusevolError, UnavailableError, UsageError
from fusevol.files import sync_filesystem
from fusevol.fs import FileSystem
from fusevol.fs.recovery import CountersError
from fusevol.fs.types import CACHE_EXCLUSIVE, CACHE_NONE, CACHE_SHARED, CachePolicy
from fusevol.lease import Lease, LostError
from fusevol.quota import kernel
from fusevol.quota.ledger import Ledger
from fusevol.quota.scan import ScanProgress
from fusevol.server import logfile, privileges
from fusevol.server.control import Answer, ControlSocket, RequestError
from fusevol.server.held import Held, Holder
from fusevol.server.memory import SessionMemory
from fusevol.server.spec import MountSpec
from fusevol.server.tenure import Tenure
from fusevol.server.transports import Session, mounted
from fusevol.transport import mount
from fusevol.transport.ending import Ending
from fusevol.transport.hangs import Hangs
from fusevol.usage import Measured, Meter

log = logging.getLogger(__name__)

_CACHE: Final[dict[str, CachePolicy]] = {"exclusive": CACHE_EXCLUSIVE, "shared": CACHE_SHARED, "none": CACHE_NONE}
LEAVE: Final = signal.SIGUSR1
"""Asks a server to finish what it has begun and to end, so that another one can go on (see :meth:`Session.leave`)."""
_LONGEST_HOLD: Final = 60
"""Seconds for which requests may be held up."""
_HOLD_PATIENCE: Final = 5.0
"""Seconds that operations may take to end when requests are held up."""
_FAREWELL: Final = 1.0
"""Seconds after SIGTERM in which the last users of an unmounted volume may let go of it."""


class Server:
    """One mounted volume. :meth:`run` returns the exit status."""

    def __init__(
        self,
        spec: MountSpec,
        ready: int | None,
        *,
        file: Path | None = None,
        holder: Holder | None = None,
        held: Held | None = None,
        rehearsal: bool = False,
    ) -> None:
        """*holder* is given what another server needs to go on when this one is killed, *held* is what one has left.

        *file*: where *spec* is kept; changed limits are written there. A *rehearsal* leaves the process as it is: its
        privileges, signal handlers and memory.
        """
        self.spec = spec
        self._rehearsal = rehearsal
        self._file = file
        self._holder = holder
        self._held = held
        self._ready = ready
        self._started = time.time()
        self._terminated = threading.Event()
        self._ledger: Ledger | None = None
        self._meter: Meter | None = None
        self._minor = -1
        self._session: Session | None = None
        self._hangs = Hangs(spec.stuck_after_s, spec.abort_after_s, lambda: mount.abort(self._minor))
        self._memory: SessionMemory | None = None
        self._tenure: Tenure | None = None
        self._operations = {
            "status": self._status,
            "usage": lambda _request: {"usage": self._usage()},
            "set-limits": self._set_limits,
            "drain": self._drain,
            "hold": self._hold,
            "release": self._release,
            "unmount": self._unmount,
        }

    def run(self) -> int:
        """Mount, serve, and end. Raises :class:`FusevolError` if it does not come to a mount."""
        self._check()
        memory = self._memory = self._session_memory()
        control = ControlSocket(Path(self.spec.control), self._operations)
        try:
            descriptors = self.spec.descriptors
            if not self._rehearsal:
                descriptors = privileges.settle(descriptors)
                os.umask(0)  # callers have their own
            self._take_office()
            self._fs = self._filesystem(memory, descriptors)
            session = self._session = self._mount(memory)
            control.start()
            if not self._rehearsal:
                signal.signal(signal.SIGTERM, self._on_signal)
                signal.signal(signal.SIGINT, self._on_signal)
                signal.signal(LEAVE, self._on_leave)
                _settle_memory()
            what = "serving" if self._held is None else "took over"
            log.info("%s %s at %s", what, self.spec.source, self.spec.mountpoint)
            if self._fs.unfinished:
                log.info("settled operations of the earlier server that were in flight: %d", self._fs.unfinished)
            return self._end(session.serve(self._on_init))
        finally:
            control.close()

    def _check(self) -> None:
        spec = self.spec
        if not Path(spec.source).is_dir():
            raise UnavailableError(f"The volume's directory {spec.source} is not there: check the pool that it is in.")
        if self._held is not None:
            return
        found = mount.find(spec.mountpoint)
        if found is not None:
            if not found.is_fuse or not mount.is_dead(spec.mountpoint):
                raise UnavailableError(f"Something is mounted at {spec.mountpoint} already: unmount it first.")
            mount.unmount(spec.mountpoint, lazy=True)  # left behind by a server that was killed
            log.info("detached the dead mount at %s", spec.mountpoint)
        if not Path(spec.mountpoint).is_dir():
            raise UnavailableError(f"The mount point {spec.mountpoint} is not a directory: create it first.")

    def _take_office(self) -> None:
        """Where several nodes have the volume's pool: see to it that this one may serve it, for as long as it does."""
        spec = self.spec
        if spec.lease is None:
            return
        if spec.lease_epoch is None or spec.lease_s is None:
            raise UsageError(
                f"The mount {spec.mount_id} has a lease but no epoch or time: name them in its mount file."
            )
        lease = Lease(Path(spec.lease), spec.lease_share or "")
        self._tenure = Tenure(lease, spec.lease_epoch, spec.lease_s, lambda: mount.abort(self._minor))
        try:
            self._tenure.begin()
        except LostError:
            if self._held is not None:
                log.warning("the lease on the volume is another node's now: its users here get errors")
                mount.abort(self._held.minor)
            raise

    def _session_memory(self) -> SessionMemory | None:
        """What the kernel must find again: an earlier server's, or a new one if somebody will hold it."""
        if self._held is not None:
            return SessionMemory.adopt(self._held.session, (self._held.lot_in, self._held.lot_out))
        return SessionMemory.create() if self._holder is not None else None

    def _filesystem(self, memory: SessionMemory | None, descriptors: int) -> FileSystem:
        """The tree with its quota. Where what an earlier server has left cannot be understood, all of it is counted."""
        spec = self.spec
        self._meter = self._open_meter()
        while True:
            self._ledger = self._open_ledger(memory)
            try:
                return FileSystem(
                    spec.source,
                    cache=_CACHE[spec.cache],
                    quota=self._ledger,
                    meter=self._meter,
                    read_only=spec.read_only,
                    devices=spec.devices,
                    descriptors=descriptors,
                    memory=memory,
                )
            except CountersError as e:
                if memory is None:
                    raise
                log.warning("%s", e)
                memory.journal.distrust()

    def _open_meter(self) -> Meter | None:
        """The quota of the backing filesystem, if that keeps the limits."""
        spec = self.spec
        if spec.quota != "kernel":
            return None
        if spec.meter is None:
            raise UsageError(f"The mount {spec.mount_id} has a kernel quota but no meter: name one in its mount file.")
        try:
            return kernel.open_meter(spec.meter, Path(spec.source))
        except UnavailableError as e:
            if self._held is None:
                raise  # nobody shall find out later that a limit is none
            log.warning("%s", e)  # who uses the volume already must not be left alone
            return None

    def _open_ledger(self, memory: SessionMemory | None) -> Ledger | None:
        spec = self.spec
        if spec.quota != "ledger":
            return None
        if spec.ledger is None:
            raise UsageError(f"The mount {spec.mount_id} has a quota but no ledger file: name one in its mount file.")
        counters = memory.journal if memory is not None else None
        if self._held is not None and counters is not None and not counters.valid:
            sync_filesystem(Path(spec.source))  # what the backing store has not allocated yet cannot be counted
        last = 0.0

        def report(progress: ScanProgress) -> None:
            nonlocal last
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                self.say(f"SCAN {progress.inodes}")

        return Ledger.open(
            Path(spec.ledger),
            Path(spec.source),
            limit_bytes=spec.limit_bytes,
            limit_inodes=spec.limit_inodes,
            progress=report,
            counters=counters,
        )

    def _mount(self, memory: SessionMemory | None) -> Session:
        spec = self.spec
        session = mounted(spec, self._fs, memory, self._held, self._hangs)
        if self._held is not None:
            self._minor = self._held.minor
        elif (found := mount.root(spec.mountpoint)) is not None:
            self._minor = found.minor
        return session

    def _on_init(self) -> None:
        """The mount is usable from here on."""
        left = self._session.left() if self._session is not None else None
        if self._holder is not None and self._memory is not None and left is not None:
            lot_in, lot_out = self._memory.lot
            self._holder(Held(self._minor, left[0], self._memory.fd, lot_in.fileno(), lot_out.fileno(), left[1]))
        self.say("READY")
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None

    def say(self, line: str) -> None:
        """Tell whoever started this server, until it has said READY."""
        if self._ready is not None:
            with contextlib.suppress(OSError):  # a supervisor that has gone does not keep a volume from being served
                os.write(self._ready, line.encode() + b"\n")

    # -- the end ------------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self._terminated.is_set():
            self._terminated.set()
            threading.Thread(target=self._terminate, args=(number,), name="terminate", daemon=True).start()

    def _terminate(self, number: int) -> None:
        log.info("ending because of %s", signal.Signals(number).name)
        try:
            try:
                mount.unmount(self.spec.mountpoint)
            except OSError as e:
                if e.errno == errno.EBUSY:
                    log.info("the mount is in use: it is detached, its users get errors from now on")
                    mount.unmount(self.spec.mountpoint, lazy=True)
        except OSError as e:
            log.info("not unmounted: %s", e.strerror)
        time.sleep(_FAREWELL)
        if self._session is not None:
            self._session.stop()

    def leave(self) -> None:
        """Let another server go on, from any thread."""
        if self._session is not None:
            self._session.leave()

    def _on_leave(self, _number: int, _frame: object) -> None:
        if self._session is not None:
            threading.Thread(target=self._session.leave, name="leave", daemon=True).start()

    def _end(self, ending: Ending) -> int:
        if ending is Ending.LEFT:
            if self._tenure is not None:
                self._tenure.end(release=False)
            log.info("left, for another server to go on")
            return 0  # as it is: the session memory has it all
        if ending is Ending.HANGING:
            log.critical("operations hang in the backing store: giving up on them, the ledger will be rebuilt")
            logging.shutdown()
            with contextlib.suppress(OSError):
                Path(self.spec.control).unlink()
            os._exit(1)  # threads that hang in the kernel cannot be joined, and must not see the filesystem closed
        self._fs.close()
        if self._ledger is not None:
            self._ledger.close()
        if self._tenure is not None:
            self._tenure.end(release=True)
        found = mount.root(self.spec.mountpoint)
        if not self._terminated.is_set() and found is not None and found.minor == self._minor:
            log.error("the connection was aborted: the mount at %s is dead", self.spec.mountpoint)
            return 1
        log.info("ended")
        return 0

    # -- the control socket's operations ------------------------------------------------------------------------------

    def _usage(self) -> dict[str, int | None]:
        if self._ledger is not None:
            return self._ledger.usage()._asdict()
        if self._meter is not None:
            with contextlib.suppress(OSError):  # its quotas were switched off: nobody counts
                return self._meter.usage()._asdict()
        return dict.fromkeys(Measured._fields)

    def _status(self, _request: Mapping[str, Any]) -> Answer:
        spec = self.spec
        return {
            "pid": os.getpid(),
            "mount_id": spec.mount_id,
            "mountpoint": spec.mountpoint,
            "source": spec.source,
            "version": __version__,
            "started": self._started,
            "read_only": spec.read_only,
            "quota": spec.quota,
            **(self._session.in_use()._asdict() if self._session is not None else {}),
            "cache": spec.cache,
            "usage": self._usage(),
            "stuck": self._hangs.status(),
            "stats": {**self._fs.stats()._asdict(), **(self._session.describe() if self._session is not None else {})},
            "labels": spec.labels,
        }

    def _set_limits(self, request: Mapping[str, Any]) -> Answer:
        now = self._usage()
        if self._ledger is None and self._meter is None:
            raise RequestError(f"The mount {self.spec.mount_id} has no quota to change.", errno.EOPNOTSUPP)
        limit_bytes = request.get("limit_bytes", now["limit_bytes"])
        limit_inodes = request.get("limit_inodes", now["limit_inodes"])
        for limit in (limit_bytes, limit_inodes):
            if limit is not None and (type(limit) is not int or limit < 0):
                raise RequestError(f"A limit is a whole number or null, not {limit!r}.", errno.EINVAL)
        if self._meter is not None:
            self._meter.set_limits(limit_bytes, limit_inodes)
        elif self._file is not None:  # first: a successor must have the limits that were confirmed
            self.spec = dataclasses.replace(self.spec, limit_bytes=limit_bytes, limit_inodes=limit_inodes)
            self.spec.save(self._file)
        if self._ledger is not None:
            self._ledger.set_limits(limit_bytes, limit_inodes)
        log.info("limits are now %s bytes and %s inodes", limit_bytes, limit_inodes)
        return {"usage": self._usage()}

    def _drain(self, _request: Mapping[str, Any]) -> Answer:
        """Everything written so far is on disk when this returns."""
        self._fs.drain()
        return {"usage": self._usage()}

    def _hold(self, request: Mapping[str, Any]) -> Answer:
        """Hold requests up, for at most ``seconds``, until ``release``; ``held``: whether that worked.

        ``passing_by``: open files whose data does not come here, and is not held up.
        """
        seconds = request.get("seconds")
        if not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST_HOLD:
            raise RequestError(f"Requests can be held up for up to {_LONGEST_HOLD} seconds, not {seconds!r}.")
        assert self._session is not None  # noqa: S101  # the socket answers from when there is one
        held = self._session.hold(min(_HOLD_PATIENCE, seconds), seconds)
        return {"held": held, "passing_by": self._session.passing_by}

    def _release(self, _request: Mapping[str, Any]) -> Answer:
        """Let requests through again; ``held``: whether all were held up until now."""
        assert self._session is not None  # noqa: S101  # as above
        return {"held": self._session.release()}

    def _unmount(self, request: Mapping[str, Any]) -> Answer:
        try:
            mount.unmount(self.spec.mountpoint, lazy=bool(request.get("lazy")))
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
            raise RequestError(
                f"The mount at {self.spec.mountpoint} is in use: end the programs that use it, or unmount it lazily.",
                errno.EBUSY,
            ) from e
        return {}


def _settle_memory() -> None:
    """Spend less on garbage collection: what exists now stays, and requests make no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(0.001)  # an operation in Python code may not keep the others waiting for longer


class Arguments(NamedTuple):
    """The command line of a volume server."""

    spec: Path
    ready: int | None
    """Descriptor that is told READY, SCAN and ERROR."""
    holder: int | None
    """Socket that is given a :class:`Held` by each server."""
    held: Held | None

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Self:
        """Raises :class:`UsageError`."""
        values = dict(zip(argv[::2], argv[1::2], strict=False))
        spec = values.pop("--spec", None)
        ready, holder = values.pop("--ready-fd", ""), values.pop("--holder-fd", "")
        held = values.pop("--held", "").split(",")
        numbers = [*held, ready, holder]
        if spec is None or values or len(argv) % 2 or not all(n.isdigit() for n in numbers if n):
            raise UsageError("usage: python -m fusevol.server --spec FILE [--ready-fd N] [--holder-fd N] [--held N,…]")
        return cls(
            Path(spec),
            int(ready) if ready else None,
            int(holder) if holder else None,
            Held.of(int(held[0]), [int(n) for n in held[1:]]) if held[1:] else None,
        )


def main(argv: Sequence[str]) -> int:
    """Run a volume server as the command line says; returns the exit status."""
    try:
        arguments = Arguments.parse(argv)
    except UsageError as e:
        print(e.message, file=sys.stderr)  # noqa: T201  # for whoever starts it by hand
        return e.exit_code
    holder = None
    if arguments.holder is not None:
        to = socket.socket(fileno=arguments.holder)
        holder = lambda held: held.send(to)  # noqa: E731
    return serve(arguments.spec, arguments.ready, holder=holder, held=arguments.held)


def serve(file: Path, ready: int | None, *, holder: Holder | None = None, held: Held | None = None) -> int:
    """Be the volume server of the spec in *file*, in a process that has no other thread; returns the exit status.

    *ready* is a descriptor that takes SCAN lines, and then READY or ERROR with a sentence; it is closed after READY.
    *holder* and *held* as in :class:`Server`.
    """
    faulthandler.enable()
    server: Server | None = None
    try:
        spec = MountSpec.load(file)
        server = Server(spec, ready, file=file, holder=holder, held=held)
        logfile.set_up(Path(spec.log), spec.mount_id)
        return server.run()
    except (FusevolError, OSError) as e:
        sentence = e.message if isinstance(e, FusevolError) else _sentence(e)
        status = e.exit_code if isinstance(e, FusevolError) else 1
    except Exception as e:
        log.exception("the server failed")
        sentence, status = f"The volume server failed because of a bug ({e!r}): see its log file.", 1
    log.info("not mounted: %s", sentence)
    print(sentence, file=sys.stderr)  # noqa: T201  # for whoever starts it by hand
    line = f"ERROR {' '.join(sentence.split())}"
    if server is not None:
        server.say(line)  # it knows whether the descriptor is still what it was
    elif ready is not None:
        with contextlib.suppress(OSError):
            os.write(ready, line.encode() + b"\n")
    return status


def _sentence(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Another volume server answers on {error.filename}: unmount that one first."
    where = f" ({error.filename})" if error.filename else ""
    return f"The volume was not mounted: {error.strerror or error}{where}."
