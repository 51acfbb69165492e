"""Operations on names: looking up, making, linking, renaming, removing."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Final

from fusevol.fs import _libc
from fusevol.fs.accounting import INODE_COST, NAME_COST, Change
from fusevol.fs.files import Handles, OpenFile
from fusevol.fs.identity import Identity
from fusevol.fs.node import Node
from fusevol.fs.nodes import Nodes
from fusevol.fs.types import Caller, Entry
from fusevol.fs.writing import Writer

_Directory = tuple[Node, int]
"""One that is pinned, and its descriptor."""
_UNCOUNTED: Final = contextlib.nullcontext()
_NAME_MAX: Final = 255
_NO_NAMES: Final = frozenset({b"", b".", b".."})
_RDWR_CREAT: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DROPPED: Final = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_NOFOLLOW | os.O_APPEND | os.O_DIRECT | os.O_NONBLOCK
"""Flags that are the kernel's business: it gives the offset of an append, and bypasses its own cache for O_DIRECT
(passing that on would demand aligned buffers of us, and gain nothing)."""


def failure(number: int) -> OSError:
    """An ``OSError`` of errno *number*."""
    return OSError(number, os.strerror(number))


def check(name: bytes) -> None:
    """Refuse what is not a single component."""
    if len(name) > _NAME_MAX:
        raise failure(errno.ENAMETOOLONG)
    if b"/" in name or b"\0" in name or name in _NO_NAMES:
        raise failure(errno.EINVAL)


def _is_whiteout(mode: int, rdev: int) -> bool:
    return stat.S_ISCHR(mode) and rdev == 0


def _exists(up: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=up, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _exists_first(error: OSError, up: int, name: bytes) -> None:
    """Raise EEXIST in place of an *error* of ENOSPC where *name* exists: it comes first on other filesystems too."""
    if error.errno == errno.ENOSPC and _exists(up, name):
        raise failure(errno.EEXIST) from error


class Names(ABC):
    """The part of a filesystem that deals with names. See :class:`fusevol.fs.FileSystem`."""

    _nodes: Nodes
    _files: Handles[OpenFile]
    _accounts: Writer | None
    _identity: Identity
    _read_only: bool
    _devices: bool

    def _may_write(self) -> None:
        if self._read_only:
            raise failure(errno.EROFS)

    def _change(
        self, parts: list[_Directory], blocks: int = 0, inodes: int = 0
    ) -> AbstractContextManager[Change | None]:
        """As :meth:`fusevol.fs.accounting.Accounts.change`, where there is an accounting.

        The names in a directory change with its lock held only, so that what was found there is what is counted.
        """
        return _UNCOUNTED if self._accounts is None else self._accounts.change(parts, blocks, inodes)

    def _collect(self) -> None:
        """Give back what inodes took that are gone."""
        if self._accounts is not None and self._nodes.gone:
            self._accounts.collect()

    def _lost_name(self, node: Node, fd: int, st: os.stat_result, parent: Node, name: bytes) -> None:
        last = stat.S_ISDIR(st.st_mode) or os.fstat(fd).st_nlink == 0
        self._nodes.removed(node, parent, name, last=last)

    def lookup(self, parent: int, name: bytes) -> Entry:
        """The inode called *name*. Raises ``OSError``."""
        check(name)
        nodes, accounts = self._nodes, self._accounts
        above = nodes.get(parent)
        fd = nodes.pin(above)
        try:
            if accounts is None:
                node, st = nodes.find(above, fd, name)
            else:
                with above.lock or accounts.lock_of(above):  # what is being made must be counted before it can grow
                    node, st = nodes.find(above, fd, name)
        finally:
            nodes.unpin(above)
        return Entry(node.number, node.generation, st)

    def forget(self, node: int, count: int) -> None:
        """The kernel gives *count* lookups of *node* back. Of a node that is not known: nothing."""
        self.forget_all([(node, count)])

    def forget_all(self, numbers: Iterable[tuple[int, int]]) -> None:
        """As :meth:`forget`, for many nodes: number and count of each."""
        self._nodes.forget(numbers)
        accounts = self._accounts
        if accounts is not None:
            accounts.collect()
            if accounts.crowded():
                accounts.drain()

    def _make(self, parent: int, name: bytes, caller: Caller, make: Callable[[int], None]) -> Entry:
        """Make *name* by *make*, which is given the parent's descriptor and runs as the caller."""
        self._may_write()
        check(name)
        nodes = self._nodes
        above = nodes.get(parent)
        fd = nodes.pin(above)
        try:
            with self._change([(above, fd)], NAME_COST + INODE_COST, 1) as change:
                if change is not None:
                    change.makes(above, fd, name)
                with self._identity.of(caller):
                    make(fd)
                try:
                    node, st = nodes.find(above, fd, name, new=True)
                except OSError:  # no descriptor is left: it was made all the same
                    if change is not None:
                        change.added(os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512)
                    raise
                if change is not None:
                    change.added(node.charged, node)
        except OSError as e:
            _exists_first(e, fd, name)
            raise
        finally:
            nodes.unpin(above)
        return Entry(node.number, node.generation, st)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Make a file of any type but directory and symbolic link. Devices where the volume allows them, else EPERM.

        The character device 0 is none: it is how overlayfs marks what was deleted, and anybody may make it (mknod(2)).
        """
        if stat.S_IFMT(mode) in {stat.S_IFBLK, stat.S_IFCHR} and not self._devices and not _is_whiteout(mode, rdev):
            raise failure(errno.EPERM)
        return self._make(parent, name, caller, lambda fd: os.mknod(name, mode, rdev, dir_fd=fd))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Make a directory."""
        return self._make(parent, name, caller, lambda fd: os.mkdir(name, mode, dir_fd=fd))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Make a symbolic link to *target*."""
        return self._make(parent, name, caller, lambda fd: os.symlink(target, name, dir_fd=fd))

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller, *, kill: bool = False
    ) -> tuple[Entry, int]:
        """Make and open a regular file; one that exists is opened, unless *flags* has O_EXCL. *kill* as in open."""
        opened = -1

        def make(fd: int) -> None:
            nonlocal opened
            opened = os.open(name, flags & ~(DROPPED | os.O_TRUNC) | _RDWR_CREAT, mode & 0o7777, dir_fd=fd)

        try:
            entry = self._make(parent, name, caller, make)
        except FileExistsError:
            if flags & os.O_EXCL or opened >= 0:
                if opened >= 0:
                    os.close(opened)
                raise
            entry = self.lookup(parent, name)
            try:
                return entry, self.open(entry.node, flags, kill=kill)
            except BaseException:
                self.forget(entry.node, 1)
                raise
        except BaseException:
            if opened >= 0:
                os.close(opened)
            raise
        node = self._nodes.get(entry.node)
        self._nodes.hold(node)
        return entry, self._files.add(OpenFile(node, opened, flags))

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[Entry, int]:
        """Make and open a file without a name in *parent* (O_TMPFILE of open(2)); it may be linked later."""
        self._may_write()
        nodes = self._nodes
        above = nodes.get(parent)
        up = nodes.pin(above)
        try:
            with self._change([], INODE_COST, 1) as change:
                with self._identity.of(caller):
                    # without O_EXCL, which would forbid a link: the kernel of the mount has kept that in mind
                    how = flags & ~(DROPPED | os.O_TRUNC) | os.O_TMPFILE | os.O_CLOEXEC
                    fd = os.open(_libc.BY_FD % up, how, mode & 0o7777)
                try:
                    node = nodes.enter_nameless(fd)
                except BaseException:
                    os.close(fd)
                    raise
                if change is not None:
                    change.added(node.charged, node)
        finally:
            nodes.unpin(above)
        return Entry(node.number, node.generation, os.fstat(fd)), self._files.add(
            OpenFile(node, fd, flags & ~os.O_TMPFILE)
        )

    @abstractmethod
    def open(self, node: int, flags: int, *, kill: bool = False) -> int:
        """Open a regular file; returns its handle."""

    def link(self, node: int, newparent: int, newname: bytes) -> Entry:
        """Give *node* another name."""
        self._may_write()
        check(newname)
        nodes = self._nodes
        source, above = nodes.get(node), nodes.get(newparent)
        fd = nodes.pin(source)
        try:
            up = nodes.pin(above)
            try:
                with self._change([(above, up)], NAME_COST):
                    _libc.link(fd, up, newname)
                found, st = nodes.find(above, up, newname)
                nodes.linked(found)
            except OSError as e:
                _exists_first(e, up, newname)
                raise
            finally:
                nodes.unpin(above)
        finally:
            nodes.unpin(source)
        return Entry(found.number, found.generation, st)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove *name*, which is not a directory's."""
        self._remove(parent, name, os.unlink)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove the empty directory *name*."""
        self._remove(parent, name, os.rmdir)

    def _remove(self, parent: int, name: bytes, remove: Callable[..., None]) -> None:
        self._may_write()
        check(name)
        nodes = self._nodes
        above = nodes.get(parent)
        up = nodes.pin(above)
        try:
            with self._change([(above, up)]) as change:
                node, fd, st = nodes.take(above, up, name)
                try:
                    if change is not None:
                        change.unnames(node)
                    if st.st_nlink == 1:
                        nodes.losing(node, fd)
                    remove(name, dir_fd=up)
                    self._lost_name(node, fd, st, above, name)
                finally:
                    nodes.unpin(node)
        finally:
            nodes.unpin(above)
            self._collect()

    def rename(self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """renameat2(2) with any of its flags."""
        self._may_write()
        check(name)
        check(newname)
        if flags & ~(_libc.RENAME_NOREPLACE | _libc.RENAME_EXCHANGE | _libc.RENAME_WHITEOUT):
            raise failure(errno.EINVAL)
        nodes = self._nodes
        above, newabove = nodes.get(parent), nodes.get(newparent)
        up = nodes.pin(above)
        try:
            newup = nodes.pin(newabove)
            try:
                self._rename((above, up), name, (newabove, newup), newname, flags)
            finally:
                nodes.unpin(newabove)
        finally:
            nodes.unpin(above)
            self._collect()

    def _rename(self, source: _Directory, name: bytes, target: _Directory, newname: bytes, flags: int) -> None:
        left = 1 if flags & _libc.RENAME_WHITEOUT else 0  # a new inode in the old place
        try:
            with self._change([source, target], NAME_COST + left * INODE_COST, left) as change:
                if left and change is not None:
                    change.makes(*source, name, replaces=True)
                moved = self._move(source, name, target, newname, flags, change)
                if left and moved and change is not None:
                    change.added(os.stat(name, dir_fd=source[1], follow_symlinks=False).st_blocks * 512)
        except OSError as e:
            if e.errno != errno.ENOSPC or left or not _exists(target[1], newname):
                raise
            # what takes another one's place needs no room
            with self._change([source, target]) as change:
                if not _exists(target[1], newname):
                    raise
                self._move(source, name, target, newname, flags, change)

    def _move(
        self, source: _Directory, name: bytes, target: _Directory, newname: bytes, flags: int, change: Change | None
    ) -> bool:
        """Rename, and tell the table; whether anything was done. Both directories are locked, where there is an
        accounting."""
        nodes = self._nodes
        (above, up), (newabove, newup) = source, target
        moved, _fd, _st = nodes.take(above, up, name)
        over: tuple[Node, int, os.stat_result] | None = None
        try:
            with contextlib.suppress(FileNotFoundError):
                over = nodes.take(newabove, newup, newname)
            if over is not None and not flags & (_libc.RENAME_EXCHANGE | _libc.RENAME_NOREPLACE):
                if change is not None:
                    change.unnames(over[0])
                if over[2].st_nlink == 1:
                    nodes.losing(over[0], over[1])
            _libc.rename(up, name, newup, newname, flags)
            if over is not None and over[0] is moved:
                return False  # two names of one inode: rename(2) does nothing, and leaves no whiteout
            if flags & _libc.RENAME_EXCHANGE and over is not None:
                nodes.renamed(over[0], above, name)
            elif over is not None:
                self._lost_name(*over, newabove, newname)
            nodes.renamed(moved, newabove, newname)
        finally:
            if over is not None:
                nodes.unpin(over[0])
            nodes.unpin(moved)
        return True
