"""XFS and ext4 with project quotas: a volume is a directory with a project of its own, copies are copies.

The directory itself has the number of its project, and what the kernel counts says which numbers are taken: a volume
counts at least as the one inode that it is. So no table can be lost or disagree, what a killed process left is free by
itself, and other users of project quotas on the filesystem are left alone. A number is taken in two steps: give it to
the directory, then see that the kernel counts one inode; whoever sees more was not alone and tries the next. That holds
between processes, too. The alternative, numbers by chance, was dropped: XFS keeps 4 KiB for ever for each 30 numbers
that were once in use, so they should be used again and be near each other.

A volume without limits has no project. Blocks that a clone shares with its source (XFS) count in both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

from fusevol.pool import copying
from fusevol.pool.drivers.base import NO_LIMITS, Backing, Capabilities, Limits, Made, Progress
from fusevol.pool.drivers.plain import Plain
from fusevol.quota import project
from fusevol.quota.project import ProjectMeter
from fusevol.usage import Measured

_PROJECT: Final = "project"
_RANGE: Final = 1 << 20
"""Numbers that a pool has for its volumes. The ranges of two pools may be the same: it only takes them longer."""
_RANGES: Final = 2045
"""From twice the range on, below 2³¹; what others take (Kubernetes: 1048577 and up) is below."""


class PrjQuota(Plain):
    """See above."""

    name: ClassVar[str] = "prjquota"
    needs: ClassVar[str] = (
        "mount it with the option prjquota (Linux 5.14 or later; ext4 must have the features quota and project, "
        "see `tune2fs -O quota,project`)"
    )
    _allocation: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def fits(cls, pool: Path) -> bool:
        """See ``Driver``. Only for root: setting limits takes CAP_SYS_ADMIN."""
        with _opened(pool) as fd:
            return os.geteuid() == 0 and project.state(fd).enforced

    def capabilities(self) -> Capabilities:
        """See ``Driver``."""
        kept = self.fits(self.pool)
        with _opened(self.pool) as fd:
            granularity = project.names_take(fd) if kept else 0
        kind: copying.Kind = "reflink" if copying.shares_blocks(self.pool) else "copy"
        return Capabilities(
            quota_bytes=kept,
            quota_inodes=kept,
            snapshot=kind,
            clone=kind,
            usage="project quotas" if kept else "",
            shared=False,
            granularity=granularity,
            remark="" if kept else _remedy(self.pool),
        )

    def make(self, data: Path, limits: Limits) -> Backing:
        """See ``Driver``."""
        data.mkdir()
        with _opened(data) as fd:
            backing = {} if limits == NO_LIMITS else {_PROJECT: str(self._take_number(fd))}
            if backing:
                project.set_limits(fd, int(backing[_PROJECT]), *limits)
                os.utime(fd)  # or the fsync might find nothing to do, and leave the limits in the journal's memory
            os.fsync(fd)
        return backing

    def _take_number(self, fd: int) -> int:
        """A project of its own for the empty directory *fd*."""
        first = _RANGE * (2 + self.pool.stat().st_ino % _RANGES)
        with self._allocation:  # or threads would stand in each other's way
            for number in range(first, first + _RANGE):
                if project.usage(fd, number)[:2] == (0, 0):
                    project.set_project(fd, number)
                    if project.usage(fd, number).used_inodes == 1:
                        return number
        raise OSError(errno.ENOSPC, "all project numbers of the pool are taken", str(self.pool))

    def set_limits(self, data: Path, backing: Mapping[str, str], limits: Limits) -> None:  # noqa: ARG002
        """See ``Driver``."""
        with contextlib.closing(ProjectMeter.open(data)) as meter:
            meter.set_limits(*limits)

    def usage(self, data: Path, backing: Mapping[str, str]) -> Measured:  # noqa: ARG002
        """See ``Driver``."""
        with contextlib.closing(ProjectMeter.open(data)) as meter:
            return meter.usage()

    def usages(self, volumes: Mapping[str, Made]) -> dict[str, Measured]:
        """See ``Driver``. By the numbers in the records: one system call each, and no directory but the pool's."""
        found = {}
        with _opened(self.pool) as fd:
            for name, (_, backing) in volumes.items():
                with contextlib.suppress(OSError, KeyError, ValueError):
                    found[name] = project.usage(fd, int(backing[_PROJECT]))
        return found

    def remove(self, data: Path, backing: Mapping[str, str], progress: Progress | None = None) -> None:
        """See ``Driver``. While *data* is there nobody else can have its number; afterwards somebody may."""
        if data.is_dir() and not data.is_symlink():
            with _opened(data) as fd:
                number = project.project_of(fd)
                if number and project.state(fd).counted:
                    project.set_limits(fd, number, *NO_LIMITS)  # first: removing may make a directory longer
        super().remove(data, backing, progress)

    def clone(self, source: Path, backing: Mapping[str, str], target: Path, limits: Limits) -> Backing:  # noqa: ARG002
        """See ``Driver``."""
        made = self.make(target, limits)
        copying.copy_tree(source, target)
        if limits.nbytes is not None and self.usage(target, made).used_bytes > limits.nbytes:
            # ext4 lets root pass the limit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return made

    def check(self, data: Path, backing: Mapping[str, str], limits: Limits | None) -> list[str]:
        """See ``Driver``."""
        if not backing:
            return []
        with _opened(data) as fd:
            number, recorded = project.project_of(fd), backing.get(_PROJECT)
            if str(number) != recorded:
                return [f"{data} is of project {number}, not {recorded}: copy what is in it into a new volume."]
            if limits is None:
                return []
            if not project.state(fd).enforced:
                return [_remedy(data)]
            found = project.usage(fd, number)
            nbytes = None if limits.nbytes is None else project.rounded(fd, limits.nbytes)
        if (found.limit_bytes, found.limit_inodes) == (nbytes, limits.inodes):
            return []
        now = f"{found.limit_bytes} bytes and {found.limit_inodes} inodes"
        return [f"{data} is limited to {now}, not to {nbytes} and {limits.inodes}: resize the volume to its size."]


def _remedy(path: Path) -> str:
    return f"Project quotas are not enforced on the filesystem of {path}: {PrjQuota.needs}."


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
