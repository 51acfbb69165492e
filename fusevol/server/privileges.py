"""What a volume server is allowed to do, and is spared of, by the kernel.

A server started by root keeps the capabilities that serving a volume takes and drops the others for good, so that a
bug in it cannot load a module, trace a process or reconfigure the network. All of this is best effort: a server in a
container that has less works with less. Called before the first thread exists, since capabilities belong to threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

KEPT: Final = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,  # open_by_handle_at
    "FOWNER": 3,
    "FSETID": 4,  # chmod keeps the setgid bit of a file of another group
    "SETGID": 6,  # creating with the caller's identity
    "SETUID": 7,
    "IPC_LOCK": 14,  # rings of io_uring do not count against the 8 MiB that all of root's processes may lock
    "SYS_ADMIN": 21,  # unmount; trusted.* and security.* attributes
    "MKNOD": 27,
    "SETFCAP": 31,  # security.capability
}
"""linux/capability.h"""
_VERSION_3: Final = 0x20080522
_PR_CAPBSET_DROP: Final = 24
_OOM_SCORE: Final = -900


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def settle(descriptors: int) -> int:
    """Drop capabilities, resist the OOM killer, and allow *descriptors* cached inodes beside as many open files.

    Returns how many cached inodes may have a descriptor: fewer where the limit of descriptors is low.
    """
    with contextlib.suppress(OSError):
        # a killed volume server is an I/O error for every container that uses the volume
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if resource.RLIM_INFINITY != hard < 2 * descriptors:
        log.info("only %d descriptors are allowed: a volume with many open files wants more", hard)
        descriptors = hard // 2
    if os.geteuid() == 0:
        _drop_capabilities()
    return descriptors


def _drop_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), ctypes.byref(data)) != 0:
        return
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in set(range(last + 1)) - set(KEPT.values()):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    for half in range(2):
        kept = sum(1 << (n - 32 * half) for n in KEPT.values() if n // 32 == half)
        data[half].permitted &= kept
        data[half].effective &= kept
        data[half].inheritable = 0
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        log.info("capabilities were not dropped: %s", os.strerror(ctypes.get_errno()))
