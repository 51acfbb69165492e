"""A volume server's time in office, where several nodes have the pool: it renews the volume's lease, or dies.

The end is the kernel's doing: a timer sends SIGKILL at the moment when the lease ends, and is put off with each
renewal (timer_create(2)). A process that looked at a clock before each write could be stopped between the look and the
write, and write a byte when it wakes, hours later; this one does not wake. CLOCK_BOOTTIME goes on while the machine
sleeps.

A server that is killed so is followed by another one, as after any death. If the lease is still its own, since nobody
has wanted it, it goes on; if not, the connection is ended.

Who has a share only does not die of being late: others may write to the volume anyway. A share that was ended, since
the volume is being deleted or is one node's alone now, is noticed at the next renewal, and ends the connection.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from fusevol.lease import Lease, LostError

log = logging.getLogger(__name__)

_OFTEN: Final = 4
"""Renewals in the time for which one holds."""
_EVENT: Final = 64
"""Bytes of struct sigevent (bits/types/sigevent_t.h): value, signal, SIGEV_SIGNAL, and nothing more."""
_TIMER_ABSTIME: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _Fuse:
    """SIGKILL for this process at a moment of CLOCK_BOOTTIME, which can be put off."""

    def __init__(self) -> None:
        event = ctypes.create_string_buffer(struct.pack("@Pii", 0, signal.SIGKILL, 0), _EVENT)
        self._timer = ctypes.c_void_p()
        if _libc.timer_create(time.CLOCK_BOOTTIME, event, ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def put_off(self, until: float) -> None:
        """Until *until*; 0 is for ever."""
        when = struct.pack("@4l", 0, 0, int(until), int(until % 1 * 1e9))
        if _libc.timer_settime(self._timer, _TIMER_ABSTIME, when, None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Tenure:
    """See above."""

    def __init__(self, lease: Lease, epoch: int, seconds: float, lost: Callable[[], object]) -> None:
        """*seconds* is how long a renewal holds. *lost* is called, in another thread, when *lease* is somebody
        else's."""
        self._lease = lease
        self._epoch = epoch
        self._seconds = seconds
        self._lost = lost
        self._over = threading.Event()
        self._fuse: _Fuse | None = None

    def begin(self) -> None:
        """Renew it now, and from now on. Raises :class:`LostError` when it is somebody else's, and ``OSError``."""
        self._renew()
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def end(self, *, release: bool) -> None:
        """Nothing will be written any more. Without *release* another server of this node goes on."""
        self._over.set()
        if release:
            try:
                self._lease.release(self._epoch)
            except OSError as e:
                log.info("the lease is not given up: %s", e.strerror)
        if self._fuse is not None:
            self._fuse.put_off(0)

    def _renew(self) -> None:
        until = time.clock_gettime(time.CLOCK_BOOTTIME) + self._seconds
        if self._fuse is None and not self._lease.agent:
            self._fuse = _Fuse()
            self._fuse.put_off(until)  # also for the first time: the rename may hang
        self._lease.renew(self._epoch)
        if self._fuse is not None:
            self._fuse.put_off(until)

    def _run(self) -> None:
        while not self._over.wait(self._seconds / _OFTEN):
            try:
                self._renew()
            except LostError as e:
                log.warning("%s The volume is let go of.", e)
                self._lost()
                return
            except OSError as e:
                log.warning("The lease cannot be renewed: %s.", e.strerror)
