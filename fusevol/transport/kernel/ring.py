"""An io_uring of one task that waits for one command at a time (io_uring_setup(2), io_uring_enter(2)).

Three shared mappings and two system calls; liburing is not needed for that. Offsets are those of
``include/uapi/linux/io_uring.h``. The ring belongs to the thread that makes it (IORING_SETUP_SINGLE_ISSUER).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from struct import Struct
from typing import Final

_SETUP: Final = 425
_ENTER: Final = 426
_COOP_TASKRUN: Final = 1 << 8
_SQE128: Final = 1 << 10
_SINGLE_ISSUER: Final = 1 << 12
_GETEVENTS: Final = 1
_OFF_CQ_RING: Final = 0x8000000
_OFF_SQES: Final = 0x10000000
_URING_CMD: Final = 46
_ENTRIES: Final = 2
_PARAMS: Final = Struct("=7I12x")  # sq_entries cq_entries flags sq_thread_cpu sq_thread_idle features wq_fd resv
_SQ_OFFSETS: Final = Struct("=8I8x")  # head tail ring_mask ring_entries flags dropped array resv
_CQ_OFFSETS: Final = Struct("=8I8x")  # head tail ring_mask ring_entries overflow cqes flags resv
_COMMAND: Final = Struct("=BBHiIIQIIQ8xQQH62x")
# opcode flags ioprio fd cmd_op - addr len cmd_flags user_data; then struct fuse_uring_cmd_req: flags commit_id qid
_CQE_SIZE: Final = 16
_RESULT: Final = Struct("=i")

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _fail() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class Ring:
    """See above. Raises ``OSError`` where there is no io_uring, or it is not allowed."""

    def __init__(self) -> None:
        params = bytearray(_PARAMS.size + _SQ_OFFSETS.size + _CQ_OFFSETS.size)
        _PARAMS.pack_into(params, 0, 0, 0, _SQE128 | _SINGLE_ISSUER | _COOP_TASKRUN, 0, 0, 0, 0)
        where = (ctypes.c_char * len(params)).from_buffer(params)
        self.fd: int = _libc.syscall(_SETUP, ctypes.c_uint(_ENTRIES), ctypes.byref(where))
        if self.fd < 0:
            raise _fail()
        entries, completions = _PARAMS.unpack_from(params)[:2]
        _, tail, mask, _, _, _, array, _ = _SQ_OFFSETS.unpack_from(params, _PARAMS.size)
        head, end, done_mask, _, _, cqes, _, _ = _CQ_OFFSETS.unpack_from(params, _PARAMS.size + _SQ_OFFSETS.size)
        self._submissions = self._map(array + 4 * entries, 0)
        self._completions = self._map(cqes + _CQE_SIZE * completions, _OFF_CQ_RING)
        self._commands = self._map(128 * entries, _OFF_SQES)
        self._sq = memoryview(self._submissions).cast("I")
        self._cq = memoryview(self._completions).cast("I")
        self._tail, self._array, self._mask = tail // 4, array // 4, self._sq[mask // 4]
        self._head, self._end, self._done_mask = head // 4, end // 4, self._cq[done_mask // 4]
        self._cqes = cqes
        one, zero = ctypes.c_uint(1), ctypes.c_size_t(0)
        self._enter = (ctypes.c_long(_ENTER), ctypes.c_uint(self.fd))
        self._wait = (one, ctypes.c_uint(_GETEVENTS), None, zero)
        self._no_wait = (ctypes.c_uint(0), ctypes.c_uint(_GETEVENTS), None, zero)

    def _map(self, size: int, offset: int) -> mmap.mmap:
        try:
            return mmap.mmap(self.fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)
        except OSError:
            os.close(self.fd)
            raise

    def push(self, fd: int, what: int, iovecs: int, commit: int, queue: int) -> None:
        """Prepare the command *what* of the FUSE device *fd*; *iovecs* is the address of two of them."""
        tail = self._sq[self._tail]
        at = tail & self._mask
        _COMMAND.pack_into(self._commands, at * 128, _URING_CMD, 0, 0, fd, what, 0, iovecs, 2, 0, 0, 0, commit, queue)
        self._sq[self._array + at] = at
        self._sq[self._tail] = (tail + 1) & 0xFFFFFFFF

    def enter(self, submit: int, *, wait: bool) -> None:
        """Submit *submit* commands and, with *wait*, return when one is complete. Raises ``OSError`` (EINTR)."""
        if _libc.syscall(*self._enter, ctypes.c_uint(submit), *(self._wait if wait else self._no_wait)) < 0:
            raise _fail()

    def completed(self) -> int | None:
        """The result of the next complete command; ``None`` if there is none."""
        head = self._cq[self._head]
        if head == self._cq[self._end]:
            return None
        result: int = _RESULT.unpack_from(self._completions, self._cqes + (head & self._done_mask) * _CQE_SIZE + 8)[0]
        self._cq[self._head] = (head + 1) & 0xFFFFFFFF
        return result

    def close(self) -> None:
        """Give the ring back; commands that wait are cancelled."""
        self._sq.release()
        self._cq.release()
        for mapping in (self._submissions, self._completions, self._commands):
            mapping.close()
        os.close(self.fd)
