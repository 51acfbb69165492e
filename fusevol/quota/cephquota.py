"""The quota of a directory of CephFS, and what CephFS counts below it: virtual attributes of the directory.

Clients keep it, by counts that an MDS tells them late: see ``fusevol.pool.drivers.cephfs``.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from fusevol.usage import Measured

MAX_BYTES: Final = "ceph.quota.max_bytes"
MAX_FILES: Final = "ceph.quota.max_files"
"""Directories count, the one that has the quota too."""
USED_BYTES: Final = "ceph.dir.rbytes"
"""Sizes of the files below, holes included. Only directories of CephFS have it."""
USED_INODES: Final = "ceph.dir.rentries"


class CephMeter:
    """Implements ``fusevol.usage.Meter``."""

    def __init__(self, source: Path) -> None:
        """The quota of the directory *source*. Raises ``OSError``: EOPNOTSUPP where that is not on CephFS."""
        self._fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.usage()
        except BaseException:
            self.close()
            raise

    def usage(self) -> Measured:
        """See ``Meter``: late, for writes and for deletions, by up to half a minute in deep trees."""
        return measure(self._fd)

    def set_limits(self, nbytes: int | None, inodes: int | None) -> None:
        """See ``Meter``."""
        set_limits(self._fd, nbytes, inodes)

    def close(self) -> None:
        """See ``Meter``."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __repr__(self) -> str:
        """Shows which directory it is, by its descriptor."""
        return f"<CephMeter of {self._fd}>"


def open_meter(source: Path) -> CephMeter:
    """See ``fusevol.quota.kernel.MODULES``."""
    return CephMeter(source)


def measure(directory: int | Path) -> Measured:
    """What CephFS counts in *directory* and allows it. Raises ``OSError``."""
    # an MDS before Mimic knows no quotas, and says ENODATA
    return Measured(
        _number(directory, USED_BYTES) or 0,
        _number(directory, USED_INODES),
        _number(directory, MAX_BYTES) or None,
        _number(directory, MAX_FILES) or None,
    )


def set_limits(directory: int | Path, nbytes: int | None, inodes: int | None) -> None:
    """Change the quota of *directory*, durably: an MDS answers when it has it in its journal.

    Raises ``OSError``: EPERM where the client's MDS capabilities lack the ``p``.
    """
    for name, value in ((MAX_BYTES, nbytes), (MAX_FILES, inodes)):
        if (_number(directory, name) or None) != value:
            os.setxattr(directory, name, b"%d" % (value or 0))


def is_ceph(directory: Path) -> bool:
    """Whether *directory* is one of CephFS. Raises ``OSError``."""
    try:
        return _number(directory, USED_BYTES) is not None
    except OSError as e:
        if e.errno != errno.EOPNOTSUPP:
            raise
        return False


def _number(directory: int | Path, name: str) -> int | None:
    try:
        return int(os.getxattr(directory, name))
    except OSError as e:
        if e.errno != errno.ENODATA:
            raise
        return None
