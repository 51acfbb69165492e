"""Keeps a quota exact: what an operation allocates is reserved before it and settled by measurement after it.

*Measured, not computed.* An inode's charge is 512 times its ``st_blocks``, read before and after each operation under
the inode's lock: what du(1) counts, whatever the backing store does inside. Before the operation the most that it can
allocate is reserved, so that used plus reserved is never over the limit with any number of writers.

*Blocks that move by themselves.* ``st_blocks`` can change when no operation is under way:

* XFS allocates beyond the end of a file that grows by writes, up to gigabytes, and gives it back later; btrfs
  decides at write-back whether a small file lives inside its inode. There, exactly the blocks of a write are allocated
  by fallocate(FALLOC_FL_KEEP_SIZE) before it, which prevents both.
* ext4 counts delayed allocations at once, but a file in more than four pieces gets a block for its map at
  write-back; so can XFS. Inodes that were written to are *moving*: they are kept, even when the kernel forgets them,
  until they were measured after a sync. :meth:`Accounts.settle` measures them; release, fsync and drain do it.

*In tight quarters* a write is shortened to what fits. Blocks that are allocated already (found by
SEEK_HOLE, or FIEMAP, which sees preallocated ones) need no room, so that a full volume can be overwritten in place.
Adding a name reserves the most that a directory can grow by: a volume within six blocks of its limit can be filled by
writes to the last byte, but may refuse new names.

An unlinked inode is charged until the kernel has forgotten it and no file of it is open; only then its space is free.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from types import TracebackType
from typing import Final, Self

from fusevol.fs import _libc
from fusevol.fs.nodes import Node, Nodes
from fusevol.fs.types import Quota, Usage

NAME_COST: Final = 4
"""Blocks by which a directory may grow for one more name: a leaf, two levels of index, a block map (ext4, XFS)."""
INODE_COST: Final = 2
"""Blocks that a new inode may take at once: a directory's first or a symbolic link's, and inherited ACLs."""
_LINGERING: Final = 4096
_FIEMAP: Final = 0xC020660B
_FIEMAP_LAST: Final = 1
_EXTENTS: Final = 64


def _allocates_exactly(fd: int) -> bool:
    """Whether a write on the filesystem of *fd* allocates what it covers and no more (ext4, tmpfs)."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.decode(errors="replace").split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1] in {"ext4", "tmpfs"}
    return False


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _holes(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """The parts of *start* to *end* that have no blocks, by FIEMAP; by SEEK_DATA where there is no FIEMAP."""
    holes: list[tuple[int, int]] = []
    at = start
    try:
        while at < end:
            buffer = bytearray(32 + 56 * _EXTENTS)
            struct.pack_into("=QQIIII", buffer, 0, at, end - at, 0, 0, _EXTENTS, 0)
            fcntl.ioctl(fd, _FIEMAP, buffer)
            (count,) = struct.unpack_from("=I", buffer, 20)
            last = count < _EXTENTS
            for i in range(count):
                logical, _physical, length = struct.unpack_from("=QQQ", buffer, 32 + 56 * i)
                (flags,) = struct.unpack_from("=I", buffer, 32 + 56 * i + 40)
                if logical > at:
                    holes.append((at, min(logical, end)))
                at = max(at, logical + length)
                last = last or bool(flags & _FIEMAP_LAST)
            if last:
                break
    except OSError:
        holes, at = [], start
        while at < end:
            hole = _seek(fd, at, os.SEEK_HOLE, end)
            if hole < end:
                data = _seek(fd, hole, os.SEEK_DATA, end)
                holes.append((hole, data))
                hole = data
            at = hole
        return holes
    if at < end:
        holes.append((at, end))
    return holes


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    try:
        return min(os.lseek(fd, offset, whence), end)
    except OSError as e:
        if e.errno != errno.ENXIO:
            raise
        return end if whence == os.SEEK_DATA else offset


class Change:
    """An operation in names or attributes, as a context: reserves, locks, and settles by what was measured.

    Made by :meth:`Accounts.change`; inside it, :meth:`added` tells of a new inode.
    """

    __slots__ = ("_accounts", "_bytes", "_inodes", "_locks", "_new_bytes", "_new_inodes", "_parts")

    def __init__(self, accounts: Accounts, parts: list[tuple[Node, int]], nbytes: int, inodes: int) -> None:
        self._accounts = accounts
        self._parts = parts
        self._bytes = nbytes
        self._inodes = inodes
        self._new_bytes = 0
        self._new_inodes = 0
        self._locks: list[threading.Lock] = []

    def __enter__(self) -> Self:
        accounts = self._accounts
        accounts.quota.reserve(self._bytes, self._inodes)
        unique = {node.number: (node, fd) for node, fd in self._parts}
        self._parts = [unique[number] for number in sorted(unique)]
        for node, _fd in self._parts:
            lock = node.lock or accounts.lock_of(node)
            lock.acquire()
            self._locks.append(lock)
        for node, fd in self._parts:
            if node.charged < 0:
                node.charged = os.fstat(fd).st_blocks * 512
        return self

    def added(self, node: Node, st: os.stat_result) -> None:
        """*node* was made by this operation."""
        node.charged = st.st_blocks * 512
        self._new_bytes += node.charged
        self._new_inodes += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            delta = self._new_bytes
            for node, fd in self._parts:
                now = os.fstat(fd).st_blocks * 512
                delta += now - node.charged
                node.charged = now
            self._accounts.quota.settle(self._bytes, self._inodes, delta, self._new_inodes)
        finally:
            for lock in reversed(self._locks):
                lock.release()


class Accounts:
    """The accounting of one filesystem. Thread-safe.

    Lock order: inode locks by ascending node number, then the table's lock or the quota's, never both.
    """

    def __init__(self, quota: Quota, nodes: Nodes) -> None:
        self.quota = quota
        self._nodes = nodes
        self._making = threading.Lock()
        self._moving: dict[Node, None] = {}
        self._moving_lock = threading.Lock()
        self.block = max(os.fstatvfs(nodes.mount_fd).f_bsize, 4096)
        self._exact = _allocates_exactly(nodes.mount_fd)

    def lock_of(self, node: Node) -> threading.Lock:
        """The lock of *node*'s charge."""
        with self._making:
            if node.lock is None:
                node.lock = threading.Lock()
            return node.lock

    def change(self, parts: list[tuple[Node, int]], blocks: int = 0, inodes: int = 0) -> Change:
        """A context for an operation on the nodes (and descriptors) of *parts* that takes up to *blocks* and *inodes*.

        Entering it raises ``OSError(ENOSPC)`` when there is no room.
        """
        return Change(self, parts, blocks * self.block, inodes)

    def collect(self) -> None:
        """Give back what nodes used that are gone for good."""
        gone = self._nodes.gone
        while gone:
            try:
                node = gone.pop()
            except IndexError:
                return
            if node.charged >= 0:
                self.quota.settle(0, 0, -node.charged, -1)

    # -- data ---------------------------------------------------------------------------------------------------------

    def write(self, node: Node, fd: int, offset: int, data: bytes) -> int:
        """pwrite(2) of as much of *data* as the limit allows. Raises ``OSError(ENOSPC)`` if that is nothing."""
        size = len(data)
        if not size:
            return 0
        end = offset + size
        with node.lock or self.lock_of(node):
            if node.charged < 0:
                node.charged = os.fstat(fd).st_blocks * 512
            if _seek(fd, offset, os.SEEK_HOLE, end) >= end and os.fstat(fd).st_size >= end:
                return os.pwrite(fd, data, offset)  # every block is there
            block = self.block
            first, last = offset - offset % block, end + -end % block
            wanted = last - first
            granted = self.quota.reserve_upto(wanted, block)
            spent = 0
            try:
                if granted < wanted:
                    end = self._fitting(fd, offset, end, granted)
                    if end <= offset:
                        raise _no_space()
                    data = data[: end - offset]
                if not self._exact:
                    self._allocate(fd, first, end + -end % block - first)
                written = os.pwrite(fd, data, offset)
            finally:
                now = os.fstat(fd).st_blocks * 512
                spent = now - node.charged
                node.charged = now
                self.quota.settle(granted, 0, spent, 0)
            self._move(node)
            return written

    def _fitting(self, fd: int, offset: int, end: int, room: int) -> int:
        """Where a write from *offset* to *end* must stop to allocate *room* bytes at most."""
        block = self.block
        for start, stop in _holes(fd, offset - offset % block, end + -end % block):
            if stop - start > room:
                return max(offset, min(end, start + room))
            room -= stop - start
        return end

    @staticmethod
    def _allocate(fd: int, offset: int, length: int) -> None:
        try:
            _libc.fallocate(fd, _libc.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as e:
            if e.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise

    def allocate(self, node: Node, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2), whole or not at all."""
        block = self.block
        nbytes = 0 if mode & _libc.FALLOC_FL_PUNCH_HOLE else offset % block + length + 2 * block
        with node.lock or self.lock_of(node):
            if node.charged < 0:
                node.charged = os.fstat(fd).st_blocks * 512
            try:
                self.quota.reserve(nbytes, 0)
            except OSError:
                nbytes = sum(
                    b - a for a, b in _holes(fd, offset - offset % block, offset + length + -(offset + length) % block)
                )
                self.quota.reserve(nbytes, 0)
            try:
                _libc.fallocate(fd, mode, offset, length)
            finally:
                now = os.fstat(fd).st_blocks * 512
                self.quota.settle(nbytes, 0, now - node.charged, 0)
                node.charged = now
            self._move(node)

    # -- what moves by itself -----------------------------------------------------------------------------------------

    def _move(self, node: Node) -> None:
        if not node.moving:
            node.moving = True
            with self._moving_lock:
                self._moving[node] = None

    def measure(self, node: Node, fd: int) -> None:
        """Account for what *node* uses now, if it is known what it used."""
        if node.charged < 0:
            return
        with node.lock or self.lock_of(node):
            now = os.fstat(fd).st_blocks * 512
            if now != node.charged:
                self.quota.settle(0, 0, now - node.charged, 0)
                node.charged = now

    def settle(self, *, synced: bool = False) -> None:
        """Measure all inodes whose blocks may have moved. *synced*: nothing of them can move after this."""
        with self._moving_lock:
            nodes = list(self._moving)
            if synced:
                self._moving.clear()
        for node in nodes:
            if synced:
                node.moving = False  # before measuring: a write from now on makes it moving again
            try:
                fd = self._nodes.pin(node)
            except OSError:
                continue  # gone
            try:
                self.measure(node, fd)
            finally:
                self._nodes.unpin(node)
        self.collect()

    def crowded(self) -> bool:
        """Whether so many inodes are moving that it is time to sync and settle."""
        return len(self._moving) > _LINGERING

    def drain(self) -> None:
        """Sync the backing filesystem and settle for good."""
        _libc.syncfs(self._nodes.mount_fd)
        self.settle(synced=True)

    def usage(self) -> Usage:
        """The counters, settled."""
        self.settle()
        return self.quota.usage()
