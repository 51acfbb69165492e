"""One served directory tree: a method per FUSE operation.

Synchronous and thread-safe. Names are bytes; nodes and file handles are numbers; failures are ``OSError`` with the
errno for the caller. Who may do what has been decided by the kernel of the mount (``default_permissions``). It says
with each write, truncation and open whether setuid and setgid bits must go (``kill``): the caller has no CAP_FSETID.
A transport that cannot pass that on leaves it to the kernel, which then sends a change of mode. File capabilities
(``security.capability``) go with every write and truncation by themselves, and all three with a change of owner: the
backing store does that for us as for anybody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

from fusevol.fs import _libc, backing
from fusevol.fs.attributes import Attributes
from fusevol.fs.files import Handles, Numbers, OpenDirectory, OpenFile
from fusevol.fs.identity import Identity
from fusevol.fs.memory import FileRecord, Memory
from fusevol.fs.names import DROPPED, failure
from fusevol.fs.node import Node
from fusevol.fs.nodes import Nodes
from fusevol.fs.recovery import settle_unfinished
from fusevol.fs.types import CACHE_EXCLUSIVE, CachePolicy, Quota, StatFs, Usage
from fusevol.fs.writing import Writer
from fusevol.usage import Measured, Meter

_BLOCK_MOST: Final = 1 << 20
"""Bytes of a directory that are read at once, whatever is asked for."""
_PUT_OFF_MOST: Final = 256
_PATIENCE: Final = 0.02
"""Seconds that an operation waits for space that is about to be freed."""


def _nothing() -> None:
    """For a filesystem that has no transport."""


class FsStats(NamedTuple):
    """What a filesystem holds now."""

    nodes: int
    open_files: int
    open_dirs: int
    descriptors: int
    """O_PATH descriptors of nodes; open files and directories have their own beside these."""


class FileSystem(Attributes):
    """The tree below the directory *source*.

    *quota* is asked before anything grows; *meter* knows the limits that the backing store keeps itself. *descriptors*
    bounds the O_PATH descriptors that cached inodes hold.
    """

    _accounts: Writer | None

    def __init__(
        self,
        source: str,
        *,
        cache: CachePolicy = CACHE_EXCLUSIVE,
        quota: Quota | None = None,
        meter: Meter | None = None,
        read_only: bool = False,
        devices: bool = False,
        descriptors: int = 8192,
        memory: Memory | None = None,
    ) -> None:
        """*memory* is what an earlier server of the same connection has left, or takes what a later one may need.

        Raises ``OSError``, and :class:`~fusevol.fs.recovery.CountersError` if *quota* can't be made right with it.
        """
        self.cache = cache
        self._nodes = Nodes(source, descriptors, memory)
        self._put_off: deque[tuple[int, int]] = deque()
        """Nodes that the kernel has forgotten, and how many lookups each."""
        self._freed = threading.Condition()
        self._short = 0
        """How many operations wait for space."""
        self.sweep: Callable[[], None] = _nothing
        """Set by a transport: see to it that others read what the kernel says while this thread waits for that."""
        self._identity = Identity()
        self._memory = memory if self._nodes.survives else None
        journal = self._memory.journal if self._memory is not None else None
        self._accounts = Writer(quota, self._nodes, self._reclaim, journal) if quota is not None else None
        numbers = Numbers()
        self._files: Handles[OpenFile] = Handles(numbers, self._memory)
        self._dirs: Handles[OpenDirectory] = Handles(numbers, self._memory)
        self.backings: list[tuple[int, int]] = []
        """Node and backing id of each file that was open when an earlier server ended, and that had one."""
        self.unfinished = 0
        """How many operations that are counted were in flight when an earlier server was killed."""
        if self._memory is not None:
            try:
                numbers.begin_after(self._restore(self._memory))
                if self._accounts is not None:
                    self.unfinished = settle_unfinished(self._nodes, self._accounts, self._memory.journal)
                self._nodes.leave_unused()
                if self._accounts is not None:
                    self._accounts.collect()
            except BaseException:
                self._close_files()
                self._nodes.close()
                raise
        self._meter = meter
        self._read_only = read_only
        self._devices = devices

    def __repr__(self) -> str:
        return f"<FileSystem {self.stats()} read_only={self._read_only}>"

    def _restore(self, memory: Memory) -> int:
        """Open again what was open; returns the highest handle that was ever given, as far as it is known."""
        highest = 0
        for record in memory.files():
            highest = max(highest, record.fh)
            try:
                node = self._nodes.get(record.node)
                path = self._nodes.pin(node)
            except OSError:
                memory.drop_file(record.where)  # its inode is gone
                continue
            try:
                self._open_again(node, path, record)
            except OSError:
                memory.drop_file(record.where)
            finally:
                self._nodes.unpin(node)
        return highest

    def _open_again(self, node: Node, path: int, record: FileRecord) -> None:
        if record.flags & os.O_DIRECTORY:
            fd = os.open(_libc.BY_FD % path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._nodes.hold(node)
            self._dirs.restore(record.fh, record.where, OpenDirectory(node, fd))
            return
        fd = os.open(_libc.BY_FD % path, record.flags & ~(DROPPED | os.O_TRUNC | os.O_TMPFILE) | os.O_CLOEXEC)
        self._nodes.hold(node)
        self._files.restore(record.fh, record.where, OpenFile(node, fd, record.flags))
        if record.backing:
            self.backings.append((node.number, record.backing))

    @property
    def survives(self) -> bool:
        """Whether another process can go on where this one is killed."""
        return self._memory is not None

    def set_backing(self, fh: int, backing: int) -> None:
        """The kernel reads and writes the open file itself, by the id *backing*."""
        if self._memory is not None:
            self._memory.set_backing(self._files.get(fh).where, backing)

    @property
    def backing_type(self) -> str:
        """The type of the backing filesystem as in mountinfo (proc(5)); empty if it is not found there (btrfs)."""
        return backing.kind(self._nodes.mount_fd)

    # -- files --------------------------------------------------------------------------------------------------------

    def open(self, node: int, flags: int, *, kill: bool = False) -> int:
        """Open a regular file; returns its handle. Special files are the kernel's business and never come here.

        *kill*: with O_TRUNC the setuid and setgid bits are cleared (FUSE_OPEN_KILL_SUIDGID).
        """
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._may_write()
        nodes = self._nodes
        found = nodes.get(node)
        path = nodes.pin(found)
        try:
            mode = os.fstat(path).st_mode
            if not stat.S_ISREG(mode):
                raise failure(
                    errno.EISDIR if stat.S_ISDIR(mode) else errno.ELOOP if stat.S_ISLNK(mode) else errno.ENXIO
                )
            fd = os.open(_libc.BY_FD % path, flags & ~(DROPPED | os.O_TRUNC) | os.O_CLOEXEC)
            try:
                if flags & os.O_TRUNC:
                    self._truncate(found, path, None, 0)
                    if kill:
                        self._clear_privileges(found, path)
            except BaseException:
                os.close(fd)
                raise
            nodes.hold(found)
        finally:
            nodes.unpin(found)
        return self._files.add(OpenFile(found, fd, flags))

    def read(self, fh: int, size: int, offset: int) -> bytes:
        """Up to *size* bytes from *offset*."""
        return os.pread(self._files.get(fh).fd, size, offset)

    def write(self, fh: int, offset: int, data: bytes | memoryview, *, kill: bool = False) -> int:
        """Write *data* at *offset*; returns how much of it, which is less than all where only that fits the quota.

        *kill*: setuid and setgid bits are cleared (FUSE_WRITE_KILL_SUIDGID).
        """
        file = self._files.get(fh)
        if self._read_only:
            raise failure(errno.EROFS)
        if kill:
            self._clear_privileges(file.node, file.fd)
        if self._accounts is None:
            return os.pwrite(file.fd, data, offset)
        return self._accounts.write(file.node, file.fd, offset, data)

    def flush(self, fh: int) -> None:
        """A descriptor of the file is closed. Errors of delayed writes are told by the backing close."""
        os.close(os.dup(self._files.get(fh).fd))

    def release(self, fh: int) -> None:
        """The last descriptor of an open file is closed."""
        file = self._files.pop(fh)
        try:
            if self._accounts is not None and file.writable:
                self._accounts.measure(file.node, file.fd)
        finally:
            os.close(file.fd)
            self._nodes.let_go(file.node)
            if self._accounts is not None:
                self._accounts.collect()
                if self._short:
                    self._tell()

    def fsync(self, fh: int, datasync: bool) -> None:
        """Write a file to its disk."""
        file = self._files.get(fh)
        if datasync:
            os.fdatasync(file.fd)
        else:
            os.fsync(file.fd)
        if self._accounts is not None:
            self._accounts.measure(file.node, file.fd)

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) with any mode that the backing store has."""
        self._may_write()
        file = self._files.get(fh)
        if self._accounts is None:
            _libc.fallocate(file.fd, mode, offset, length)
        else:
            self._accounts.allocate(file.node, file.fd, mode, offset, length)

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """Where data or a hole begins: *whence* is SEEK_DATA or SEEK_HOLE."""
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise failure(errno.EINVAL)
        return os.lseek(self._files.get(fh).fd, offset, whence)

    def copy_file_range(self, fh: int, offset: int, newfh: int, newoffset: int, size: int) -> int:
        """copy_file_range(2); returns how much was copied. With a quota by reading and writing, which is charged."""
        self._may_write()
        source, target = self._files.get(fh), self._files.get(newfh)
        if self._accounts is None:
            return os.copy_file_range(source.fd, target.fd, size, offset, newoffset)
        data = os.pread(source.fd, min(size, 1 << 20), offset)
        return self._accounts.write(target.node, target.fd, newoffset, data)

    def descriptor(self, fh: int) -> int:
        """The descriptor of the backing file, valid until :meth:`release`; a kernel may read and write it itself."""
        return self._files.get(fh).fd

    # -- directories --------------------------------------------------------------------------------------------------

    def opendir(self, node: int) -> int:
        """Open a directory; returns its handle."""
        nodes = self._nodes
        found = nodes.get(node)
        path = nodes.pin(found)
        try:
            fd = os.open(_libc.BY_FD % path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            nodes.hold(found)
        finally:
            nodes.unpin(found)
        return self._dirs.add(OpenDirectory(found, fd))

    def readdir(self, fh: int, offset: int, size: int) -> bytes:
        """A block of names after *offset*, ``.`` and ``..`` included, of up to *size* bytes; empty at the end. See
        :mod:`fusevol.fs.listing`.

        Offsets are the backing store's, so that they mean the same to a later server. Raises ``OSError(EINVAL)`` when
        not even one name fits.
        """
        return _libc.getdents(self._dirs.get(fh).fd, offset, min(size, _BLOCK_MOST))

    def releasedir(self, fh: int) -> None:
        """Close a directory."""
        directory = self._dirs.pop(fh)
        os.close(directory.fd)
        self._nodes.let_go(directory.node)
        if self._accounts is not None:
            self._accounts.collect()

    def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Write a directory to its disk."""
        fd = self._dirs.get(fh).fd
        if datasync:
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    # -- what can wait ------------------------------------------------------------------------------------------------

    def forget_later(self, node: int, count: int) -> None:
        """As :meth:`forget`, in :meth:`tidy`: closing the last descriptor of an inode that was removed frees its space
        on the disk, and nobody is waiting for that. If much has been put off it is done now."""
        self._put_off.append((node, count))
        if len(self._put_off) > _PUT_OFF_MOST:
            self.tidy(_PUT_OFF_MOST)
        if self._short:
            self._tell()

    @property
    def untidy(self) -> bool:
        """Whether there is something for :meth:`tidy`."""
        return bool(self._put_off)

    def tidy(self, most: int) -> bool:
        """Do up to *most* things that were put off; whether there was any. For when no request is waiting."""
        put_off = self._put_off
        if not put_off:
            return False
        forgotten: list[tuple[int, int]] = []
        with contextlib.suppress(IndexError):  # another thread is at it too
            while len(forgotten) < most:
                forgotten.append(put_off.popleft())
        self.forget_all(forgotten)
        return True

    def tidy_up(self) -> None:
        """Do all that was put off."""
        while self.tidy(_PUT_OFF_MOST):
            pass

    def _tell(self) -> None:
        with self._freed:
            self._freed.notify_all()

    def _reclaim(self, *, opened: bool = True) -> None:
        """Have what was removed freed, so that its space can be used: an operation is short of it.

        The kernel tells by and by that it has closed (*opened*) and forgotten what has no name any longer; other
        filesystems free it at once, and so a program may rely on the space. Some inodes may stay: they are waited for
        a little only.
        """
        self.tidy_up()
        if not self._nodes.expecting(opened=opened):
            return
        with self._freed:
            self._short += 1
        try:
            self.sweep()
            end = monotonic() + _PATIENCE
            while True:
                with self._freed:
                    if not self._put_off and self._nodes.expecting(opened=opened):
                        left = end - monotonic()
                        if left <= 0 or not self._freed.wait(left):
                            break
                self.tidy_up()
                if not self._nodes.expecting(opened=opened):
                    break
        finally:
            with self._freed:
                self._short -= 1

    # -- the whole ----------------------------------------------------------------------------------------------------

    def statfs(self, node: int) -> StatFs:  # noqa: ARG002  # all of it is one volume
        """Sizes as the quota shows them: the limit, what is used, the smaller of what is left here and in the pool."""
        v = os.fstatvfs(self._nodes.mount_fd)
        # of inodes, btrfs has no count and says 0, CephFS has no limit and says -1 are free
        inodes = (v.f_files, v.f_ffree, v.f_favail) if v.f_ffree >= 0 else (0, 0, 0)
        found = StatFs(v.f_bsize, v.f_frsize, v.f_blocks, v.f_bfree, v.f_bavail, *inodes, v.f_namemax)
        if self._accounts is not None:
            self._reclaim(opened=False)
            return _within(found, self._accounts.quota.usage())  # not settled first: df must be quick
        if self._meter is not None:
            with contextlib.suppress(OSError):  # its quotas were switched off: what is there is the pool's
                return _within(found, self._meter.usage())
        return found

    def set_read_only(self, value: bool) -> None:
        """Refuse changes from now on with EROFS, or allow them."""
        self._read_only = value

    def settle(self) -> None:
        """Make the quota exact for blocks that the backing store moved by itself."""
        self.tidy_up()
        if self._accounts is not None:
            self._accounts.settle()

    def drain(self) -> None:
        """Write everything to the disk of the backing store, and settle the accounts for good."""
        self.tidy_up()
        if self._accounts is not None:
            self._accounts.drain()
        else:
            _libc.syncfs(self._nodes.mount_fd)

    def usage(self) -> Usage | None:
        """What is used, settled; ``None`` without a quota."""
        self.tidy_up()
        return self._accounts.usage() if self._accounts is not None else None

    def path_of(self, node: int, name: bytes = b"") -> str | None:
        """Where *node*, or *name* in it, is in the volume; ``None`` where that is not known.

        For reports of operations that hang: waits neither for the backing store nor for a lock.
        """
        path = self._nodes.path(node)
        if path is None or not name:
            return path
        return os.path.join(path, os.fsdecode(name)) if path != "." else os.fsdecode(name)

    def node_of(self, fh: int) -> int:
        """The number of the node of an open file; 0 if it is not open. Waits for nothing, as :meth:`path_of`."""
        try:
            return self._files.get(fh).node.number
        except OSError:
            return 0

    def known(self) -> list[int]:
        """The nodes that the kernel knows, but the root."""
        return self._nodes.numbers()

    def stats(self) -> FsStats:
        """Counts of what is held."""
        return FsStats(len(self._nodes), len(self._files), len(self._dirs), self._nodes.descriptors())

    def _close_files(self) -> None:
        for file in self._files.values():
            os.close(file.fd)
        for directory in self._dirs.values():
            os.close(directory.fd)

    def close(self) -> None:
        """Give back everything; the accounts are settled before. Nothing may be called afterwards."""
        self._put_off.clear()
        self._close_files()
        self._nodes.end()
        if self._accounts is not None:
            self._accounts.collect()
            self._accounts.drain()
        self._nodes.close()


def _within(pool: StatFs, usage: Usage | Measured) -> StatFs:
    """What a volume shows that may take a part of *pool*."""
    found = pool
    if usage.limit_bytes is not None:
        unit = 4096 if usage.limit_bytes % 4096 == 0 else 512
        blocks = usage.limit_bytes // unit
        left = max(0, blocks - -(-usage.used_bytes // unit))
        available = min(left, pool.bavail * pool.frsize // unit)
        found = found._replace(bsize=4096, frsize=unit, blocks=blocks, bfree=left, bavail=available)
    if usage.limit_inodes is not None and usage.used_inodes is not None:
        left = max(0, usage.limit_inodes - usage.used_inodes)
        # btrfs has no count of inodes and says 0
        available = min(left, pool.favail) if pool.files else left
        found = found._replace(files=usage.limit_inodes, ffree=left, favail=available)
    return found
