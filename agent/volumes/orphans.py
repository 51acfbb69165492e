"""Directories of Pods that are gone (volume-semantics 6.9). Synchronous, for worker threads.

A mount is undone, an empty directory or target removed; nothing with content in it is ever deleted.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.volumes import places
from fusevol.transport import mount

_UID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def directories(root: Path) -> list[str]:
    """Uids of the Pods that have a directory below *root*. Other names are nobody's business."""
    with suppress(FileNotFoundError):
        return [name for name in os.listdir(root) if _UID.fullmatch(name)]
    return []


def unmount(pod: Path) -> None:
    """Undo what is mounted in a Pod's directory, and remove the empty files that were targets of parts.

    Raises :class:`ConflictError` for what is in use, and ``OSError``.
    """
    for found in mount.below(pod):
        places.clear(Path(found.mountpoint))
    for directory, _, files in os.walk(pod / "volume-subpaths"):
        for name in files:
            place = Path(directory) / name
            with suppress(FileNotFoundError):
                status = place.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_size == 0:
                    place.unlink()
