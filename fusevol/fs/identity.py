"""Creating things as the caller, so that owner, setgid directories and backing quotas are right from the start.

Only the identity for file access changes (setfsuid(2), setfsgid(2)), for the calling thread only, and the capabilities
that the kernel takes away with it are taken back: whether the caller may do this has been decided by the kernel of the
mount (``default_permissions``), and the backing store must not decide again, with other groups and other ancestors.
CAP_FSETID being kept, supplementary groups do not matter: an S_ISGID bit that the caller may not set has been removed
from ``mode`` by the kernel before it asked (vfs_prepare_mode), so /proc/PID/status need not be read.

A server that may not change identity (unprivileged) creates everything as itself.

The umask is applied by the backing store, since it alone knows whether the directory has a default ACL, which takes the
umask's place (umask(2)). A umask belongs to a process, so each thread that needs one leaves the others' (CLONE_FS). It
keeps the last one, since nearly always the next caller has the same.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Final

from fusevol.fs.types import Caller

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.setfsuid.argtypes = _libc.setfsgid.argtypes = (ctypes.c_uint,)
_VERSION_3: Final = 0x20080522
_CAP_SETGID, _CAP_SETUID = 6, 7
_CLONE_FS: Final = 0x200


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _As:
    """Within it the calling thread creates files as the caller does, by *uid* and *gid*."""

    __slots__ = ("_caller", "_identity")

    def __init__(self, identity: Identity, caller: Caller) -> None:
        self._identity = identity
        self._caller = caller

    def __enter__(self) -> None:
        identity, caller = self._identity, self._caller
        if caller.gid != identity.gid:
            _libc.setfsgid(caller.gid)
        if caller.uid != identity.uid:
            _libc.setfsuid(caller.uid)
            if identity.uid == 0:
                identity.restore_capabilities()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        identity, caller = self._identity, self._caller
        if caller.uid != identity.uid:
            _libc.setfsuid(identity.uid)
        if caller.gid != identity.gid:
            _libc.setfsgid(identity.gid)


_SAME: Final = nullcontext()


class Identity:
    """Who the server is, and whether it may act as others. Made on any thread, used on all."""

    __slots__ = ("_data", "_header", "_threads", "able", "gid", "uid")

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self._header = _Header(_VERSION_3, 0)
        self._data = (_Data * 2)()
        _libc.capget(ctypes.byref(self._header), ctypes.byref(self._data))
        wanted = 1 << _CAP_SETGID | 1 << _CAP_SETUID
        self.able = self._data[0].effective & wanted == wanted
        self._threads = threading.local()

    def _set_umask(self, umask: int) -> None:
        """Give the calling thread, which shares its umask with no other one, the file mode creation mask *umask*.

        Raises ``OSError`` where a thread may not have its own (unshare(2) forbidden by a seccomp filter).
        """
        if not getattr(self._threads, "alone", False):
            if _libc.unshare(_CLONE_FS) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            self._threads.alone = True
        os.umask(umask)
        self._threads.umask = umask

    def restore_capabilities(self) -> None:
        """Take back the effective capabilities that a change of fsuid away from 0 removed."""
        header = _Header(_VERSION_3, 0)
        if _libc.capset(ctypes.byref(header), ctypes.byref(self._data)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def of(self, caller: Caller) -> AbstractContextManager[None]:
        """A context in which this thread creates files as *caller*, whose umask it keeps. Raises ``OSError``.

        A thread without one has the process's, which is 0.
        """
        if caller.umask != getattr(self._threads, "umask", 0):
            self._set_umask(caller.umask)
        if not self.able or (caller.uid == self.uid and caller.gid == self.gid):
            return _SAME
        return _As(self, caller)
