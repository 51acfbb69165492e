"""Deletes trees for ever: by descriptor, never through a symbolic link, never into a mount or another device.

Trees may be of any depth and width. The way: empty a directory of all but non-empty subdirectories' content by moving
those up to the top under new names. So two descriptors and no memory are enough, nothing is ever more than one level
deep, and a removal that was interrupted is simply begun again.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from fusevol.errors import ConflictError
from fusevol.files import open_directory

_REPORT_EVERY = 256
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}


class _Removal:
    def __init__(self, root: Path, progress: Callable[[int], None] | None) -> None:
        self._root = root
        self._progress = progress
        self._removed = 0
        self._marker = f".fusevol-purge-{uuid.uuid4().hex}-"
        self._moved = 0
        self._device = 0

    def run(self) -> int:
        top = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._device = os.fstat(top).st_dev
            # what is moved up may or may not be seen by the listing that is under way: until one finds nothing
            while self._pass(top):
                pass
        finally:
            os.close(top)
        if self._progress is not None:
            self._progress(self._removed)
        return self._removed

    def _pass(self, top: int) -> bool:
        found = False
        with os.scandir(top) as entries:
            for entry in entries:
                found = True
                if entry.is_dir(follow_symlinks=False):
                    self._directory(top, entry.name)
                else:
                    self._unlink(top, entry.name)
        return found

    def _directory(self, top: int, name: str) -> None:
        fd = self._enter(top, name)
        if fd is None:
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self._lift(fd, entry.name, top)
                    else:
                        self._unlink(fd, entry.name)
        finally:
            os.close(fd)
        try:
            os.rmdir(name, dir_fd=top)
        except OSError as e:
            if e.errno not in {*_NOT_EMPTY, errno.ENOENT}:  # a listing may miss names while others go: next pass
                raise self._refusal(e, name) from e
        else:
            self._count()

    def _enter(self, top: int, name: str) -> int | None:
        try:
            fd = open_directory(name, top)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._refusal(e, name) from e
        if os.fstat(fd).st_dev != self._device:
            os.close(fd)
            raise self._refusal(OSError(errno.EXDEV, "on another device"), name)
        return fd

    def _lift(self, parent: int, name: str, top: int) -> None:
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as e:
            if e.errno not in _NOT_EMPTY:
                raise self._refusal(e, name) from e
        else:
            self._count()
            return
        self._moved += 1
        try:
            os.rename(name, f"{self._marker}{self._moved}", src_dir_fd=parent, dst_dir_fd=top)
        except OSError as e:
            raise self._refusal(e, name) from e

    def _unlink(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as e:
            raise self._refusal(e, name) from e
        self._count()

    def _count(self) -> None:
        self._removed += 1
        if self._progress is not None and self._removed % _REPORT_EVERY == 0:
            self._progress(self._removed)

    def _refusal(self, error: OSError, name: str) -> Exception:
        return refusal(self._root, repr(name)) if error.errno in {errno.EXDEV, errno.EBUSY} else error


def refusal(root: Path, what: str) -> ConflictError:
    """The error for *what* in the tree at *root*, which nobody but a person may delete."""
    return ConflictError(
        f"{root} cannot be deleted: {what} in it is a mount point, a mounted filesystem or on another device; "
        "unmount or remove that one and try again."
    )


def empty(root: Path, progress: Callable[[int], None] | None = None) -> int:
    """Delete all that is in the directory *root* and return how many inodes' names that were.

    *progress* is told that number every now and then; what it raises ends the removal, which can be begun again.
    Raises ``OSError``, or :class:`ConflictError` at a mount point or another device.
    """
    return _Removal(root, progress).run()
