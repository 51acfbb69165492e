"""The life of a volume server: spec, ledger, filesystem, mount, requests, and an orderly end.

It ends when its mount is gone, whoever unmounted it, with status 0 and a clean checkpoint of the ledger; and on
SIGTERM, which unmounts (lazily if the mount is in use). If an operation still hangs in the backing store at the end,
the ledger stays marked as in use and is rebuilt by a scan at the next start.

A mount lives as long as anything uses it, bind mounts included: a server that was asked to unmount goes on serving
those and ends with the last of them.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fusevol import __version__
from fusevol.errors import FusevolError, UnavailableError, UsageError
from fusevol.fs import FileSystem
from fusevol.fs.types import CACHE_EXCLUSIVE, CACHE_NONE, CACHE_SHARED, CachePolicy
from fusevol.quota.ledger import Ledger
from fusevol.quota.scan import ScanProgress
from fusevol.server import logfile, privileges
from fusevol.server.control import Answer, ControlSocket, RequestError
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from fusevol.transport.pump import Pump
from fusevol.transport.pyfuse3 import Adapter, Session, options

log = logging.getLogger(__name__)

_CACHE: Final[dict[str, CachePolicy]] = {"exclusive": CACHE_EXCLUSIVE, "shared": CACHE_SHARED, "none": CACHE_NONE}
_FAREWELL: Final = 1.0
"""Seconds after SIGTERM in which the last users of an unmounted volume may let go of it."""
_FUSE_CONF: Final = Path("/etc/fuse.conf")


class Server:
    """One mounted volume. :meth:`run` returns the exit status."""

    def __init__(self, spec: MountSpec, ready: int | None) -> None:
        self.spec = spec
        self._ready = ready
        self._started = time.time()
        self._terminated = threading.Event()
        self._ledger: Ledger | None = None
        self._minor = -1
        self._pump = Pump(spin_us=spec.spin_us)
        self._operations = {
            "status": self._status,
            "usage": lambda _request: {"usage": self._usage()},
            "set-limits": self._set_limits,
            "drain": self._drain,
            "unmount": self._unmount,
        }

    def run(self) -> int:
        """Mount, serve, and end. Raises :class:`FusevolError` if it does not come to a mount."""
        self._check()
        control = ControlSocket(Path(self.spec.control), self._operations)
        try:
            privileges.settle(self.spec.descriptors)
            os.umask(0)  # the kernel has applied the caller's
            self._ledger = self._open_ledger()
            self._fs = FileSystem(
                self.spec.source,
                cache=_CACHE[self.spec.cache],
                quota=self._ledger,
                read_only=self.spec.read_only,
                devices=self.spec.devices,
                descriptors=self.spec.descriptors,
            )
            session = self._mount()
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)
            control.start()
            _settle_memory()
            log.info("serving %s at %s", self.spec.source, self.spec.mountpoint)
            finished = session.serve()
            return self._end(finished=finished)
        finally:
            control.close()

    def _check(self) -> None:
        spec = self.spec
        if not Path(spec.source).is_dir():
            raise UnavailableError(f"The volume's directory {spec.source} is not there: check the pool that it is in.")
        found = mount.find(spec.mountpoint)
        if found is not None:
            if not found.is_fuse or not mount.is_dead(spec.mountpoint):
                raise UnavailableError(f"Something is mounted at {spec.mountpoint} already: unmount it first.")
            mount.unmount(spec.mountpoint, lazy=True)  # left behind by a server that was killed
            log.info("detached the dead mount at %s", spec.mountpoint)
        if not Path(spec.mountpoint).is_dir():
            raise UnavailableError(f"The mount point {spec.mountpoint} is not a directory: create it first.")

    def _open_ledger(self) -> Ledger | None:
        spec = self.spec
        if spec.quota == "none":
            return None
        if spec.ledger is None:
            raise UsageError(f"The mount {spec.mount_id} has a quota but no ledger file: name one in its mount file.")
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
        )

    def _mount(self) -> Session:
        spec = self.spec
        privileged = os.geteuid() == 0
        allow_other = spec.allow_other and (privileged or _others_allowed())
        chosen = options(
            fsname=spec.fsname,
            allow_other=allow_other,
            read_only=spec.read_only,
            devices=spec.devices and privileged,
        )
        adapter = Adapter(self._fs, self._pump, on_init=self._on_init)
        with _captured_stderr() as said:
            try:
                session = Session(adapter, self._pump, spec.mountpoint, chosen)
            except RuntimeError as e:
                why = "; ".join(said() or [str(e)])
                raise UnavailableError(
                    f"Mounting at {spec.mountpoint} failed ({why}): check that /dev/fuse and fusermount3 are usable."
                ) from e
        if spec.allow_other and not allow_other:
            log.info("other users have no access: user_allow_other is not set in %s", _FUSE_CONF)
        found = mount.find(spec.mountpoint)
        self._minor = found.minor if found else -1
        return session

    def _on_init(self) -> None:
        """The kernel's first request: the mount is usable from here on."""
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
        self._pump.close()

    def _end(self, *, finished: bool) -> int:
        if not finished:
            log.critical("operations hang in the backing store: giving up on them, the ledger will be rebuilt")
            logging.shutdown()
            with contextlib.suppress(OSError):
                Path(self.spec.control).unlink()
            os._exit(1)  # threads that hang in the kernel cannot be joined, and must not see the filesystem closed
        self._fs.close()
        if self._ledger is not None:
            self._ledger.close()
        found = mount.find(self.spec.mountpoint)
        if not self._terminated.is_set() and found is not None and found.minor == self._minor:
            log.error("the connection was aborted: the mount at %s is dead", self.spec.mountpoint)
            return 1
        log.info("ended")
        return 0

    # -- the control socket's operations ------------------------------------------------------------------------------

    def _usage(self) -> dict[str, int | None]:
        if self._ledger is None:
            return dict.fromkeys(("used_bytes", "used_inodes", "limit_bytes", "limit_inodes"))
        return self._ledger.usage()._asdict()

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
            "transport": "pyfuse3",
            "quota": spec.quota,
            "cache": spec.cache,
            "usage": self._usage(),
            "stats": {**self._fs.stats()._asdict(), "threads": self._pump.threads, "threads_peak": self._pump.peak},
            "labels": spec.labels,
        }

    def _set_limits(self, request: Mapping[str, Any]) -> Answer:
        if self._ledger is None:
            raise RequestError(f"The mount {self.spec.mount_id} has no quota to change.", errno.EOPNOTSUPP)
        now = self._ledger.usage()
        limit_bytes = request.get("limit_bytes", now.limit_bytes)
        limit_inodes = request.get("limit_inodes", now.limit_inodes)
        for limit in (limit_bytes, limit_inodes):
            if limit is not None and (type(limit) is not int or limit < 0):
                raise RequestError(f"A limit is a whole number or null, not {limit!r}.", errno.EINVAL)
        self._ledger.set_limits(limit_bytes, limit_inodes)
        log.info("limits are now %s bytes and %s inodes", limit_bytes, limit_inodes)
        return {"usage": self._usage()}

    def _drain(self, _request: Mapping[str, Any]) -> Answer:
        """Everything written so far is on disk when this returns."""
        self._fs.drain()
        return {"usage": self._usage()}

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


def _others_allowed() -> bool:
    """Whether fusermount3 lets an ordinary user open a mount to others (fuse.conf in mount.fuse3(8))."""
    try:
        lines = _FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Collects what libfuse and fusermount3 say on descriptor 2; yields a function that returns the lines."""
    taken, before = os.memfd_create("stderr", os.MFD_CLOEXEC), os.dup(2)
    os.dup2(taken, 2)

    def said() -> list[str]:
        return [line.strip() for line in os.pread(taken, 4096, 0).decode(errors="replace").splitlines() if line.strip()]

    try:
        yield said
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(taken)


def _arguments(argv: Sequence[str]) -> tuple[Path, int | None]:
    values = dict(zip(argv[::2], argv[1::2], strict=False))
    ready = values.pop("--ready-fd", None)
    spec = values.pop("--spec", None)
    if spec is None or values or len(argv) % 2 or not (ready or "0").isdigit():
        raise UsageError("usage: python -m fusevol.server --spec FILE [--ready-fd N]")
    return Path(spec), int(ready) if ready else None


def main(argv: Sequence[str]) -> int:
    """Run a volume server as the command line says; returns the exit status."""
    try:
        file, ready = _arguments(argv)
    except UsageError as e:
        print(e.message, file=sys.stderr)  # noqa: T201  # for whoever starts it by hand
        return e.exit_code
    return serve(file, ready)


def serve(file: Path, ready: int | None) -> int:
    """Be the volume server of the spec in *file*, in a process that has no other thread; returns the exit status.

    *ready* is a descriptor that takes SCAN lines, and then READY or ERROR with a sentence; it is closed after READY.
    """
    faulthandler.enable()
    server: Server | None = None
    try:
        spec = MountSpec.load(file)
        server = Server(spec, ready)
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
