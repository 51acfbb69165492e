"""Whether the filesystem that a pool is on has failed for good."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final, NamedTuple

_DEAD: Final = frozenset({
    errno.EIO, errno.EUCLEAN, errno.ESHUTDOWN, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN
})  # fmt: skip
"""Errors of a filesystem that has failed for good; any other may have to do with its directory alone."""


class Failure(NamedTuple):
    """What is the matter with a pool."""

    why: str
    """A sentence."""
    dead: bool
    """Whether nothing can be read from its filesystem either, until that is mounted anew."""


def failure_at(path: Path) -> Failure | None:
    """Why the filesystem of *path* cannot be used any more; ``None`` if it can, or nothing says otherwise."""
    try:
        with os.scandir(path) as entries:
            next(entries, None)
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return Failure(f"The filesystem at {path} has become read-only: see `dmesg` for the reason.", False)
    except OSError as e:
        if e.errno in _DEAD:
            return Failure(f"The filesystem at {path} answers {e.strerror}: see `dmesg` for the reason.", True)
    return None
