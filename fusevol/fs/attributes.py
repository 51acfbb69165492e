"""Operations on attributes: reading and changing them, extended ones, and what a symbolic link says."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from fusevol.fs import _libc
from fusevol.fs.files import OpenFile
from fusevol.fs.names import Names, failure
from fusevol.fs.node import Node
from fusevol.fs.types import SetAttr

_ACL: Final = b"system.posix_acl_"
_XATTR_BLOCKS: Final = 2


class Attributes(Names):
    """The part of a filesystem that deals with attributes. See :class:`fusevol.fs.FileSystem`."""

    def getattr(self, node: int, fh: int | None = None) -> os.stat_result:
        """Attributes of *node*."""
        if fh is not None:
            return os.fstat(self._files.get(fh).fd)
        nodes = self._nodes
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            return os.fstat(fd)
        finally:
            nodes.unpin(found)

    def inode(self, parent: int, name: bytes) -> int:
        """The backing inode number behind *name*, whose node is not looked up by this."""
        nodes = self._nodes
        above = nodes.get(parent)
        fd = nodes.pin(above)
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino
        finally:
            nodes.unpin(above)

    def statx(self, node: int, fh: int | None, mask: int) -> bytes:
        """``struct statx`` of *node* (statx(2)): what getattr tells, and the time of birth. *mask* has STATX_* bits."""
        nodes = self._nodes
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            return _libc.statx(self._files.get(fh).fd if fh is not None else fd, mask)
        finally:
            nodes.unpin(found)

    def setattr(self, node: int, change: SetAttr, fh: int | None) -> os.stat_result:
        """Change what *change* names, and return the attributes then. Nothing is chown(2) of nothing: see there."""
        self._may_write()
        nodes = self._nodes
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            if change.size is not None:
                file = self._files.get(fh) if fh is not None else None
                self._truncate(found, fd, file if file is not None and file.writable else None, change.size)
            if change.kill:
                self._clear_privileges(found, fd)
            if change.uid is not None or change.gid is not None or not any(f is not None for f in change[:-1]):
                # before the mode: it clears setuid and setgid bits, which the mode may set again
                self._chown(
                    found, fd, -1 if change.uid is None else change.uid, -1 if change.gid is None else change.gid
                )
            if change.mode is not None:
                self._chmod(found, fd, stat.S_IMODE(change.mode))
            if change.atime_ns is not None or change.mtime_ns is not None:
                _libc.utime(fd, change.atime_ns, change.mtime_ns)
            return os.fstat(fd)
        finally:
            nodes.unpin(found)

    def _chown(self, node: Node, fd: int, uid: int, gid: int) -> None:
        if self._accounts is None:
            _libc.chown(fd, uid, gid)
            return
        with self._accounts.change([(node, fd)]):  # security.capability may go
            _libc.chown(fd, uid, gid)

    def _chmod(self, node: Node, fd: int, mode: int) -> None:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise failure(errno.EOPNOTSUPP)
        if self._accounts is None:
            os.chmod(_libc.BY_FD % fd, mode)
            return
        with self._accounts.change([(node, fd)]):  # an ACL may be rewritten
            os.chmod(_libc.BY_FD % fd, mode)

    def _clear_privileges(self, node: Node, fd: int) -> None:
        """Clear setuid and setgid bits of a regular file.

        Also the setgid bit of a file that its group cannot execute, which file_remove_privs() in fs/inode.c keeps if a
        member of the group writes: who is one is not known here, and a stranger's write must clear it.
        """
        mode = os.fstat(fd).st_mode
        kept = mode & ~(stat.S_ISUID | stat.S_ISGID)
        if kept != mode and stat.S_ISREG(mode):
            self._chmod(node, fd, stat.S_IMODE(kept))

    def _truncate(self, node: Node, fd: int, file: OpenFile | None, size: int) -> None:
        where: int | bytes = file.fd if file is not None else _libc.BY_FD % fd
        if self._accounts is None:
            os.truncate(where, size)
            return
        self._accounts.truncate(node, fd, where, size)

    def readlink(self, node: int) -> bytes:
        """The target of a symbolic link."""
        nodes = self._nodes
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            nodes.unpin(found)

    # -- extended attributes ------------------------------------------------------------------------------------------

    def getxattr(self, node: int, name: bytes) -> bytes:
        """The value of an extended attribute of any namespace."""
        nodes = self._nodes
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            return os.getxattr(_libc.BY_FD % fd, name)
        except OSError as e:
            if e.errno == errno.EOPNOTSUPP and name.startswith(_ACL):
                # the kernel asks before it lets anybody but the owner in, and takes this for an answer, not for none
                raise failure(errno.ENODATA) from None
            raise OSError(e.errno, e.strerror) from None
        finally:
            nodes.unpin(found)

    def listxattr(self, node: int) -> list[bytes]:
        """The names of the extended attributes."""
        nodes = self._nodes
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            return [os.fsencode(name) for name in os.listxattr(_libc.BY_FD % fd)]
        finally:
            nodes.unpin(found)

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; *flags* are XATTR_CREATE and XATTR_REPLACE."""
        self._may_write()
        nodes, accounts = self._nodes, self._accounts
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            if accounts is None:
                os.setxattr(_libc.BY_FD % fd, name, value, flags)
            else:
                with accounts.change([(found, fd)], _XATTR_BLOCKS + -(-len(value) // accounts.block)):
                    os.setxattr(_libc.BY_FD % fd, name, value, flags)
        finally:
            nodes.unpin(found)

    def removexattr(self, node: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._may_write()
        nodes, accounts = self._nodes, self._accounts
        found = nodes.get(node)
        fd = nodes.pin(found)
        try:
            if accounts is None:
                os.removexattr(_libc.BY_FD % fd, name)
            else:
                with accounts.change([(found, fd)]):
                    os.removexattr(_libc.BY_FD % fd, name)
        finally:
            nodes.unpin(found)
