"""What the process table calls the processes that come of a keeper, whose command line they all have."""

from __future__ import annotations

import ctypes
from typing import Final

KEEPER: Final = "fusevol-keeper"
UNDERSTUDY: Final = "fusevol-standby"
SERVER: Final = "fusevol-server"
_PR_SET_NAME: Final = 15
_libc = ctypes.CDLL(None)


def name(text: str) -> None:
    """Call this process *text*, at most 15 bytes (PR_SET_NAME, prctl(2))."""
    _libc.prctl(_PR_SET_NAME, text.encode(), 0, 0, 0)
