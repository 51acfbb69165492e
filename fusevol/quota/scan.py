"""Counts what a tree uses, as ``du -s --block-size=1`` and ``du -s --inodes`` do.

One pass with one stat per inode. Symbolic links are counted, not followed; mounts and other devices below the root are
not part of the tree; only inodes with more than one name are remembered. The walk goes depth first and reads
directories lazily, so that neither wide nor large trees cost memory. Lazy reading holds two descriptors per level,
therefore below :data:`_LAZY_DEPTH` levels the subdirectories' names are listed instead, the descriptor is closed, and
the way back up is ``..``, checked by inode number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fusevol.files import open_directory

_LAZY_DEPTH = 64
_REPORT_EVERY = 4096
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV}
"""The entry went or changed its kind between listing and opening, or something is mounted on it."""


class Total(NamedTuple):
    """What a tree uses."""

    nbytes: int
    """Allocated space: 512 times the sum of ``st_blocks`` (stat(2))."""
    inodes: int


class ScanProgress(NamedTuple):
    """How far a scan is."""

    inodes: int
    nbytes: int


class _Frame:
    """A directory on the way from the root to where the walk is."""

    __slots__ = ("entries", "fd", "key", "names")

    def __init__(self, fd: int, key: tuple[int, int]) -> None:
        self.fd = fd
        self.key = key
        self.entries: Iterator[os.DirEntry[str]] | None = None
        self.names: list[str] = []

    def close(self) -> None:
        """Give back all descriptors."""
        if self.entries is not None:
            self.entries.close()  # type: ignore[attr-defined]  # the type that has it is private in typeshed
            self.entries = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Scan:
    def __init__(self, progress: Callable[[ScanProgress], None] | None) -> None:
        self.nbytes = 0
        self.inodes = 0
        self._progress = progress
        self._linked: set[int] = set()
        self._device = 0

    def _count(self, st: os.stat_result) -> None:
        if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
            if st.st_ino in self._linked:
                return
            self._linked.add(st.st_ino)
        self.nbytes += st.st_blocks * 512
        self.inodes += 1
        if self._progress is not None and self.inodes % _REPORT_EVERY == 0:
            self._progress(ScanProgress(self.inodes, self.nbytes))

    def run(self, root: Path) -> Total:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack: list[_Frame] = []
        try:
            st = os.fstat(fd)
            self._device = st.st_dev
            self._count(st)
            stack.append(self._frame(fd, st, 0))
            while stack:
                top = stack[-1]
                name = self._next_directory(top)
                if name is None:
                    self._leave(stack)
                    continue
                self._enter(stack, name)
        finally:
            for frame in stack:
                frame.close()
        if self._progress is not None:
            self._progress(ScanProgress(self.inodes, self.nbytes))
        return Total(self.nbytes, self.inodes)

    def _frame(self, fd: int, st: os.stat_result, depth: int) -> _Frame:
        frame = _Frame(fd, (st.st_dev, st.st_ino))
        try:
            frame.entries = os.scandir(fd)
            if depth >= _LAZY_DEPTH:
                names = []
                while (name := self._next_directory(frame)) is not None:
                    names.append(name)
                frame.names = names
        except BaseException:
            frame.close()
            raise
        return frame

    def _next_directory(self, frame: _Frame) -> str | None:
        """Count entries up to the next subdirectory and return its name (it is counted when it is entered)."""
        if frame.entries is None:
            return frame.names.pop() if frame.names else None
        for entry in frame.entries:
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            with contextlib.suppress(FileNotFoundError):
                st = entry.stat(follow_symlinks=False)
                if st.st_dev == self._device:
                    self._count(st)
        frame.entries = None
        return None

    def _enter(self, stack: list[_Frame], name: str) -> None:
        above = stack[-1]
        try:
            fd = open_directory(name, above.fd)
        except OSError as e:
            if e.errno in _GONE:
                return
            raise
        st = os.fstat(fd)
        if st.st_dev != self._device:
            os.close(fd)
            return
        self._count(st)
        stack.append(self._frame(fd, st, len(stack)))
        if len(stack) > _LAZY_DEPTH + 1:
            os.close(above.fd)
            above.fd = -1

    def _leave(self, stack: list[_Frame]) -> None:
        done = stack.pop()
        try:
            if stack and stack[-1].fd < 0:
                fd = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=done.fd)
                st = os.fstat(fd)
                if (st.st_dev, st.st_ino) != stack[-1].key:
                    os.close(fd)
                    raise OSError(errno.ESTALE, "a directory was moved while its tree was counted")
                stack[-1].fd = fd
        finally:
            done.close()


def scan(root: Path, progress: Callable[[ScanProgress], None] | None = None) -> Total:
    """What the tree at *root* uses, the root included.

    *progress* is called every 4096 inodes and at the end; what it raises ends the scan. Raises ``OSError`` for what
    cannot be read (a directory that vanishes meanwhile is not counted).
    """
    return _Scan(progress).run(root)
