"""The ioctls of btrfs that volumes need: subvolumes, snapshots, quota groups, growth (linux/btrfs.h).

By libc's ioctl, not by ``fcntl.ioctl``: that keeps the interpreter's lock for arguments of more than 1024 bytes, and
making or removing a subvolume commits a transaction, which may take seconds.

Usage comes from sysfs (``/sys/fs/btrfs/FSID/qgroups``, Linux 5.9) and not from a search of the quota tree: sysfs shows
what the kernel compares with the limit at this moment, reservations of writes that are on their way included, takes no
privilege, and leaves out the tree's items. The tree has it as of the last transaction.

All raise ``OSError``. Directories are descriptors that are open for reading (O_PATH will not do).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import uuid
from typing import Final, NamedTuple

ROOT_INODE: Final = 256
"""Inode number of a subvolume's root: BTRFS_FIRST_FREE_OBJECTID (linux/btrfs_tree.h)."""
SYSFS: Final = "/sys/fs/btrfs"
ENABLE: Final = 1
ENABLE_SIMPLE: Final = 4
"""Commands of QUOTA_CTL; simple quotas are of Linux 6.7."""

_ARGS: Final = 4096
_NAME_V2: Final = 56
_RESIZE: Final = 0x50009403
_SYNC: Final = 0x9408
_TREE_SEARCH: Final = 0xD0009411
_INO_LOOKUP: Final = 0xD0009412
_SNAP_CREATE_V2: Final = 0x50009417
_SUBVOL_CREATE_V2: Final = 0x50009418
_FS_INFO: Final = 0x8400941F
_QUOTA_CTL: Final = 0xC0109428
_QGROUP_CREATE: Final = 0x4010942A
_QGROUP_LIMIT: Final = 0x8030942B
_QUOTA_RESCAN_WAIT: Final = 0x942E
_SNAP_DESTROY: Final = 0x5000940F
_ROOT_TREE: Final = 1
_ROOT_ITEM: Final = 132
_RDONLY: Final = 1 << 1
_QGROUP_INHERIT: Final = 1 << 2
_SET_LIMITS: Final = 1
_LIMIT: Final = struct.Struct("=QQQQQ")
"""struct btrfs_qgroup_limit: flags, max_rfer, max_excl, rsv_rfer, rsv_excl."""
_MAX_RFER: Final = 1
_NO_LIMIT: Final = (1 << 64) - 1
"""CLEAR_VALUE of the kernel: takes a limit away."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def _ioctl(fd: int, request: int, argument: ctypes.Array[ctypes.c_char] | None) -> None:
    if _libc.ioctl(fd, request, argument) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _named(name: str, flags: int, fd: int = 0) -> ctypes.Array[ctypes.c_char]:
    """struct btrfs_ioctl_vol_args_v2: fd, transid, flags, two words for a quota group's inheritance, two more; name."""
    raw = os.fsencode(name)
    if not raw or b"/" in raw or len(raw) > 255:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    buffer = ctypes.create_string_buffer(_ARGS)
    struct.pack_into("=qQQ", buffer, 0, fd, 0, flags)
    struct.pack_into(f"{len(raw)}s", buffer, _NAME_V2, raw)
    return buffer


def _limit(nbytes: int | None) -> bytes:
    return _LIMIT.pack(_MAX_RFER, _NO_LIMIT if nbytes is None else nbytes, 0, 0, 0)


def filesystem(fd: int) -> str | None:
    """The id of the btrfs that *fd* is on, as sysfs names it; ``None`` if it is on another filesystem."""
    answer = ctypes.create_string_buffer(1024)
    try:
        _ioctl(fd, _FS_INFO, answer)
    except OSError as e:
        if e.errno in {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}:
            return None
        raise
    return str(uuid.UUID(bytes=answer.raw[16:32]))


def subvolume(fd: int) -> int:
    """The id of the subvolume that *fd* is in."""
    buffer = ctypes.create_string_buffer(_ARGS)
    struct.pack_into("=QQ", buffer, 0, 0, ROOT_INODE)
    _ioctl(fd, _INO_LOOKUP, buffer)
    return int(struct.unpack_from("=Q", buffer, 0)[0])


def create(parent: int, name: str, limit: int | None = None) -> None:
    """Make the subvolume *name* in the directory *parent*, in the same transaction with its *limit* in bytes.

    It is durable when this returns. A limit takes quotas that are on and CAP_SYS_ADMIN.
    """
    if limit is None:
        _ioctl(parent, _SUBVOL_CREATE_V2, _named(name, 0))
        return
    # struct btrfs_qgroup_inherit: flags, three counts of what follows (nothing), the limit
    inherit = ctypes.create_string_buffer(struct.pack("=QQQQ", _SET_LIMITS, 0, 0, 0) + _limit(limit), 72)
    argument = _named(name, _QGROUP_INHERIT)
    struct.pack_into("=QQ", argument, 24, len(inherit), ctypes.addressof(inherit))
    _ioctl(parent, _SUBVOL_CREATE_V2, argument)


def snapshot(source: int, parent: int, name: str, *, read_only: bool) -> None:
    """Make *name* in *parent*, which has what the subvolume *source* has at this instant. Durable when this returns.

    What was written to *source* before is in it (delayed allocation is flushed), what is being written may not be. Its
    quota group takes over the limit of *source* with full quotas, and none with simple ones.
    """
    _ioctl(parent, _SNAP_CREATE_V2, _named(name, _RDONLY if read_only else 0, source))


def destroy(parent: int, name: str) -> None:
    """Remove the subvolume *name* in *parent*; its space is freed in the background. ENOTEMPTY: it has subvolumes."""
    buffer = ctypes.create_string_buffer(_ARGS)
    raw = os.fsencode(name)
    struct.pack_into(f"{len(raw)}s", buffer, 8, raw)
    _ioctl(parent, _SNAP_DESTROY, buffer)


def sync(fd: int) -> None:
    """Write all that belongs to the filesystem of *fd*, end the transaction and wake who frees removed subvolumes.

    After syncfs(2) that one sleeps on for up to half a minute.
    """
    _ioctl(fd, _SYNC, None)


def exists(fd: int, number: int) -> bool:
    """Whether the subvolume *number* has not been freed yet. Needs CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(_ARGS)
    # struct btrfs_ioctl_search_key: tree, objectids, offsets, transactions, types, how many items
    everything = (0, _NO_LIMIT, 0, _NO_LIMIT)
    struct.pack_into("=7Q4I", buffer, 0, _ROOT_TREE, number, number, *everything, _ROOT_ITEM, _ROOT_ITEM, 1, 0)
    _ioctl(fd, _TREE_SEARCH, buffer)
    return bool(struct.unpack_from("=I", buffer, 64)[0])


def enable_quota(fd: int, *, simple: bool = False) -> None:
    """Switch quotas on, and wait until what is there has been counted. On already: nothing happens.

    *simple*: cheap quotas (Linux 6.7), by which an extent counts for the subvolume that wrote it first, for ever.
    """
    try:
        command = ENABLE_SIMPLE if simple else ENABLE
        _ioctl(fd, _QUOTA_CTL, ctypes.create_string_buffer(struct.pack("=QQ", command, 0), 16))
    except FileExistsError:  # btrfs says so since 6.8
        return
    if not simple:
        _ioctl(fd, _QUOTA_RESCAN_WAIT, None)


def set_limit(fd: int, nbytes: int | None) -> None:
    """Limit what the subvolume that *fd* is in refers to, or with ``None`` do not. Not durable before a sync."""
    _ioctl(fd, _QGROUP_LIMIT, ctypes.create_string_buffer(struct.pack("=Q", 0) + _limit(nbytes), 48))


def destroy_qgroup(fd: int, number: int) -> None:
    """Remove the quota group of the subvolume *number*, which is gone.

    EBUSY: it is not gone yet, or (simple quotas) snapshots still use what it wrote. ENOENT: the kernel has removed it.
    """
    _ioctl(fd, _QGROUP_CREATE, ctypes.create_string_buffer(struct.pack("=QQ", 0, number), 16))


def resize(fd: int, size: int | None = None) -> None:
    """Have the mounted filesystem of *fd* (one device) take *size* bytes of it, or with ``None`` all."""
    buffer = ctypes.create_string_buffer(_ARGS)
    raw = b"max" if size is None else str(size).encode()
    struct.pack_into(f"{len(raw)}s", buffer, 8, raw)
    _ioctl(fd, _RESIZE, buffer)


class QuotaState(NamedTuple):
    """Whether and how a btrfs keeps quotas."""

    mode: str
    """``qgroup`` or ``squota``; empty where quotas are off."""
    consistent: bool
    """False: the counts are wrong until the next rescan, which somebody must start (``btrfs quota rescan``)."""


def quota_state(fsid: str) -> QuotaState:
    """The state of the filesystem *fsid* (see :func:`filesystem`)."""
    place = f"{SYSFS}/{fsid}/qgroups"
    if not os.path.isdir(place) or _word(f"{place}/enabled", "1") != "1":
        return QuotaState("", True)
    return QuotaState(_word(f"{place}/mode", "qgroup"), _word(f"{place}/inconsistent", "0") == "0")


class QuotaGroup(NamedTuple):
    """What counts against the limit of a quota group. Bytes."""

    referenced: int
    """As of the last transaction."""
    reserved: int
    """Set aside for writes that are not part of a transaction yet."""
    limit: int | None


def quota_group(fsid: str, number: int) -> QuotaGroup:
    """The quota group of the subvolume *number*. ENOENT: quotas are off, or the subvolume has none."""
    place = f"{SYSFS}/{fsid}/qgroups/0_{number}/"
    referenced = _number(place + "referenced")
    reserved = sum(_number(place + name) for name in ("rsv_data", "rsv_meta_pertrans", "rsv_meta_prealloc"))
    limited = _number(place + "limit_flags") & _MAX_RFER
    return QuotaGroup(referenced, reserved, _number(place + "max_referenced") if limited else None)


def _number(path: str) -> int:
    with open(path, "rb") as file:
        return int(file.read())


def _word(path: str, default: str) -> str:
    """The content of a file that older kernels do not have."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return default
