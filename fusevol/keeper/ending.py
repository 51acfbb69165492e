"""SIGTERM and SIGINT as an event of the loop: who ends a keeper by them means its understudy, too.

Not by handlers, which a forked child would have to undo before anything reaches it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SIGSET: Final = 128
"""Bytes of a sigset_t (bits/types/__sigset_t.h)."""
_SFD_CLOEXEC: Final = os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


def heard() -> int:
    """A descriptor that can be read when one of the signals has come, which ends nobody from now on (signalfd(2)).

    Raises ``OSError``.
    """
    wanted = ctypes.create_string_buffer(_SIGSET)
    _libc.sigemptyset(wanted)
    for number in _SIGNALS:
        _libc.sigaddset(wanted, int(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    descriptor = int(_libc.signalfd(-1, wanted, _SFD_CLOEXEC))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def usual() -> None:
    """The signals end this process again, as a child of a keeper should."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
