"""Operations on names: looking up, making, linking, renaming, removing."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Final

from fusevol.fs import _libc
from fusevol.fs.accounting import INODE_COST, NAME_COST, Accounts
from fusevol.fs.files import Handles, OpenFile
from fusevol.fs.identity import Identity
from fusevol.fs.nodes import Node, Nodes
from fusevol.fs.types import Caller, Entry

_NAME_MAX: Final = 255
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
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise failure(errno.EINVAL)


def _is_whiteout(mode: int, rdev: int) -> bool:
    return stat.S_ISCHR(mode) and rdev == 0


class _Raced(Exception):  # noqa: N818  # not an error: the operation begins anew
    """A name was found to lead elsewhere once its directory was locked."""


def _require(up: int, name: bytes, node: Node | None) -> None:
    """Raise :class:`_Raced` unless *name* is *node*'s, or nobody's for ``None``. The directory is locked."""
    try:
        st = os.stat(name, dir_fd=up, follow_symlinks=False)
    except FileNotFoundError:
        if node is None:
            return
    else:
        if node is not None and node.key == (st.st_dev, st.st_ino):
            return
    raise _Raced


def _exists_first(error: OSError, up: int, name: bytes) -> None:
    """Raise EEXIST in place of an *error* of ENOSPC where *name* exists: it comes first on other filesystems too."""
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=up, follow_symlinks=False)
            raise failure(errno.EEXIST) from error


class Names(ABC):
    """The part of a filesystem that deals with names. See :class:`fusevol.fs.FileSystem`."""

    _nodes: Nodes
    _files: Handles[OpenFile]
    _accounts: Accounts | None
    _identity: Identity
    _read_only: bool
    _devices: bool

    def _may_write(self) -> None:
        if self._read_only:
            raise failure(errno.EROFS)

    def _let_go(self, victim: Node) -> None:
        """The end of :meth:`fusevol.fs.nodes.Nodes.take`."""
        self._nodes.unpin(victim)
        if self._accounts is not None:
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
        nodes, accounts = self._nodes, self._accounts
        above = nodes.get(parent)
        fd = nodes.pin(above)
        try:
            if accounts is None:
                with self._identity.of(caller):
                    make(fd)
                node, st = nodes.find(above, fd, name)
            else:
                with accounts.change([(above, fd)], NAME_COST + INODE_COST, 1) as change:
                    with self._identity.of(caller):
                        make(fd)
                    node, st = nodes.find(above, fd, name)
                    change.added(st.st_blocks * 512)
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
        nodes, accounts = self._nodes, self._accounts
        above = nodes.get(parent)
        up = nodes.pin(above)
        try:
            with accounts.change([], INODE_COST, 1) if accounts is not None else contextlib.nullcontext() as change:
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
                    change.added(node.charged)
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
        nodes, accounts = self._nodes, self._accounts
        source, above = nodes.get(node), nodes.get(newparent)
        fd = nodes.pin(source)
        try:
            up = nodes.pin(above)
            try:
                if accounts is None:
                    _libc.link(fd, up, newname)
                else:
                    with accounts.change([(above, up)], NAME_COST):
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
            while not self._removed(above, up, name, remove):
                pass
        finally:
            nodes.unpin(above)

    def _removed(self, above: Node, up: int, name: bytes, remove: Callable[..., None]) -> bool:
        """Remove *name*; ``False`` if another thread changed it meanwhile."""
        node, fd, st = self._nodes.take(above, up, name)
        try:
            if st.st_nlink == 1:
                self._nodes.losing(node, fd)
            if self._accounts is None:
                remove(name, dir_fd=up)
            else:
                with self._accounts.change([(above, up), (node, fd)]):
                    _require(up, name, node)
                    remove(name, dir_fd=up)
            self._lost_name(node, fd, st, above, name)
        except _Raced:
            return False
        finally:
            self._let_go(node)
        return True

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
                while not self._renamed(above, up, name, newabove, newup, newname, flags):
                    pass
            finally:
                nodes.unpin(newabove)
        finally:
            nodes.unpin(above)

    def _renamed(
        self, above: Node, up: int, name: bytes, newabove: Node, newup: int, newname: bytes, flags: int
    ) -> bool:
        """Rename; ``False`` if another thread changed a name meanwhile."""
        moved, _fd, _st = self._nodes.take(above, up, name)
        over: tuple[Node, int, os.stat_result] | None = None
        try:
            with contextlib.suppress(FileNotFoundError):
                over = self._nodes.take(newabove, newup, newname)
            parts = [(above, up), (newabove, newup)]
            if over is not None:
                parts.append((over[0], over[1]))
                if over[2].st_nlink == 1 and not flags:
                    self._nodes.losing(over[0], over[1])
            if self._accounts is None:
                _libc.rename(up, name, newup, newname, flags)
            else:
                left = 1 if flags & _libc.RENAME_WHITEOUT else 0  # a new inode in the old place
                cost = (0 if over else NAME_COST) + left * INODE_COST
                with self._accounts.change(parts, cost, left) as change:
                    _require(newup, newname, over[0] if over else None)
                    _libc.rename(up, name, newup, newname, flags)
                    if left:
                        change.added(os.stat(name, dir_fd=up, follow_symlinks=False).st_blocks * 512)
            if over is not None and over[0] is moved:
                return True  # two names of one inode: rename(2) does nothing
            if flags & _libc.RENAME_EXCHANGE and over is not None:
                self._nodes.renamed(over[0], above, name)
            elif over is not None:
                self._lost_name(*over, newabove, newname)
            self._nodes.renamed(moved, newabove, newname)
        except _Raced:
            return False
        finally:
            if over is not None:
                self._let_go(over[0])
            self._let_go(moved)
        return True
