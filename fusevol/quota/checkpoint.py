"""What a ledger leaves on disk: its counters after a clean end, or the mark that they are in use and cannot be trusted.

The counters belong to one directory, recognised by its inode number and its filesystem (``f_fsid`` of statvfs(3), which
follows the filesystem's UUID on ext4 and btrfs and its device on XFS). A copied pool, or a disk under another device
number on XFS, is counted again: slower, never wrong.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple, Self

from fusevol.files import write_whole

_VERSION = 1


class Identity(NamedTuple):
    """Which directory the counters are of."""

    inode: int
    filesystem: int

    @classmethod
    def of(cls, source: Path) -> Self:
        """The identity of the directory *source*. Raises ``OSError``."""
        st = source.stat()
        # f_fsid is 0 where a filesystem has none (NFS, FUSE)
        return cls(st.st_ino, os.statvfs(source).f_fsid or st.st_dev)


class Checkpoint(NamedTuple):
    """The content of ``ledger.json``. The counters mean something only if ``clean``."""

    clean: bool
    used_bytes: int
    used_inodes: int
    source: Identity

    def save(self, path: Path) -> None:
        """Write it whole and durably. Raises ``OSError``."""
        fields = {
            "version": _VERSION,
            "state": "clean" if self.clean else "in-use",
            "used_bytes": self.used_bytes,
            "used_inodes": self.used_inodes,
            "source": self.source._asdict(),
        }
        write_whole(path, json.dumps(fields) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read a checkpoint; ``None`` if there is none that can be understood."""
        try:
            fields = json.loads(path.read_bytes())
            if fields["version"] != _VERSION or fields["state"] not in {"clean", "in-use"}:
                return None
            source = Identity(_count(fields["source"]["inode"]), _count(fields["source"]["filesystem"]))
            return cls(fields["state"] == "clean", _count(fields["used_bytes"]), _count(fields["used_inodes"]), source)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value
