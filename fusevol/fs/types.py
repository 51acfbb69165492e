"""Plain values that cross the seam between ``fusevol.fs`` and a transport; the quota it asks is ``fusevol.usage``.

Attributes are ``os.stat_result`` of the backing inode: ``st_ino`` is the backing inode number, while the number
by which the kernel knows the inode is the *node*, carried beside it.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from fusevol.usage import Quota, Usage

__all__ = [
    "CACHE_EXCLUSIVE",
    "CACHE_NONE",
    "CACHE_SHARED",
    "NOW",
    "ROOT_NODE",
    "CachePolicy",
    "Caller",
    "DirEntry",
    "Entry",
    "Quota",
    "SetAttr",
    "StatFs",
    "Usage",
]

ROOT_NODE = 1
"""The node number of the root directory (FUSE_ROOT_ID in ``linux/fuse.h``)."""


class Caller(NamedTuple):
    """Who asks: the identity in a request's header."""

    uid: int
    gid: int
    pid: int
    """Thread id of the caller in the mount's pid namespace; 0 if it is not visible there."""
    umask: int = 0


class Entry(NamedTuple):
    """A name that was resolved. The kernel holds one more lookup of ``node``, given back by ``forget``."""

    node: int
    generation: int
    attr: os.stat_result


class SetAttr(NamedTuple):
    """What a SETATTR changes; ``None`` leaves a field alone. Times in nanoseconds since the epoch, or :data:`NOW`."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill: bool = False
    """Whether setuid and setgid bits are cleared (FATTR_KILL_SUIDGID in ``linux/fuse.h``)."""


NOW: Final = 1 << 100
"""The backing filesystem's own idea of the time, which is not quite that of clock_gettime(2)."""


class DirEntry(NamedTuple):
    """One name of an open directory. ``offset`` is where a later read goes on *after* this entry."""

    name: bytes
    ino: int
    type: int
    """A ``DT_*`` value (``stat.S_IFMT(mode) >> 12``), 0 if the backing filesystem does not say."""
    offset: int


class StatFs(NamedTuple):
    """Answer to statfs(2), sizes in blocks of ``frsize`` bytes."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int


class CachePolicy(NamedTuple):
    """How long the kernel may trust what it was told, in seconds."""

    entry: float
    attr: float
    negative: float
    keep_pages: bool
    """Whether cached file pages survive a re-open."""


CACHE_EXCLUSIVE = CachePolicy(entry=86400.0, attr=86400.0, negative=86400.0, keep_pages=True)
"""Only this mount writes the tree: ReadWriteOnce claims, emptyDir."""
CACHE_SHARED = CachePolicy(entry=1.0, attr=1.0, negative=0.0, keep_pages=False)
"""Others may write the tree as well."""
CACHE_NONE = CachePolicy(entry=0.0, attr=0.0, negative=0.0, keep_pages=False)
"""Every look goes to the backing store."""
