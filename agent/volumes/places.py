"""Directories and binds at targets: synchronous, for worker threads, and careful with what users can put in the way."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import Final

from agent.volumes import trees
from fusevol.errors import ConflictError, InvalidError
from fusevol.transport import mount

_RESOLVE_BENEATH: Final = 0x08
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RACES: Final = 100
"""How often a path is tried again while somebody renames what is on it."""
_SYS_OPENAT2: Final = 437  # the same number on all architectures (openat2(2))
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root: int, path: str, *, links: bool = False) -> int:
    """An O_PATH descriptor of *path* below the directory *root*; with *links*, through symbolic links that stay there.

    Raises ``OSError``: EXDEV for a path that leaves *root*, ELOOP for a link that is not followed.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | (0 if links else _RESOLVE_NO_SYMLINKS)
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, resolve)
    for _ in range(_RACES):
        found = _libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if found >= 0:
            return int(found)
        code = ctypes.get_errno()
        if code != errno.EAGAIN:  # something was renamed meanwhile, and the kernel cannot tell where ".." leads
            break
    raise OSError(code, os.strerror(code), path)


def check_sub_path(path: str) -> list[str]:
    """The components of a subPath. Raises :class:`InvalidError` for one that leaves the volume."""
    if path.startswith("/"):
        raise InvalidError(f'subPath "{path}": must be a relative path')
    parts = [p for p in path.split("/") if p not in {"", "."}]
    if ".." in parts:
        raise InvalidError(f"subPath \"{path}\": must not contain '..'")
    return parts


def open_sub_path(root: Path, path: str, *, create: bool = True) -> int:
    """An O_PATH descriptor of *path* in the volume at *root* (6.5). Symbolic links are followed inside the volume only.

    Missing directories get the root's mode, if they may be made. Raises ``OSError``; EXDEV for what leads out.
    """
    parts = check_sub_path(path)
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        current, missing = _existing(top, parts)
        try:
            if missing and not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            mode = stat.S_IMODE(os.stat(f"/proc/self/fd/{top}").st_mode)
            for name in missing:
                made = _made(current, name, mode)
                os.close(current)
                current = made
            return os.dup(current)
        finally:
            os.close(current)
    finally:
        os.close(top)


def _existing(top: int, parts: list[str]) -> tuple[int, list[str]]:
    """As much of a path as there is, and the rest of it."""
    for count in range(len(parts), 0, -1):
        try:
            return open_beneath(top, "/".join(parts[:count]), links=True), parts[count:]
        except FileNotFoundError:
            continue
    return os.dup(top), parts


def _made(directory: int, name: str, mode: int) -> int:
    """A directory, made unless somebody else was faster; a link that leads nowhere is ELOOP."""
    created = True
    try:
        os.mkdir(name, dir_fd=directory)
    except FileExistsError:
        created = False
    found = open_beneath(directory, name)
    if created:
        # by descriptor: the umask took bits away
        os.chmod(f"/proc/self/fd/{found}", mode)
    return found


def stale(source: Path, sub_path: str, target: Path) -> bool:
    """Whether *target* shows something else than what the part *sub_path* of *source* is by now.

    Containers keep what they have; one that is started later gets what is there then, as from kubelet (6.5).
    """
    try:
        descriptor = open_sub_path(source, sub_path, create=False)
    except OSError:
        return False  # it is gone: what there was stays
    try:
        now, then = os.fstat(descriptor), os.stat(target)
    finally:
        os.close(descriptor)
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino)


def bind(source: Path, sub_path: str, target: Path, *, read_only: bool, recursive: bool = False) -> None:
    """Show *source* (or its part *sub_path*) at *target*, which is made if it is missing.

    *recursive* takes along what is mounted inside; all of that is read-only then. Raises ``OSError``,
    :class:`InvalidError` for the sub path, :class:`ConflictError` if the target is taken.
    """
    if sub_path:
        try:
            descriptor = open_sub_path(source, sub_path, create=not read_only)
        except OSError as e:
            # as kubelet does: nothing about the host's paths
            why = "it leads out of the volume" if e.errno in {errno.EXDEV, errno.ELOOP} else e.strerror
            raise InvalidError(f'failed to prepare subPath "{sub_path}": {why}') from e
    else:
        descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        created = _make_target(target, directory=is_directory)
        try:
            if recursive:
                trees.show_read_only(descriptor, target)
            else:
                mount.bind(f"/proc/self/fd/{descriptor}", target, read_only=read_only)
        except BaseException:
            if created:
                remove_target(target)
            raise
    finally:
        os.close(descriptor)


def _make_target(target: Path, *, directory: bool) -> bool:
    try:
        found = target.lstat()
    except FileNotFoundError:
        target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if directory:
            target.mkdir(mode=0o750)
        else:
            target.touch(mode=0o640, exist_ok=False)
        return True
    if stat.S_ISLNK(found.st_mode):
        raise ConflictError(f"The target {target} is a symbolic link: name the directory itself.")
    if stat.S_ISDIR(found.st_mode) != directory:
        wanted = "directory" if directory else "file"
        raise ConflictError(f"The target {target} is not a {wanted}, as what is mounted there: name another one.")
    return False


def clear(target: Path, *, lazy: bool = False) -> None:
    """Unmount everything at exactly *target*. Raises :class:`ConflictError` when a process is in it.

    A mount without a server cannot be waited for: it is detached lazily.
    """
    while mount.is_mounted(target):
        try:
            mount.unmount(target, lazy=lazy)
        except OSError as e:
            if e.errno == errno.EINVAL:
                return
            if e.errno == errno.EBUSY and mount.probe(target) == "dead":
                lazy = True
                continue
            if e.errno == errno.EBUSY:
                raise ConflictError(
                    f"{target} is in use: end the processes that work in it (`fuser -vm {target}` lists them)."
                ) from e
            raise


def clear_dead(place: Path) -> None:
    """Take away what is mounted at *place* and has no server any more.

    The connection is ended first: it lives for as long as a process that cannot end has it open, and an unmount might
    wait for an answer.
    """
    found = mount.find(place)
    if found is not None and found.fstype == mount.FSTYPE:
        mount.abort(found.minor)
    clear(place, lazy=True)


def remove_target(target: Path) -> None:
    """Remove a directory or file that was made as a target: only if it is empty and nothing is mounted on it."""
    if mount.is_mounted(target):
        return
    with contextlib.suppress(OSError):
        found = target.lstat()
        if stat.S_ISDIR(found.st_mode):
            target.rmdir()
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            target.unlink()


def remove_empty_tree(top: Path) -> list[Path]:
    """Remove *top* and the empty directories below it; what is not empty stays and is returned.

    Never deletes content, never looks below a mount. Raises :class:`ConflictError` when something is mounted there.
    """
    mounted = mount.below(top)
    if mounted:
        raise ConflictError(f"{mounted[0].mountpoint} is still mounted: it must be unmounted first.")
    kept: list[Path] = []
    for directory, _, files in os.walk(top, topdown=False):
        if files:
            kept.append(Path(directory))
            continue
        try:
            Path(directory).rmdir()
        except OSError:
            kept.append(Path(directory))
    return kept
