"""The FUSE protocol as data: operations, their arguments, flags. Version 7.45 of ``include/uapi/linux/fuse.h``.

Every layout is a :class:`struct.Struct` in the machine's byte order, named as in the header, its fields listed in
order behind it. Nothing else in the project knows an offset.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from struct import Struct
from typing import Final

from fusevol.fs.listing import RECORD

MAJOR: Final = 7
MINOR: Final = 45
OLDEST_MINOR: Final = 31
"""Linux 5.4: before it, layouts of older kernels would have to be known."""


class Op(IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """``enum fuse_notify_code``: what a server may say unasked; it stands in ``error`` of a header with unique 0."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    DELETE = 6
    RESEND = 7


IN_HEADER: Final = Struct("=IIQQIIIHxx")  # len opcode unique nodeid uid gid pid total_extlen
OUT_HEADER: Final = Struct("=IiQ")  # len error unique
RESENT: Final = 1 << 63
"""Bit of ``unique`` in a request that is delivered again (FUSE_UNIQUE_RESEND)."""
NOBODY: Final = 0xFFFFFFFF
"""uid and gid of a request on an idmapped mount that makes nothing (FUSE_INVALID_UIDGID)."""

EMPTY: Final = Struct("=")
INIT_IN: Final = Struct("=IIII")  # major minor max_readahead flags
INIT_IN_FLAGS2: Final = Struct("=I")  # behind it, where FUSE_INIT_EXT is set
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment flags2
# max_stack_depth request_timeout
FORGET_IN: Final = Struct("=Q")  # nlookup
BATCH_FORGET_IN: Final = Struct("=Ixxxx")  # count
FORGET_ONE: Final = Struct("=QQ")  # nodeid nlookup
GETATTR_IN: Final = Struct("=IxxxxQ")  # getattr_flags fh
SETATTR_IN: Final = Struct("=IxxxxQQQqqqIIIIxxxxIIxxxx")
# valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode uid gid
MKNOD_IN: Final = Struct("=IIIxxxx")  # mode rdev umask
MKDIR_IN: Final = Struct("=II")  # mode umask
RENAME_IN: Final = Struct("=Q")  # newdir
RENAME2_IN: Final = Struct("=QIxxxx")  # newdir flags
LINK_IN: Final = Struct("=Q")  # oldnodeid
OPEN_IN: Final = Struct("=II")  # flags open_flags
CREATE_IN: Final = Struct("=IIII")  # flags mode umask open_flags
RELEASE_IN: Final = Struct("=QIIQ")  # fh flags release_flags lock_owner
READ_IN: Final = Struct("=QQIIQIxxxx")  # fh offset size read_flags lock_owner flags
WRITE_IN: Final = Struct("=QQIIQIxxxx")  # fh offset size write_flags lock_owner flags
FSYNC_IN: Final = Struct("=QIxxxx")  # fh fsync_flags
SETXATTR_IN: Final = Struct("=III4x")  # size flags setxattr_flags (with FUSE_SETXATTR_EXT)
SETXATTR_IN_OLD: Final = Struct("=II")  # size flags
GETXATTR_IN: Final = Struct("=Ixxxx")  # size
FALLOCATE_IN: Final = Struct("=QQQIxxxx")  # fh offset length mode
LSEEK_IN: Final = Struct("=QqIxxxx")  # fh offset whence
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
STATX_IN: Final = Struct("=IxxxxQII")  # getattr_flags fh sx_flags sx_mask

ATTR: Final = Struct("=QQQqqqIIIIIIIIII")
# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags
ENTRY_OUT: Final = Struct("=QQQQII")  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec; attr
ATTR_OUT: Final = Struct("=QIxxxx")  # attr_valid attr_valid_nsec; attr
STATX_OUT: Final = Struct("=QII16x")  # attr_valid attr_valid_nsec flags; statx
OPEN_OUT: Final = Struct("=QIi")  # fh open_flags backing_id
WRITE_OUT: Final = Struct("=Ixxxx")  # size
COPY_OUT_64: Final = Struct("=Q")  # bytes_copied
STATFS_OUT: Final = Struct("=QQQQQIII28x")  # blocks bfree bavail files ffree bsize namelen frsize
GETXATTR_OUT: Final = Struct("=Ixxxx")  # size
LSEEK_OUT: Final = Struct("=Q")  # offset
DIRENT: Final = Struct("=QQII")  # ino off namelen type; name, padded to 8
INVAL_ENTRY_OUT: Final = Struct("=QII")  # parent namelen flags; name and a zero
INVAL_INODE_OUT: Final = Struct("=Qqq")  # ino off len

FATTR_MODE: Final = 1
FATTR_UID: Final = 2
FATTR_GID: Final = 4
FATTR_SIZE: Final = 8
FATTR_ATIME: Final = 16
FATTR_MTIME: Final = 32
FATTR_FH: Final = 64
FATTR_ATIME_NOW: Final = 128
FATTR_MTIME_NOW: Final = 256
FATTR_CTIME: Final = 1024
FATTR_KILL_SUIDGID: Final = 2048
GETATTR_FH: Final = 1
OPEN_KILL_SUIDGID: Final = 1
WRITE_KILL_SUIDGID: Final = 4
FSYNC_FDATASYNC: Final = 1
RENAME_EXCHANGE: Final = 2
"""Flags of RENAME2 are those of renameat2(2)."""
RENAME_WHITEOUT: Final = 4
SETXATTR_ACL_KILL_SGID: Final = 1

FOPEN_KEEP_CACHE: Final = 2
FOPEN_CACHE_DIR: Final = 8
FOPEN_NOFLUSH: Final = 32
FOPEN_PASSTHROUGH: Final = 128


def _write_request(kind: int, number: int, size: int) -> int:
    """``_IOW`` of ``asm-generic/ioctl.h``."""
    return 1 << 30 | size << 16 | kind << 8 | number


BACKING_MAP: Final = Struct("=iIQ")  # fd flags padding
BACKING_ID: Final = Struct("=I")
DEV_IOC_BACKING_OPEN: Final = _write_request(229, 1, BACKING_MAP.size)
DEV_IOC_BACKING_CLOSE: Final = _write_request(229, 2, BACKING_ID.size)


def pack_attr(st: os.stat_result) -> bytes:
    """``struct fuse_attr`` of *st*."""
    mode, ino, _device, nlink, uid, gid, size, atime, mtime, ctime = st  # a third quicker than ten attributes
    return ATTR.pack(
        ino,
        size,
        st.st_blocks,
        atime,
        mtime,
        ctime,
        st.st_atime_ns % 1_000_000_000,
        st.st_mtime_ns % 1_000_000_000,
        st.st_ctime_ns % 1_000_000_000,
        mode,
        nlink,
        uid,
        gid,
        st.st_rdev & 0xFFFFFFFF,
        st.st_blksize,
        0,
    )


class _Dirents(dict[int, Struct]):
    """The layout of ``struct fuse_dirent`` with a name of so many bytes: as DIRENT, but inode and offset as they come.

    One for each length, since the padding is part of it: packing a name this way takes half the time.
    """

    def __missing__(self, length: int) -> Struct:
        found = self[length] = Struct(f"=16sII{length}s{-length % 8}x")
        return found


_DIRENTS: Final = _Dirents()


def dirent(name: bytes, ino: int, kind: int, after: int) -> bytes:
    """``struct fuse_dirent`` of a name."""
    return DIRENT.pack(ino, after, len(name), kind) + name.ljust(len(name) + -len(name) % 8, b"\0")


def dirents(block: bytes) -> bytes:
    """``struct fuse_dirent`` of all names in *block* (:mod:`fusevol.fs.listing`), which has up to a quarter less."""
    found: list[bytes] = []
    add, zero, at, header = found.append, block.index, 0, RECORD.size
    while at < len(block):
        start = at + header
        end = zero(0, start)
        length = end - start
        add(_DIRENTS[length].pack(block[at : at + 16], length, block[start - 1], block[start:end]))
        at += (header + length + 8) & ~7  # as the kernel aligns them, with at least one zero
    return b"".join(found)


def seconds(value: float) -> tuple[int, int]:
    """*value* seconds as the protocol has them: whole ones and nanoseconds."""
    whole = int(value)
    return whole, int((value - whole) * 1e9)


def malformed(what: str) -> OSError:
    """The error for a request that no kernel sends; its caller gets EINVAL."""
    return OSError(errno.EINVAL, f"malformed request: {what}")


def names(text: bytes | memoryview, count: int) -> list[bytes]:
    """*count* zero-terminated names from the start of *text*; what follows them is an extension. Raises ``OSError``."""
    found = bytes(text).split(b"\0", count)
    if len(found) <= count:
        raise malformed("a name does not end")
    return found[:count]
