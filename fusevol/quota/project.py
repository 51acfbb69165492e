"""Project quotas of XFS and ext4: a directory with a number that all below it inherits, and what the kernel allows it.

By system calls, for both filesystems alike: quotactl_fd(2) (Linux 5.14) needs no block device, which a container seldom
has, and its generic commands work on XFS, too. Limits are whole blocks of the filesystem, rounded down, since XFS
rounds up: a volume never has more than it was given, but for a limit below one block.

Whoever is refused gets ENOSPC from XFS and EDQUOT from ext4. ext4 refuses nothing to a process with CAP_SYS_RESOURCE;
a volume server has dropped that (``fusevol/server/privileges.py``).

All raise ``OSError``. Descriptors are of directories, open for reading (O_PATH will not do).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple, Self

from fusevol.files import sync_filesystem
from fusevol.usage import Measured

_QUOTACTL_FD: Final = 443  # one number on all architectures but alpha
_PROJECT: Final = 2  # linux/quota.h: PRJQUOTA
_GET: Final = 0x800007 << 8 | _PROJECT  # Q_GETQUOTA
_SET: Final = 0x800008 << 8 | _PROJECT  # Q_SETQUOTA
_GET_FORMAT: Final = 0x800004 << 8 | _PROJECT  # Q_GETFMT
_GET_STATE: Final = ord("X") << 16 | _PROJECT | 5 << 8  # Q_XGETQSTAT
_COUNTED: Final = 1 << 4  # linux/dqblk_xfs.h: FS_QUOTA_PDQ_ACCT
_ENFORCED: Final = 1 << 5  # FS_QUOTA_PDQ_ENFD
_DQBLK: Final = struct.Struct("=8QI4x")
"""struct if_dqblk: hard and soft limit in KiB, used bytes; hard and soft limit of inodes, used ones; two times; what of
it counts."""
_UNIT: Final = 1024
_LIMITS: Final = 1 | 4  # QIF_BLIMITS, QIF_ILIMITS

_FSGETXATTR: Final = 0x801C581F  # linux/fs.h
_FSSETXATTR: Final = 0x401C5820
_FSXATTR: Final = struct.Struct("=5I8x")
"""struct fsxattr: flags, hint for extents, their count, project, hint for copy-on-write extents."""
_PROJINHERIT: Final = 0x200

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class State(NamedTuple):
    """What a filesystem does about projects."""

    counted: bool
    enforced: bool


def _quotactl(fd: int, command: int, project: int, argument: ctypes.Array[ctypes.c_char]) -> None:
    done = _libc.syscall(
        ctypes.c_long(_QUOTACTL_FD), ctypes.c_int(fd), ctypes.c_uint(command), ctypes.c_uint(project), argument
    )
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def state(fd: int) -> State:
    """What the filesystem of *fd* does about projects: nothing also where the kernel is too old to be asked."""
    answer = ctypes.create_string_buffer(256)
    try:
        _quotactl(fd, _GET_STATE, 0, answer)
    except OSError as e:
        if e.errno in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTBLK, errno.ENODEV, errno.ESRCH}:
            return State(False, False)
        raise
    (flags,) = struct.unpack_from("=2xH", answer.raw)  # struct fs_quota_stat
    return State(bool(flags & _COUNTED), bool(flags & _ENFORCED))


def names_take(fd: int) -> int:
    """What must be left of a limit, in bytes, so that a name can be made on the filesystem of *fd*; data can have it.

    Measured with directories, links, long symbolic links and attributes on Linux 6.1 and 6.12: XFS sets 48 blocks aside
    for the worst case; ext4 takes what it takes, one block, and another one now and then for the map of a file.
    """
    answer = ctypes.create_string_buffer(4)
    try:
        _quotactl(fd, _GET_FORMAT, 0, answer)
    except OSError:  # ESRCH: XFS, which has quotas of its own format
        return 48 * os.fstatvfs(fd).f_frsize
    return 4 * os.fstatvfs(fd).f_frsize


def usage(fd: int, project: int) -> Measured:
    """What *project* has and may have on the filesystem of *fd*. Takes CAP_SYS_ADMIN."""
    answer = ctypes.create_string_buffer(_DQBLK.size)
    try:
        _quotactl(fd, _GET, project, answer)
    except OSError as e:
        if e.errno != errno.ENOENT:
            raise
        return Measured(0, 0, None, None)  # XFS has never had one of that number
    kib, _, nbytes, most, _, inodes, *_ = _DQBLK.unpack(answer.raw)
    return Measured(nbytes, inodes, kib * _UNIT or None, most or None)


def set_limits(fd: int, project: int, nbytes: int | None, inodes: int | None) -> None:
    """Allow *project* so much on the filesystem of *fd*; ``None`` is no limit. In the journal, not yet durable."""
    kib = 0 if nbytes is None else rounded(fd, nbytes) // _UNIT
    wanted = _DQBLK.pack(kib, 0, 0, inodes or 0, 0, 0, 0, 0, _LIMITS)
    _quotactl(fd, _SET, project, ctypes.create_string_buffer(wanted, len(wanted)))


def rounded(fd: int, nbytes: int) -> int:
    """The limit that is set for *nbytes*: whole blocks, and one at least, since 0 would be no limit."""
    block = max(os.fstatvfs(fd).f_frsize, _UNIT)
    return max(nbytes // block, 1) * block


def project_of(fd: int) -> int:
    """The project of the directory *fd* if what is made in it inherits that, else 0."""
    flags, _, _, project, _ = _attributes(fd)
    return project if flags & _PROJINHERIT else 0


def set_project(fd: int, project: int) -> None:
    """Have the directory *fd* and all that will be made in it belong to *project*."""
    flags, extent, count, _, cow = _attributes(fd)
    fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(flags | _PROJINHERIT, extent, count, project, cow))


def _attributes(fd: int) -> tuple[int, int, int, int, int]:
    flags, extent, count, project, cow = _FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))
    return flags, extent, count, project, cow


class ProjectMeter:
    """Implements ``fusevol.usage.Meter``."""

    def __init__(self, fd: int, project: int) -> None:
        """Use :meth:`open`."""
        self._fd = fd
        self._project = project

    @classmethod
    def open(cls, source: Path) -> Self:
        """The quota of the volume directory *source*.

        Raises ``OSError``: EOPNOTSUPP where project quotas are not enforced, ENODATA where it has no project.
        """
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        project = project_of(fd) if state(fd).enforced else None
        if not project:
            os.close(fd)
            if project is None:
                raise OSError(errno.EOPNOTSUPP, "project quotas are not enforced", str(source))
            raise OSError(errno.ENODATA, "it belongs to no project", str(source))
        return cls(fd, project)

    def usage(self) -> Measured:
        """See ``Meter``. XFS counts what it has set aside behind the end of a growing file."""
        return usage(self._fd, self._project)

    def set_limits(self, nbytes: int | None, inodes: int | None) -> None:
        """See ``Meter``."""
        set_limits(self._fd, self._project, nbytes, inodes)
        sync_filesystem(Path(f"/proc/self/fd/{self._fd}"))

    def close(self) -> None:
        """See ``Meter``."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        """Shows which project it is."""
        return f"<ProjectMeter {self._project}>"


def open_meter(source: Path) -> ProjectMeter:
    """See ``fusevol.quota.kernel.MODULES``."""
    return ProjectMeter.open(source)
