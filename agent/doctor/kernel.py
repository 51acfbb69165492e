"""System calls by which the kernel is tried. All raise ``OSError``."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from typing import Final

_NEW_MOUNTS: Final = 0x20000
_NEW_USERS: Final = 0x10000000
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_OPEN_TREE: Final = 428
_MOUNT_SETATTR: Final = 442
_QUOTACTL_FD: Final = 443
_OPEN_TREE_CLONE: Final = 1
_EMPTY_PATH: Final = 0x1000
_IDMAP: Final = 0x100000
_GET_QUOTA: Final = 0x800007
_PROJECT: Final = 2
_CLONE_RANGE: Final = 0x40049409
"""FICLONE (linux/fs.h)."""
_BTRFS_INFO: Final = 0x8400941F
"""BTRFS_IOC_FS_INFO (linux/btrfs.h): a KiB, in which the filesystem's id is from byte 16 on."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def own_mounts() -> None:
    """Have what this process mounts from now on seen by itself and its children only, and go with them."""
    _checked(_libc.unshare(_NEW_MOUNTS))
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


@contextlib.contextmanager
def _user_namespace() -> Iterator[int]:
    """A descriptor of a user namespace in which id 0 is 100000."""
    up, down = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _checked(_libc.unshare(_NEW_USERS))
            os.write(up[1], b"1")
            os.read(down[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(up[1])
        if not os.read(up[0], 1):
            raise OSError(None, "no user namespace can be made")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write("0 100000 65536\n")
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield namespace
        finally:
            os.close(namespace)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (up[0], *down):
            os.close(end)


def idmap(path: str) -> None:
    """Make a mount of *path* with other ids, as for a Pod in a user namespace, and let go of it."""
    with _user_namespace() as namespace:
        tree = _checked(_libc.syscall(_OPEN_TREE, -100, os.fsencode(path), os.O_CLOEXEC | _OPEN_TREE_CLONE))
        try:
            attributes = struct.pack("=QQQQ", _IDMAP, 0, 0, namespace)
            _checked(_libc.syscall(_MOUNT_SETATTR, tree, b"", _EMPTY_PATH, attributes, ctypes.c_size_t(32)))
        finally:
            os.close(tree)


def reflink(source: int, target: int) -> None:
    """Have the open file *target* share the blocks of *source*."""
    fcntl.ioctl(target, _CLONE_RANGE, source)


def project_quotas(directory: int) -> bool:
    """Whether the filesystem of *directory* keeps project quotas now (quotactl_fd(2), Linux 5.14)."""
    answer = ctypes.create_string_buffer(256)
    try:
        _checked(_libc.syscall(_QUOTACTL_FD, directory, (_GET_QUOTA << 8) | _PROJECT, 0, answer))
    except OSError:
        return False
    return True


def qgroups(directory: int) -> bool:
    """Whether *directory* is on a btrfs that has quotas switched on."""
    answer = bytearray(1024)
    try:
        fcntl.ioctl(directory, _BTRFS_INFO, answer)
    except OSError:
        return False
    raw = answer[16:32].hex()
    name = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
    return os.path.exists(f"/sys/fs/btrfs/{name}/qgroups")
