"""Keeps a quota exact: what an operation allocates is reserved before it and settled by measurement after it.

*Measured, not computed.* An inode's charge is 512 times its ``st_blocks``, read after each operation under the inode's
lock: what du(1) counts, whatever the backing store does inside. A node begins with what it has when it becomes known,
since that has been counted: by a scan, or by the operation that made it. Before an operation the most that it can
allocate is reserved, so that used plus reserved is never over the limit with any number of writers.

*Blocks that move by themselves.* ``st_blocks`` can change when no operation is under way:

* XFS allocates beyond the end of a file that grows by writes, up to gigabytes, and gives it back later; btrfs
  decides at write-back whether a small file lives inside its inode. There, exactly the blocks of a write are allocated
  by fallocate(FALLOC_FL_KEEP_SIZE) before it, which prevents both.
* ext4 counts delayed allocations at once, but a file in more than four pieces gets a block for its map at write-back.
  Allocating first would cost each write a journal transaction. So a file that was written to *holds* a reservation for
  such a block, and is *moving*: known, even when the kernel forgets it, until it was measured after a sync.
* tmpfs does neither.
* btrfs counts a block twice while it is being copied: the last one of a file that is truncated or grows from the middle
  of a block. For growth that is held for; truncation must work in a full volume, so that on btrfs alone the count (like
  du's) may stand above the limit, by a block for each file that was cut in the middle of one, until write-back.

*In tight quarters*, when a reservation fails, the backing filesystem is synced, all holds are given back, and until
there is room again every write allocates first. It is shortened to what fits: blocks that are allocated already (FIEMAP
sees preallocated ones too) need no room, so that a full volume can be overwritten in place. If the file's map may need
a block more and there is no room for it, a write into a hole stops a block earlier, and an append is synced at once
and cut back if the block was needed. So a file that is appended to can be filled to exactly the limit, unless its map
takes the last block.

Adding a name reserves the most that a directory can grow by: a volume within six blocks of its limit can be filled by
writes to the last block, but may refuse new names.

An unlinked inode is charged until the kernel has forgotten it and no file of it is open; only then its space is free.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from fusevol.fs import _libc, backing
from fusevol.fs.nodes import Node, Nodes
from fusevol.fs.types import Quota, Usage

NAME_COST: Final = 4
"""Blocks by which a directory may grow for one more name: a leaf, two levels of index, a block map (ext4, XFS)."""
INODE_COST: Final = 2
"""Blocks that a new inode may take at once: a directory's first or a symbolic link's, and inherited ACLs."""
_LINGERING: Final = 16384
_ROOM: Final = 1 << 20
"""Bytes left from which writes need not allocate first any longer."""
_PIECES: Final = 256
"""Extents for which a file's map takes a block, at least (340 on ext4, 250 on XFS)."""


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _begin(node: Node, fd: int) -> None:
    """Find out what has been counted of a node that an earlier server knew: what its inode has now."""
    node.charged = os.fstat(fd).st_blocks * 512


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
        accounts.reserve(self._bytes, self._inodes)
        unique = {node.number: (node, fd) for node, fd in self._parts}
        self._parts = [unique[number] for number in sorted(unique)]
        for node, fd in self._parts:
            lock = node.lock or accounts.lock_of(node)
            lock.acquire()
            self._locks.append(lock)
            if node.charged < 0:
                _begin(node, fd)
        return self

    def added(self, nbytes: int) -> None:
        """An inode was made by this operation, which took *nbytes* at first."""
        self._new_bytes += nbytes
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

    def __init__(self, quota: Quota, nodes: Nodes, reclaim: Callable[[], None]) -> None:
        """*reclaim* is called without locks when space is short: it gives back what can be given back at once."""
        self.quota = quota
        self._reclaim = reclaim
        self._nodes = nodes
        nodes.gone = []
        self._making = threading.Lock()
        self._moving: dict[Node, None] = {}
        self._moving_lock = threading.Lock()
        self.block = max(os.fstatvfs(nodes.mount_fd).f_bsize, 4096)
        self._kind = backing.kind(nodes.mount_fd)
        self._delays = self._kind in {"ext4", "tmpfs"}
        """Whether a write may be left to the backing store's own allocation where there is room."""
        self._moves = self._kind != "tmpfs"
        self._held = 0
        self._tight = False
        self._tightening = threading.Lock()

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

    def reserve(self, nbytes: int, inodes: int) -> None:
        """Set aside, if need be after giving back all holds. Called without locks. Raises ``OSError(ENOSPC)``."""
        try:
            self.quota.reserve(nbytes, inodes)
        except OSError:
            self._reclaim()
            if self._held:
                self._tighten()
            self.quota.reserve(nbytes, inodes)

    def _tighten(self) -> None:
        with self._tightening:
            self._tight = True
            if self._held:
                self.drain()

    def _roomy(self) -> bool:
        usage = self.quota.usage()
        return usage.limit_bytes is None or usage.limit_bytes - usage.used_bytes > _ROOM + usage.limit_bytes // 64

    def _hold(self, node: Node, nbytes: int) -> None:
        """Count what *node* holds from now on, or for a negative number no longer."""
        if nbytes:
            with self._moving_lock:
                node.hold += nbytes
                self._held += nbytes

    def collect(self) -> None:
        """Give back what nodes used that are gone for good."""
        gone = self._nodes.gone
        while gone:
            try:
                node = gone.pop()
            except IndexError:
                return
            if node.moving:
                with self._moving_lock:
                    self._moving.pop(node, None)
            self.quota.settle(node.hold, 0, -node.charged, -1)
            self._hold(node, -node.hold)
            self._nodes.settled(node)

    # -- data ---------------------------------------------------------------------------------------------------------

    def write(self, node: Node, fd: int, offset: int, data: bytes | memoryview) -> int:
        """pwrite(2) of as much of *data* as the limit allows. Raises ``OSError(ENOSPC)`` if that is nothing."""
        size = len(data)
        if not size:
            return 0
        block = self.block
        end = offset + size
        lock = node.lock or self.lock_of(node)
        if self._tight and self._roomy():
            self._tight = False
        with lock:
            if node.charged < 0:
                _begin(node, fd)
            if self._is_allocated(node, fd, offset, end):
                return os.pwrite(fd, data, offset)
            if not self._tight:
                wanted = end + -end % block - (offset - offset % block)
                hold = 0
                if self._moves:
                    hold = max(0, block + (node.charged + wanted) // block // _PIECES * block - node.hold)
                if not self._delays:
                    wanted += block  # the map's
                granted = self.quota.reserve_upto(wanted + hold, block)
                if granted == wanted + hold:
                    return self._write_reserved(node, fd, offset, data, granted, hold, allocate=not self._delays)
                self.quota.settle(granted, 0, 0, 0)
        self._reclaim()
        if not self._tight:
            self._tighten()
        with lock:
            written = self._write_tight(node, fd, offset, data, final=not self._held)
        if written is None:
            self._tighten()
            with lock:
                written = self._write_tight(node, fd, offset, data, final=True)
        return written or 0

    def _is_allocated(self, node: Node, fd: int, offset: int, end: int) -> bool:
        """Whether every block from *offset* to *end* is there already; ``False`` if that is not quickly known.

        Not by SEEK_HOLE, which looks as far as the next hole: in a file of 20 MB that took 34 us on XFS and tmpfs.
        """
        if self._kind == "tmpfs":
            size = os.fstat(fd).st_size
            return end <= size and node.charged >= size + -size % self.block
        if self._kind not in {"ext4", "xfs"}:
            return False  # btrfs looks for other users of each extent first
        try:
            return not backing.unmapped(fd, offset, end, 4)
        except OSError:
            return False

    def _write_reserved(
        self, node: Node, fd: int, offset: int, data: bytes | memoryview, reserved: int, hold: int, *, allocate: bool
    ) -> int:
        """Write, and settle *reserved*, of which up to *hold* is kept for blocks that come later."""
        try:
            if allocate:
                self._allocate(fd, offset, len(data))
            return os.pwrite(fd, data, offset)
        finally:
            self._account(node, fd, reserved, hold)

    def _account(self, node: Node, fd: int, reserved: int, hold: int) -> None:
        """Settle *reserved* with what *node* takes now, and keep up to *hold* of it."""
        now = os.fstat(fd).st_blocks * 512
        spent = now - node.charged
        # what came that was held for is held no longer
        hold = max(-node.hold, min(hold, reserved - spent))
        self._hold(node, hold)
        self.quota.settle(reserved - hold, 0, spent, 0)
        node.charged = now
        self.moves(node)

    def _write_tight(self, node: Node, fd: int, offset: int, data: bytes | memoryview, *, final: bool) -> int | None:
        """Write what fits. ``None`` if that is not all, and more may fit when holds are given back; not if *final*."""
        block = self.block
        end = offset + len(data)
        holes = backing.holes(fd, offset - offset % block, end + -end % block, block)
        need = sum(stop - start for start, stop in holes)
        spare = block if node.hold < block and self._map_may_grow(fd, len(holes)) else 0
        granted = self.quota.reserve_upto(need + spare, block)
        if granted < need + spare:
            if not final:
                self.quota.settle(granted, 0, 0, 0)
                return None
            joins = self._joins(fd, offset, holes)
            if joins or not need:
                spare = 0
            end = self._fitting(holes, offset, end, granted - spare)
            if end <= offset:
                self.quota.settle(granted, 0, 0, 0)
                raise _no_space()
            data = data[: end - offset]
            if joins and self._map_may_grow(fd, len(holes), splits=0):
                return self._write_last(node, fd, offset, data, granted)
        return self._write_reserved(node, fd, offset, data, granted, spare, allocate=need > 0)

    def _write_last(self, node: Node, fd: int, offset: int, data: bytes | memoryview, reserved: int) -> int:
        """Append, and cut off what was appended last if the file's map took a block for which there is no room."""
        block = self.block
        before = kept = os.fstat(fd).st_size
        try:
            self._allocate(fd, offset, len(data))
            kept = offset + os.pwrite(fd, data, offset)
            os.fdatasync(fd)
            if os.fstat(fd).st_blocks * 512 - node.charged > reserved + node.hold:
                kept = max(before, (kept - 1) // block * block)
                os.ftruncate(fd, kept)
        finally:
            self._account(node, fd, reserved, 0)
        if kept <= offset:
            raise _no_space()
        return kept - offset

    def _joins(self, fd: int, offset: int, holes: list[tuple[int, int]]) -> bool:
        """Whether what is written only lengthens the last piece of the file."""
        size = os.fstat(fd).st_size
        return len(holes) == 1 and size <= offset <= size + -size % self.block

    def _map_may_grow(self, fd: int, more: int, *, splits: int = 2) -> bool:
        """Whether *more* pieces of the file may take a block of its own for the map, now or at write-back.

        Write-back splits a preallocated piece into up to three, one after the other.
        """
        if self._kind == "tmpfs":
            return False
        if self._kind not in {"ext4", "xfs"}:
            return splits > 0  # btrfs counts a block that is copied twice, until write-back
        pieces = backing.pieces(fd)
        most = pieces + more + splits
        if self._kind == "ext4":  # four pieces are in the inode
            return pieces <= 4 < most or most % 340 < more + 6
        return most > 9 and (pieces <= 24 or most % 125 < more + 6)  # about 21 pieces, 9 beside extended attributes

    @staticmethod
    def _fitting(holes: list[tuple[int, int]], offset: int, end: int, room: int) -> int:
        """Where a write from *offset* to *end* must stop to allocate *room* bytes of *holes* at most."""
        for start, stop in holes:
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
        if not mode & _libc.FALLOC_FL_PUNCH_HOLE:
            with contextlib.suppress(OSError):  # what is left is seen below
                self.reserve(offset % block + length + 2 * block, 0)
                self.quota.settle(offset % block + length + 2 * block, 0, 0, 0)
        nbytes = 0 if mode & _libc.FALLOC_FL_PUNCH_HOLE else offset % block + length + 2 * block
        with node.lock or self.lock_of(node):
            if node.charged < 0:
                _begin(node, fd)
            try:
                self.quota.reserve(nbytes, 0)
            except OSError:
                end = offset + length
                holes = backing.holes(fd, offset - offset % block, end + -end % block, block)
                nbytes = sum(stop - start for start, stop in holes)
                self.quota.reserve(nbytes, 0)
            try:
                _libc.fallocate(fd, mode, offset, length)
            finally:
                now = os.fstat(fd).st_blocks * 512
                self.quota.settle(nbytes, 0, now - node.charged, 0)
                node.charged = now
            self.moves(node)

    # -- what moves by itself -----------------------------------------------------------------------------------------

    def moves(self, node: Node) -> None:
        """The blocks of *node*, whose lock is held, may change by themselves until the next sync."""
        if self._moves and not node.moving:
            node.moving = True
            with self._moving_lock:
                self._moving[node] = None

    def measure(self, node: Node, fd: int, *, synced: bool = False) -> None:
        """Account for what *node* uses now. *synced*: it needs no hold any longer."""
        with node.lock or self.lock_of(node):
            now = os.fstat(fd).st_blocks * 512
            if node.charged < 0:
                _begin(node, fd)
            if now != node.charged or (synced and node.hold):
                hold = node.hold if synced and not node.moving else max(0, min(node.hold, now - node.charged))
                self._hold(node, -hold)
                self.quota.settle(hold, 0, now - node.charged, 0)
                node.charged = now

    def settle(self) -> None:
        """Measure all inodes whose blocks may have moved."""
        with self._moving_lock:
            nodes = list(self._moving)
        for node in nodes:
            self._look(node)
        self.collect()

    def _look(self, node: Node, *, synced: bool = False) -> None:
        try:
            fd = self._nodes.pin(node)
        except OSError:
            return  # gone
        try:
            self.measure(node, fd, synced=synced)
        finally:
            self._nodes.unpin(node)

    def crowded(self) -> bool:
        """Whether so many inodes are moving that it is time to sync and settle."""
        return len(self._moving) > _LINGERING

    def drain(self) -> None:
        """Sync the backing filesystem and settle for good."""
        with self._moving_lock:
            nodes = list(self._moving)
            self._moving.clear()
            for node in nodes:
                self._nodes.hold(node)
                node.moving = False  # before the sync: what is written from now on makes it moving again
        try:
            _libc.syncfs(self._nodes.mount_fd)
        finally:
            for node in nodes:
                self._look(node, synced=True)
                self._nodes.let_go(node)
        self.collect()

    def usage(self) -> Usage:
        """The counters, settled."""
        self.settle()
        return self.quota.usage()
