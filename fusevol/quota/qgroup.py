"""The quota of a btrfs subvolume: the limit of its quota group. Bytes only, btrfs limits no inodes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self

from fusevol import btrfs
from fusevol.files import sync_filesystem
from fusevol.usage import Measured


class QgroupMeter:
    """Implements ``fusevol.usage.Meter``."""

    def __init__(self, source: Path, fsid: str, number: int) -> None:
        """Use :meth:`open`."""
        self._source = source
        self._fsid = fsid
        self._number = number

    @classmethod
    def open(cls, source: Path) -> Self:
        """The quota of the subvolume *source*. Raises ``OSError``: ENOENT where there is no quota group."""
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fsid = btrfs.filesystem(fd)
            if fsid is None:
                raise OSError(errno.EOPNOTSUPP, "it is not on btrfs", str(source))
            found = cls(source, fsid, btrfs.subvolume(fd))
        finally:
            os.close(fd)
        found.usage()
        return found

    def usage(self) -> Measured:
        """See ``Meter``: what is reserved for writes on their way counts as used."""
        return measure(self._fsid, self._number)

    def set_limits(self, nbytes: int | None, inodes: int | None) -> None:
        """See ``Meter``."""
        if inodes is not None:
            raise OSError(errno.EOPNOTSUPP, "btrfs limits no inodes")
        fd = os.open(self._source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            btrfs.set_limit(fd, nbytes)
        finally:
            os.close(fd)
        sync_filesystem(self._source)

    def close(self) -> None:
        """See ``Meter``: nothing is open."""

    def __repr__(self) -> str:
        """Shows which quota group it is."""
        return f"<QgroupMeter 0/{self._number} of {self._fsid}>"


def measure(fsid: str, number: int) -> Measured:
    """What btrfs counts of the subvolume *number* and allows it. Raises ``OSError``."""
    group = btrfs.quota_group(fsid, number)
    return Measured(group.referenced + group.reserved, None, group.limit, None)


def open_meter(source: Path) -> QgroupMeter:
    """See ``fusevol.quota.kernel.MODULES``."""
    return QgroupMeter.open(source)
