"""Which transport serves a mount, and the mount itself.

``kernel`` speaks the protocol itself: passthrough of file data, every operation, fewer round trips. It mounts by
mount(2), so it needs CAP_SYS_ADMIN. ``pyfuse3`` goes through libfuse, which can mount for an ordinary user. ``auto`` is
the first where that is possible.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from fusevol.errors import UnavailableError
from fusevol.fs import FileSystem
from fusevol.server.held import Held
from fusevol.server.memory import SessionMemory
from fusevol.server.spec import MountSpec
from fusevol.transport.ending import Ending
from fusevol.transport.hangs import Hangs
from fusevol.transport.in_use import InUse

log = logging.getLogger(__name__)

_FUSE_CONF: Final = Path("/etc/fuse.conf")


class Session(Protocol):
    """A mounted filesystem."""

    def in_use(self) -> InUse:
        """How requests and data travel now."""

    def left(self) -> tuple[int, int] | None:
        """The descriptors of /dev/fuse and of the rings' buffers (-1: none) by which another process can go on; if it
        can."""

    def describe(self) -> dict[str, object]:
        """What goes on, for a status: plain values."""

    def serve(self, ready: Callable[[], None]) -> Ending:
        """Answer requests until the mount is gone, or left. *ready* is called once the mount is usable."""

    def hold(self, patience: float, limit: float) -> bool:
        """Hold requests up; see :class:`fusevol.transport.gate.Gate`."""

    def release(self) -> bool:
        """Let requests through again; whether they were held up until now."""

    @property
    def passing_by(self) -> int:
        """How many files are open whose data the kernel reads and writes past this server."""

    def leave(self) -> None:
        """Finish what was begun and let another process go on, if it can; from any thread. It may take too long: then
        this session goes on."""

    def stop(self) -> None:
        """End the session from any thread."""


def mounted(spec: MountSpec, fs: FileSystem, memory: SessionMemory | None, held: Held | None, hangs: Hangs) -> Session:
    """Mount *fs* as *spec* says, or with *held* go on where an earlier server has ended, whose *memory* that is.

    *hangs* watches over the requests. Raises :class:`UnavailableError` with the reason; nothing is mounted then.
    """
    privileged = os.geteuid() == 0
    allow_other = spec.allow_other and (privileged or _others_allowed())
    if spec.allow_other and not allow_other:
        log.info("other users have no access: user_allow_other is not set in %s", _FUSE_CONF)
    if held is not None or spec.transport == "kernel" or (spec.transport == "auto" and privileged):
        try:
            return _kernel(spec, fs, memory, held, hangs, allow_other=allow_other)
        except (OSError, UnavailableError) as e:
            why = e.strerror if isinstance(e, OSError) else str(e)
            if held is not None:
                raise UnavailableError(f"The mount at {spec.mountpoint} cannot be taken over: {why}") from e
            if spec.transport == "kernel":
                raise UnavailableError(
                    f"Mounting at {spec.mountpoint} failed ({why}): check that /dev/fuse is usable, or use the "
                    "transport pyfuse3."
                ) from e
            log.info("the transport kernel cannot be used (%s): pyfuse3 is", why)
    return _pyfuse3(spec, fs, hangs, allow_other=allow_other, devices=spec.devices and privileged)


def _no_passthrough(spec: MountSpec) -> str:
    if spec.quota == "ledger":
        return "the ledger counts what files take"
    if spec.lease is not None and spec.lease_share is None:
        # it would go on after this process has ended at the end of its lease
        return "one node at a time may write"
    return "" if spec.passthrough else "passthrough=off was asked for"


def _kernel(
    spec: MountSpec, fs: FileSystem, memory: SessionMemory | None, held: Held | None, hangs: Hangs, *, allow_other: bool
) -> Session:
    from fusevol.transport.kernel import session as kernel  # noqa: PLC0415  # one of two is enough

    options = kernel.Options(
        mountpoint=spec.mountpoint,
        fsname=spec.fsname,
        no_passthrough=_no_passthrough(spec),
        read_only=spec.read_only,
        allow_other=allow_other,
        devices=spec.devices,
        spin_us=spec.spin_us,
        io_uring=spec.io_uring,
        abort_after=spec.abort_after_s,
    )
    if memory is not None and held is not None:
        return kernel.Session.resume(fs, options, memory, held.device, held.rings, held.minor, hangs)
    return kernel.Session.mount(fs, options, memory, hangs)


def _pyfuse3(spec: MountSpec, fs: FileSystem, hangs: Hangs, *, allow_other: bool, devices: bool) -> Session:
    from fusevol.transport import pyfuse3  # noqa: PLC0415  # one of two is enough

    chosen = pyfuse3.options(fsname=spec.fsname, allow_other=allow_other, read_only=spec.read_only, devices=devices)
    with _captured_stderr() as said:
        try:
            return pyfuse3.Session(fs, spec.mountpoint, chosen, hangs, spin_us=spec.spin_us)
        except RuntimeError as e:
            why = "; ".join(said() or [str(e)])
            raise UnavailableError(
                f"Mounting at {spec.mountpoint} failed ({why}): check that /dev/fuse and fusermount3 are usable."
            ) from e


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
