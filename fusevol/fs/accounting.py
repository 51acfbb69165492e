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
* CephFS has no blocks to tell of: ``st_blocks`` is the size of a file, holes included, in whole sectors. So a
  truncation that makes a file longer is charged like a write, and how much a write will add is known exactly.
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

*Killed at any moment.* With a journal, each operation that may change what is counted is written down before it, and
its result with the counters in one step, so that a later server knows the exact count (``fusevol.fs.recovery``).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from fusevol.fs import _libc, backing
from fusevol.fs.memory import GONE, Entry, Journal
from fusevol.fs.node import Node
from fusevol.fs.nodes import Nodes
from fusevol.fs.types import Quota, Usage

NAME_COST: Final = 4
"""Blocks by which a directory may grow for one more name: a leaf, two levels of index, a block map (ext4, XFS)."""
INODE_COST: Final = 2
"""Blocks that a new inode may take at once: a directory's first or a symbolic link's, and inherited ACLs."""
_LINGERING: Final = 16384
_ROOM: Final = 1 << 20
"""Bytes left from which writes need not allocate first any longer."""
_BY_SIZE: Final = frozenset({"ceph", "fuse.ceph-fuse"})
"""Kinds of filesystems whose ``st_blocks`` is the size: the kernel's client of CephFS, and ceph-fuse."""
_SECTOR: Final = 512
_PIECES: Final = 256
"""Extents for which a file's map takes a block, at least (340 on ext4, 250 on XFS)."""


class Change:
    """An operation in names or attributes, as a context: reserves, locks, and settles by what was measured.

    Made by :meth:`Accounts.change`; inside it, :meth:`added` tells of a new inode.
    """

    __slots__ = ("_accounts", "_bytes", "_entry", "_inodes", "_locked", "_new_bytes", "_new_inodes", "_parts")

    def __init__(self, accounts: Accounts, parts: list[tuple[Node, int]], nbytes: int, inodes: int) -> None:
        self._accounts = accounts
        self._parts = parts
        self._bytes = nbytes
        self._inodes = inodes
        self._new_bytes = 0
        self._new_inodes = 0
        self._locked = 0
        """How many of the nodes are locked."""
        self._entry: Entry | None = None

    def __enter__(self) -> Self:
        accounts, parts = self._accounts, self._parts
        if self._bytes or self._inodes:
            accounts.reserve(self._bytes, self._inodes)
        if len(parts) > 1:
            unique = {node.number: (node, fd) for node, fd in parts}
            parts = self._parts = [unique[number] for number in sorted(unique)]
        try:
            for node, fd in parts:
                (node.lock or accounts.lock_of(node)).acquire()
                self._locked += 1
                if node.charged < 0:
                    accounts.know(node, fd)
            if accounts.journal is not None:
                self._entry = accounts.journal.begin([node.where for node, _ in parts])
        except BaseException:
            accounts.quota.settle(self._bytes, self._inodes, 0, 0)
            self._unlock()
            raise
        return self

    def _unlock(self) -> None:
        for node, _fd in self._parts[: self._locked]:
            self._accounts.lock_of(node).release()

    def makes(self, parent: Node, fd: int, name: bytes, *, replaces: bool = False) -> None:
        """An inode will be made as *name* in *parent*, where nothing of that name is, or where it *replaces* one.

        Raises ``OSError(EEXIST)``.
        """
        if self._entry is None:
            return
        before = 0
        if replaces:
            before = os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino
        elif os.access(name, os.F_OK, dir_fd=fd, follow_symlinks=False):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._entry.makes(parent.where, name, before)

    def unnames(self, node: Node) -> None:
        """*node*, which need not be locked, loses a name, maybe the last one."""
        if self._entry is not None:
            self._entry.unnames(node.where)

    def added(self, nbytes: int, node: Node | None = None) -> None:
        """An inode was made by this operation, which took *nbytes* at first; *node* is its node if it has one."""
        self._new_bytes += nbytes
        self._new_inodes += 1
        if self._entry is not None and node is not None:
            self._entry.add(node.where, nbytes)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            entry = self._entry
            delta = self._new_bytes
            changed = self._new_inodes > 0
            for place, (node, fd) in enumerate(self._parts):
                now = os.fstat(fd).st_blocks * 512
                if now != node.charged:
                    changed = True
                    delta += now - node.charged
                    node.charged = now
                if entry is not None:
                    entry.charge(place, now)
            if entry is not None and not changed:
                entry.cancel()
                entry = None
            self._accounts.quota.settle(self._bytes, self._inodes, delta, self._new_inodes, entry)
        finally:
            self._unlock()


class Accounts:
    """The accounting of one filesystem. Thread-safe.

    Lock order: inode locks by ascending node number, then the table's lock or the quota's, never both.
    """

    def __init__(self, quota: Quota, nodes: Nodes, reclaim: Callable[[], None], journal: Journal | None = None) -> None:
        """*reclaim* is called without locks when space is short: it gives back what can be given back at once."""
        self.quota = quota
        self.journal = journal
        self._reclaim = reclaim
        self._nodes = nodes
        nodes.gone = []
        self._making = threading.Lock()
        self._moving: dict[Node, None] = {}
        self._moving_lock = threading.Lock()
        self._kind = backing.kind(nodes.mount_fd)
        self.by_size = self._kind in _BY_SIZE
        self.block = _SECTOR if self.by_size else max(os.fstatvfs(nodes.mount_fd).f_bsize, 4096)
        self._delays = self.by_size or self._kind in {"ext4", "tmpfs"}
        """Whether a write may be left to the backing store's own allocation where there is room."""
        self._moves = not self.by_size and self._kind != "tmpfs"
        self._held = 0
        self._tight = False
        self._tightening = threading.Lock()

    def lock_of(self, node: Node) -> threading.Lock:
        """The lock of *node*'s charge, which is the same one for ever."""
        if node.lock is not None:
            return node.lock
        with self._making:
            if node.lock is None:
                node.lock = threading.Lock()
            return node.lock

    def know(self, node: Node, fd: int) -> None:
        """Find out what has been counted of *node*, whose lock is held: what its inode has now."""
        node.charged = os.fstat(fd).st_blocks * 512
        if self.journal is not None:
            self.journal.know(node.where, node.charged)

    def count(self, node: Node, fd: int) -> None:
        """Count the inode of *node*, which has not been counted."""
        entry = self._begin(node)
        node.charged = os.fstat(fd).st_blocks * 512
        if entry is not None:
            entry.charge(0, node.charged)
        self.quota.settle(0, 0, node.charged, 1, entry)

    def resume(self) -> None:
        """Go on with the inodes whose blocks an earlier server had seen moving.

        What they hold is set aside even where there is no room for it: the next operation that needs some makes it.
        """
        for node in self._nodes.awake():
            if node.moving:
                self._moving[node] = None
                node.hold = self._wanted_hold(node.charged)
                self._held += node.hold
        self.quota.settle(-self._held, 0, 0, 0)

    def _wanted_hold(self, nbytes: int) -> int:
        """Bytes that the map of a file of *nbytes* may take later."""
        return self.block + nbytes // self.block // _PIECES * self.block

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
            if node.charged < 0:  # no scan has found it, or it was never counted
                self.quota.settle(node.hold, 0, 0, 0)
            else:
                entry = None
                if self.journal is not None:
                    entry = self.journal.begin((node.where,))
                    entry.charge(0, GONE)
                self.quota.settle(node.hold, 0, -node.charged, -1, entry)
            self._hold(node, -node.hold)
            self._nodes.settled(node)

    def _begin(self, node: Node) -> Entry | None:
        """*node*, whose lock is held, may grow or shrink from here on."""
        return self.journal.begin((node.where,)) if self.journal is not None else None

    def _settle(self, node: Node, now: int, reserved: int, entry: Entry | None) -> None:
        """*node*, whose lock is held, takes *now* bytes."""
        if entry is not None:
            if now != node.charged:
                entry.charge(0, now)
            else:
                entry.cancel()
                entry = None
        self.quota.settle(reserved, 0, now - node.charged, 0, entry)
        node.charged = now

    # -- what moves by itself -----------------------------------------------------------------------------------------

    def moves(self, node: Node) -> None:
        """The blocks of *node*, whose lock is held, may change by themselves until the next sync."""
        if self._moves and not node.moving:
            node.moving = True
            if self.journal is not None:
                self.journal.moves(node.where, value=True)
            with self._moving_lock:
                self._moving[node] = None

    def measure(self, node: Node, fd: int, *, synced: bool = False) -> None:
        """Account for what *node* uses now. *synced*: it needs no hold any longer."""
        with node.lock or self.lock_of(node):
            now = os.fstat(fd).st_blocks * 512
            if node.charged < 0:
                self.know(node, fd)
            if now != node.charged or (synced and node.hold):
                hold = node.hold if synced and not node.moving else max(0, min(node.hold, now - node.charged))
                self._hold(node, -hold)
                self._settle(node, now, hold, self._begin(node))
            if synced and not node.moving and self.journal is not None:
                self.journal.moves(node.where, value=False)

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
