"""The memory that volume servers are forked from."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_M_ARENA_MAX: Final = -8


def settle() -> None:
    """Settle this process's memory so that as much of it as can be stays shared. Call once, when all is imported.

    Threads of glibc's malloc get an arena each unless told otherwise; a server's few threads do well with one.
    Frozen objects are never looked at by the garbage collector, which would write into every one of them.
    """
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    gc.collect()
    gc.freeze()
