"""Whether two trees are the same, to the last byte: asked before the first of them is deleted.

What a copy cannot have is left out: inode numbers, the times of reading and of change, sizes and link counts of
directories, and where files have holes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_CHUNK: Final = 1 << 20

Identity = tuple[int, int]


def first_difference(one: Path, other: Path) -> str | None:
    """What makes the tree *other* another one than *one*, as the end of a sentence; ``None`` if they are the same.

    Neither may be changed meanwhile. What *other* has is read from its disk, where the system lets go of its pages.
    Raises ``OSError``.
    """
    links: dict[Identity, Identity] = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        here, there = os.path.join(os.fsencode(one), path), os.path.join(os.fsencode(other), path)
        found = _differs(here, there, links)
        if found is None and stat.S_ISDIR(os.lstat(here).st_mode):
            names, others = set(os.listdir(here)), set(os.listdir(there))
            lost = sorted(names ^ others)
            if lost:
                path = os.path.join(path, lost[0])
                found = "it is missing" if lost[0] in names else "nobody has put it there"
            todo.extend(os.path.join(path, name) for name in sorted(names, reverse=True))
        if found is not None:
            return f"{os.fsdecode(path) or 'the root directory'} is not the same: {found}"
    return None


def _differs(here: bytes, there: bytes, links: dict[Identity, Identity]) -> str | None:
    """How one inode differs from another; *links* are the files with several names that were seen."""
    a, b = os.lstat(here), os.lstat(there)
    pairs = {
        "mode": (a.st_mode, b.st_mode),
        "owner": ((a.st_uid, a.st_gid), (b.st_uid, b.st_gid)),
        "time of change": (a.st_mtime_ns, b.st_mtime_ns),
        "device": (a.st_rdev, b.st_rdev),
    }
    if not stat.S_ISDIR(a.st_mode):
        pairs["size"] = (a.st_size, b.st_size)
        pairs["number of names"] = (a.st_nlink, b.st_nlink)
    for what, (mine, its) in pairs.items():
        if mine != its:
            return f"{what} {its} instead of {mine}"
    if _attributes(here) != _attributes(there):
        return "its extended attributes or ACLs differ"
    if stat.S_ISLNK(a.st_mode) and os.readlink(here) != os.readlink(there):
        return "it leads elsewhere"
    if a.st_nlink > 1 and not stat.S_ISDIR(a.st_mode):
        known = links.get((a.st_dev, a.st_ino))
        if known is not None:
            return None if known == (b.st_dev, b.st_ino) else "it is no name of the same file any more"
        links[a.st_dev, a.st_ino] = (b.st_dev, b.st_ino)
    if stat.S_ISREG(a.st_mode):
        return _content(here, there)
    return None


def _attributes(path: bytes) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def _content(here: bytes, there: bytes) -> str | None:
    with open(here, "rb", buffering=0) as mine, open(there, "rb", buffering=0) as its:
        os.posix_fadvise(its.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        while True:
            chunk = mine.read(_CHUNK)
            if chunk != its.read(_CHUNK):
                return f"the content differs within the {_CHUNK} bytes from {at} on"
            if not chunk:
                return None
            at += len(chunk)
