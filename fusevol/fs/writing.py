"""The part of the accounting that lets files grow: writing and allocating within the limit. See there."""

from __future__ import annotations

import contextlib
import errno
import os

from fusevol.fs import _libc, backing
from fusevol.fs.accounting import Accounts
from fusevol.fs.memory import Entry
from fusevol.fs.node import Node


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Writer(Accounts):
    """The accounting of a filesystem whose files are written to. Thread-safe."""

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
                self.know(node, fd)
            if self._is_allocated(node, fd, offset, end):
                return os.pwrite(fd, data, offset)
            if not self._tight:
                wanted = end + -end % block - (node.charged if self.by_size else offset - offset % block)
                hold = 0
                if self._moves:
                    hold = max(0, self._wanted_hold(node.charged + wanted) - node.hold)
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
        if self.by_size:
            return end <= node.charged
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
        entry = self._begin(node)
        try:
            if allocate:
                self._allocate(fd, offset, len(data))
            return os.pwrite(fd, data, offset)
        finally:
            self._account(node, fd, reserved, hold, entry)

    def _account(self, node: Node, fd: int, reserved: int, hold: int, entry: Entry | None) -> None:
        """Settle *reserved* with what *node* takes now, and keep up to *hold* of it."""
        self.moves(node)
        now = os.fstat(fd).st_blocks * 512
        # what came that was held for is held no longer
        hold = max(-node.hold, min(hold, reserved - now + node.charged))
        self._hold(node, hold)
        self._settle(node, now, reserved - hold, entry)

    def _write_tight(self, node: Node, fd: int, offset: int, data: bytes | memoryview, *, final: bool) -> int | None:
        """Write what fits. ``None`` if that is not all, and more may fit when holds are given back; not if *final*."""
        block = self.block
        end = offset + len(data)
        holes = self._holes(node, fd, offset, end)
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
        return self._write_reserved(node, fd, offset, data, granted, spare, allocate=need > 0 and not self.by_size)

    def _holes(self, node: Node, fd: int, offset: int, end: int) -> list[tuple[int, int]]:
        """The parts of *offset* to *end*, in whole blocks, that a write there must take: see ``backing.holes``."""
        block = self.block
        if self.by_size:
            end += -end % block
            return [(node.charged, end)] if end > node.charged else []
        return backing.holes(fd, offset - offset % block, end + -end % block, block)

    def _write_last(self, node: Node, fd: int, offset: int, data: bytes | memoryview, reserved: int) -> int:
        """Append, and cut off what was appended last if the file's map took a block for which there is no room."""
        block = self.block
        before = kept = os.fstat(fd).st_size
        entry = self._begin(node)
        try:
            self._allocate(fd, offset, len(data))
            kept = offset + os.pwrite(fd, data, offset)
            os.fdatasync(fd)
            if os.fstat(fd).st_blocks * 512 - node.charged > reserved + node.hold:
                kept = max(before, (kept - 1) // block * block)
                os.ftruncate(fd, kept)
        finally:
            self._account(node, fd, reserved, 0, entry)
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
        if self.by_size or self._kind == "tmpfs":
            return False
        if self._kind not in {"ext4", "xfs"}:
            return splits > 0  # btrfs counts a block that is copied twice, until write-back
        pieces = backing.pieces(fd)
        most = pieces + more + splits
        if self._kind == "ext4":  # four pieces are in the inode
            return pieces <= 4 < most or most % 340 < more + 6
        return most > 9 and (pieces <= 24 or most % 125 < more + 6)  # about 21 pieces, 9 beside extended attributes

    def truncate(self, node: Node, fd: int, where: int | bytes, size: int) -> None:
        """truncate(2) of *where*, which is *node*'s file. Raises ``OSError(ENOSPC)`` where a longer file takes more."""
        if not self.by_size:
            with self.change([(node, fd)]):
                os.truncate(where, size)
                self.moves(node)
            return
        self._reclaim()
        with node.lock or self.lock_of(node):
            if node.charged < 0:
                self.know(node, fd)
            more = max(0, size + -size % self.block - node.charged)
            self.quota.reserve(more, 0)
            entry = self._begin(node)
            try:
                os.truncate(where, size)
            finally:
                self._settle(node, os.fstat(fd).st_blocks * 512, more, entry)

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
                self.know(node, fd)
            try:
                self.quota.reserve(nbytes, 0)
            except OSError:
                nbytes = sum(stop - start for start, stop in self._holes(node, fd, offset, offset + length))
                self.quota.reserve(nbytes, 0)
            entry = self._begin(node)
            try:
                _libc.fallocate(fd, mode, offset, length)
            finally:
                self.moves(node)
                self._settle(node, os.fstat(fd).st_blocks * 512, nbytes, entry)
