"""fsGroup: what a Pod's group may do in a volume (volume-semantics 6.3, 6.4). Synchronous, for worker threads.

Bits are only added and owners never change, so doing it twice is doing it once. The root comes last, so that
``OnRootMismatch`` finds out about a pass that was interrupted. Everything is reached by descriptors and no link is
followed: whoever works in the volume meanwhile may swap names, and must not have a file of the host changed.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

Policy = Literal["Always", "OnRootMismatch"]

WRITABLE: Final = 0o660
READ_ONLY: Final = 0o440
_SEARCH: Final = 0o110


@dataclass(frozen=True, slots=True)
class Group:
    """The group that a Pod's volumes are given to."""

    gid: int
    policy: Policy = "Always"


def mode_for(mode: int, *, directory: bool, read_only: bool = False) -> int:
    """The permission bits that *mode* becomes for the group."""
    mask = READ_ONLY if read_only else WRITABLE
    return mode | mask | (stat.S_ISGID | _SEARCH if directory else 0)


def fits(found: os.stat_result, gid: int, *, read_only: bool = False) -> bool:
    """Whether what *found* describes has the group and all of its bits already."""
    if found.st_gid != gid:
        return False
    if stat.S_ISLNK(found.st_mode):
        return True
    mode = stat.S_IMODE(found.st_mode)
    return mode_for(mode, directory=stat.S_ISDIR(found.st_mode), read_only=read_only) == mode


def give(root: int, group: Group, *, read_only: bool = False) -> bool:
    """Give the tree at the directory *root* (an open descriptor) to *group*; whether there was anything to look at.

    Raises ``OSError``. What disappears meanwhile is passed over.
    """
    if group.policy == "OnRootMismatch" and fits(os.fstat(root), group.gid, read_only=read_only):
        return False

    def refuse(e: OSError) -> None:
        if not isinstance(e, FileNotFoundError):
            raise e

    for _, directories, files, here in os.fwalk(".", topdown=False, onerror=refuse, dir_fd=root):
        for name in (*files, *directories):
            with suppress(FileNotFoundError):
                _one(here, name, group.gid, read_only=read_only)
    _change(root, os.fstat(root), group.gid, read_only=read_only)
    return True


def _one(directory: int, name: str, gid: int, *, read_only: bool) -> None:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if fits(found, gid, read_only=read_only):
        return
    if stat.S_ISLNK(found.st_mode):
        os.chown(name, -1, gid, dir_fd=directory, follow_symlinks=False)
        return
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        _change(descriptor, os.fstat(descriptor), gid, read_only=read_only)
    finally:
        os.close(descriptor)


def _change(descriptor: int, found: os.stat_result, gid: int, *, read_only: bool) -> None:
    if stat.S_ISLNK(found.st_mode):  # swapped in since it was looked at
        return
    place = f"/proc/self/fd/{descriptor}"
    if found.st_gid != gid:
        os.chown(place, -1, gid)
    mode = stat.S_IMODE(found.st_mode)
    # after the chown, which takes setuid and setgid away
    os.chmod(place, mode_for(mode, directory=stat.S_ISDIR(found.st_mode), read_only=read_only))
