"""Makes pyfuse3's ``EntryAttributes`` from ``os.stat_result``, with a node number and an inode number of their own.

pyfuse3 has one property for two fields of ``struct fuse_entry_param``: setting ``st_ino`` sets both the number by which
the kernel knows the inode and the one that users see. They must differ in three cases: the root (node 1, whatever
its inode number), a node that got another number because its own was taken, and an entry of a listing without
attributes. For the last the FUSE protocol says node 0, "here is only a name", while ``d_ino`` must be the inode
number (older C libraries skip names whose ``d_ino`` is 0). It is what makes listing cheap.

So ``attr.st_ino`` is written where it lies in the object, as ``fuse_lowlevel.h`` and the C compiler laid it out::

    PyObject (16), ino (8), generation (8), struct stat: st_dev (8), st_ino (8), ...

That is checked once, by what the properties write (:func:`_offset`). If pyfuse3 ever moves the field, nothing is
written: users then see node numbers, and every listing carries attributes.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

from fusevol.transport._load import load

if TYPE_CHECKING:
    import pyfuse3
else:
    pyfuse3 = load()

_NODE: Final = object.__basicsize__
_INODE: Final = _NODE + 8 + 8 + 8


def _offset() -> int | None:
    """Where ``attr.st_ino`` is within an ``EntryAttributes`` object; ``None`` if it is not where it is expected."""
    probe = pyfuse3.EntryAttributes()
    if type(probe).__basicsize__ < _INODE + 8:
        return None
    number, generation = 0x1122334455667788, 0x0102030405060708
    probe.st_ino, probe.generation = number, generation
    words = [ctypes.c_uint64.from_address(id(probe) + _NODE + 8 * i).value for i in range(4)]
    return _INODE if words == [number, generation, 0, number] else None


_AT: Final = _offset()


def attributes(node: int, generation: int, st: os.stat_result, entry: float, attr: float) -> pyfuse3.EntryAttributes:
    """The answer for *node*; *entry* and *attr* are how long the kernel may trust name and attributes, in seconds."""
    e = pyfuse3.EntryAttributes()
    e.st_ino = node
    e.generation = generation
    e.entry_timeout = entry
    e.attr_timeout = attr
    e.st_mode = st.st_mode
    e.st_nlink = st.st_nlink
    e.st_uid = st.st_uid
    e.st_gid = st.st_gid
    e.st_rdev = st.st_rdev
    e.st_size = st.st_size
    e.st_blksize = st.st_blksize
    e.st_blocks = st.st_blocks
    e.st_atime_ns = st.st_atime_ns
    e.st_mtime_ns = st.st_mtime_ns
    e.st_ctime_ns = st.st_ctime_ns
    if node != st.st_ino and _AT is not None:
        ctypes.c_uint64.from_address(id(e) + _AT).value = st.st_ino
    return e


def absent(seconds: float) -> pyfuse3.EntryAttributes:
    """The answer "no such name", which the kernel may remember for *seconds*."""
    e = pyfuse3.EntryAttributes()
    e.st_ino = 0
    e.entry_timeout = seconds
    e.attr_timeout = 0
    return e


class NameOnly:
    """An entry of a listing that has a name, a type and an inode number. One object serves a whole listing."""

    available: Final = _AT is not None

    def __init__(self) -> None:
        self.entry = pyfuse3.EntryAttributes()
        self.entry.st_ino = 0
        self._type = -1
        self._inode = ctypes.c_uint64.from_address(id(self.entry) + (_AT or 0)) if _AT else ctypes.c_uint64()

    def set(self, ino: int, kind: int) -> pyfuse3.EntryAttributes:
        """Make it the entry for inode *ino* of the ``DT_*`` type *kind*."""
        self._inode.value = ino
        if kind != self._type:
            self._type = kind
            self.entry.st_mode = kind << 12
        return self.entry
