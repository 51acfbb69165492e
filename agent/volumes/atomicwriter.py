"""Files that change all at once: kubelet's atomic writer (volume-semantics 3.8). Synchronous, for worker threads.

    <volume>/
      ..2026_07_25_10_11_12.1234567890/   the files
      ..data -> ..2026_07_25_10_11_12.1234567890
      name   -> ..data/name               (the first element of each path)

One ``rename`` of ``..data`` switches all files. Who wants several files of one state opens ``..data`` once, and opens
the files below that. An interrupted write leaves a directory that nobody sees, which the next one removes.

The volume's root is never trusted: a privileged container may write into it, and this process is root. So everything is
reached by descriptors, without following a link, and ``..data`` counts only if it names a directory beside it.
"""

from __future__ import annotations

import datetime as dt
import os
import posixpath
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from agent.volumes import ownership
from fusevol.errors import InvalidError

DATA: Final = "..data"
_NEW: Final = "..data_tmp"
_STAMPED: Final = re.compile(r"\.\.\d{4}(_\d{2}){5}\.\d+", re.ASCII)
_LONGEST_PATH: Final = 4096
_LONGEST_NAME: Final = 255
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class File(NamedTuple):
    """One file of a volume."""

    content: bytes
    mode: int


Payload = Mapping[str, File]
"""The files by their paths in the volume."""


def cleaned(payload: Payload) -> dict[str, File]:
    """*payload* with its paths in their shortest form. Raises :class:`InvalidError` for a path that may not be."""
    found: dict[str, File] = {}
    for path, file in payload.items():
        if not path:
            raise InvalidError("invalid path: must not be empty")
        if path.startswith("/"):
            raise InvalidError(f"invalid path: must be relative path: {path}")
        if len(path.encode()) > _LONGEST_PATH:
            raise InvalidError(f"invalid path: must be less than or equal to {_LONGEST_PATH} characters")
        parts = path.split("/")
        if ".." in parts:
            raise InvalidError(f"invalid path: must not contain '..': {path}")
        if any(len(p.encode()) > _LONGEST_NAME for p in parts):
            raise InvalidError(f"invalid path: filenames must be less than or equal to {_LONGEST_NAME} characters")
        short = posixpath.normpath(path)
        if short.startswith(".."):
            raise InvalidError(f"invalid path: must not start with '..': {path}")
        if short == ".":
            raise InvalidError(f"invalid path: must name a file: {path}")
        found[short] = file
    for path in found:
        above = next((p for p in _above(path) if p in found), None)
        if above is not None:
            raise InvalidError(f"invalid path: {above} cannot be a file and the directory of {path}")
    return found


def write(root: int, payload: Payload, *, gid: int | None = None) -> bool:
    """Have the directory *root* (an open descriptor) show *payload*, and nothing else; whether files were written.

    *gid*: the Pod's fsGroup, to which the files are given before anybody can see them. A change of modes alone is no
    reason to write. Raises ``OSError`` or :class:`InvalidError`; what was there before is there still.
    """
    files = cleaned(payload)
    old = _current(root)
    stale: set[str] = set()
    if old is not None:
        wanted = {*files, *(p for path in files for p in _above(path))}
        stale = _present(root, old) - wanted
        if not stale and all(_same(root, old, path, file.content) for path, file in files.items()):
            _link(root, files)
            return False
    new = _written(root, files, gid)
    try:
        with suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=root)
        os.symlink(new, _NEW, dir_fd=root)
        os.rename(_NEW, DATA, src_dir_fd=root, dst_dir_fd=root)
    except BaseException:
        with suppress(OSError):
            os.unlink(_NEW, dir_fd=root)
        shutil.rmtree(new, ignore_errors=True, dir_fd=root)
        raise
    _link(root, files)
    _unlink(root, {path for path in stale if "/" not in path})
    for name in os.listdir(root):
        if name != new and _STAMPED.fullmatch(name):
            shutil.rmtree(name, ignore_errors=True, dir_fd=root)
    return True


def is_written(root: int) -> bool:
    """Whether the directory shows files that :func:`write` has put there."""
    return _current(root) is not None


def _above(path: str) -> Iterable[str]:
    """The directories that *path* goes through."""
    while path := posixpath.dirname(path):
        yield path


def _current(root: int) -> str | None:
    """The name of the directory with the files; None before the first write."""
    try:
        name = os.readlink(DATA, dir_fd=root)
        if not _STAMPED.fullmatch(name):
            return None
        os.close(os.open(name, _DIRECTORY, dir_fd=root))
    except OSError:
        return None
    return name


def _present(root: int, old: str) -> set[str]:
    """The paths of all files below *old*, and of the directories that lead to them."""
    found: set[str] = set()
    for directory, _, files, _ in os.fwalk(old, dir_fd=root):
        here = directory.partition("/")[2]
        for name in files:
            path = posixpath.join(here, name)
            found |= {path, *_above(path)}
    return found


def _same(root: int, old: str, path: str, content: bytes) -> bool:
    try:
        with _opened(root, [old, *path.split("/")[:-1]]) as directory:
            descriptor = os.open(posixpath.basename(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            with open(descriptor, "rb") as file:
                return file.read() == content
    except OSError:
        return False


@contextmanager
def _opened(root: int, parts: Iterable[str], *, make: bool = False) -> Iterator[int]:
    """A directory below *root*, reached and (with *make*) made one element after the other."""
    current = os.dup(root)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=current)
            below = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _written(root: int, files: Payload, gid: int | None) -> str:
    """The name of a new directory with *files*, which nothing points to yet."""
    stamp = dt.datetime.now(dt.UTC).strftime("..%Y_%m_%d_%H_%M_%S")
    while True:
        name = f"{stamp}.{secrets.randbelow(10**10)}"
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=root)
            break
    try:
        with _opened(root, [name]) as top:
            os.fchmod(top, 0o755)
            for path, file in files.items():
                _write_one(top, path, file)
            if gid is not None:
                ownership.give(top, ownership.Group(gid), read_only=True)
    except BaseException:
        shutil.rmtree(name, ignore_errors=True, dir_fd=root)
        raise
    return name


def _write_one(top: int, path: str, file: File) -> None:
    with _opened(top, path.split("/")[:-1], make=True) as directory:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(posixpath.basename(path), flags, 0o600, dir_fd=directory)
        with open(descriptor, "wb", buffering=0) as target:
            rest = memoryview(file.content)
            while rest:
                rest = rest[target.write(rest) :]
            os.fchmod(descriptor, file.mode)


def _link(root: int, files: Iterable[str]) -> None:
    """Make the names that users see; one that is there already is left alone."""
    for name in {path.partition("/")[0] for path in files}:
        with suppress(FileExistsError):
            os.symlink(f"{DATA}/{name}", name, dir_fd=root)


def _unlink(root: int, names: Iterable[str]) -> None:
    for name in names:
        with suppress(OSError):
            os.unlink(name, dir_fd=root)


def make_places(root: int, paths: Iterable[str]) -> None:
    """Make directories (0755) for what is mounted inside the volume, which its users cannot do themselves (3.7).

    Where a name of the volume's own is in the way, the mount goes to wherever that leads.
    """
    for path in paths:
        parts = path.split("/")
        for i in range(len(parts)):
            try:
                with _opened(root, parts[:i]) as directory, suppress(FileExistsError):
                    os.mkdir(parts[i], 0o755, dir_fd=directory)
            except NotADirectoryError:
                break
