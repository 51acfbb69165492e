"""Memory at an address of our choice, which a later process can have at the same address.

The kernel keeps the addresses of the buffers that carry requests over io_uring. A request that was in flight when the
server was killed is in them, and its answer is taken from them: so the next server maps the same memory there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final, Self

_ADDRESS: Final = 0x7E0000000000
"""Far from what programs and libraries use on x86-64 and arm64 with 47 and 48 bits of address."""
_MAP_FIXED_NOREPLACE: Final = 0x100000
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)


class Region:
    """*size* bytes of the memfd *fd* at a fixed address."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        found = _libc.mmap(_ADDRESS, size, protection, mmap.MAP_SHARED | _MAP_FIXED_NOREPLACE, fd, 0)
        if found == _FAILED or found != _ADDRESS:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address = _ADDRESS
        self.view = memoryview((ctypes.c_char * size).from_address(_ADDRESS)).cast("B")

    @classmethod
    def create(cls, size: int) -> Self:
        """A new one, all zeros; sparse, so that what is not used takes no memory."""
        return cls(os.memfd_create("fusevol-rings", os.MFD_CLOEXEC), size)
