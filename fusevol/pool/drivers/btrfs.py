"""btrfs: a volume is a subvolume, its quota group has the limit, snapshots and clones are snapshots of it.

What is counted are the bytes that a subvolume refers to, its metadata included, shared with snapshots or not ("full"
quotas); with simple quotas (Linux 6.7) what it was the first to write, so that a clone begins at nothing. Which of both
was settled when quotas were switched on. Limits of inodes do not exist in btrfs: a volume that asks for one has the
ledger for both limits, and so no passthrough. The alternative, the kernel for bytes and a ledger for inodes, would show
two usages that differ, in one ``df``.

Quotas are switched on by who makes the filesystem (``fusevol pool create``), never here: that slows a whole filesystem
down, which may be somebody else's. Where they are off, all but the limits is as good, and the ledger keeps those.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

from fusevol import btrfs
from fusevol.pool import removal
from fusevol.pool.drivers.base import Backing, Capabilities, Driver, Limits, Made, Progress
from fusevol.quota.qgroup import QgroupMeter, measure
from fusevol.usage import Measured

log = logging.getLogger(__name__)

_SUBVOLUME: Final = "subvolume"
GRANULARITY: Final = 64 << 10
"""A writer of one large file was stopped 32 KiB too early: nodes of metadata count, and a write reserves some more.
Many small files take more of them, which is space that they use, not error."""
_PATIENCE: Final = 60.0
"""Seconds that a purge waits for a removed subvolume to be freed, so that its quota group can go, too."""


class Btrfs(Driver):
    """See above."""

    name: ClassVar[str] = "btrfs"

    @classmethod
    def fits(cls, pool: Path) -> bool:
        """See ``Driver``. Only for root: others may not remove subvolumes, as a rule."""
        if os.geteuid() != 0:
            return False
        with _opened(pool) as fd:
            return btrfs.filesystem(fd) is not None

    def capabilities(self) -> Capabilities:
        """See ``Driver``."""
        with _opened(self.pool) as fd:
            fsid = btrfs.filesystem(fd)
        state = btrfs.quota_state(fsid) if fsid is not None else btrfs.QuotaState("", True)
        kept = bool(state.mode) and os.geteuid() == 0
        return Capabilities(
            quota_bytes=kept,
            quota_inodes=False,
            snapshot="instant",
            clone="instant",
            usage=f"quota groups ({'simple' if state.mode == 'squota' else 'full'})" if kept else "",
            shared=False,
            granularity=GRANULARITY if kept else 0,
            remark="" if kept else f"Quotas are off: `btrfs quota enable {self.pool}` has the kernel keep new limits.",
        )

    def make(self, data: Path, limits: Limits) -> Backing:
        """See ``Driver``."""
        with _opened(data.parent) as parent:
            btrfs.create(parent, data.name, limits.nbytes)
        return _backing(data)

    def set_limits(self, data: Path, backing: Mapping[str, str], limits: Limits) -> None:  # noqa: ARG002
        """See ``Driver``."""
        QgroupMeter.open(data).set_limits(limits.nbytes, limits.inodes)

    def usage(self, data: Path, backing: Mapping[str, str]) -> Measured:  # noqa: ARG002
        """See ``Driver``."""
        return QgroupMeter.open(data).usage()

    def remove(self, data: Path, backing: Mapping[str, str], progress: Progress | None = None) -> None:
        """See ``Driver``."""
        with _opened(data.parent) as parent:
            number = _number(data)
            if number is not None:
                _destroy(parent, data)
            elif data.is_dir() and not data.is_symlink():  # of before the pool was one of subvolumes
                removal.empty(data, progress)
                data.rmdir()
            # removed before, it may not be freed yet
            if number := number or int(backing.get(_SUBVOLUME, 0)):
                _await_freed(parent, number)

    def usages(self, volumes: Mapping[str, Made]) -> dict[str, Measured]:
        """See ``Driver``. From sysfs, by the numbers in the records: the filesystem itself is asked once."""
        with _opened(self.pool) as fd:
            fsid = btrfs.filesystem(fd) or ""
        found = {}
        for name, (_, backing) in volumes.items():
            with contextlib.suppress(OSError, KeyError, ValueError):
                found[name] = measure(fsid, int(backing[_SUBVOLUME]))
        return found

    def snapshot(self, data: Path, backing: Mapping[str, str], target: Path) -> Backing:  # noqa: ARG002
        """See ``Driver``. With full quotas it has the limit of *data*, which says nothing to what cannot be written."""
        with _opened(data) as fd, _opened(target.parent) as parent:
            btrfs.snapshot(fd, parent, target.name, read_only=True)
        return _backing(target)

    def clone(self, source: Path, backing: Mapping[str, str], target: Path, limits: Limits) -> Backing:  # noqa: ARG002
        """See ``Driver``."""
        with _opened(source) as fd, _opened(target.parent) as parent:
            btrfs.snapshot(fd, parent, target.name, read_only=False)
            if btrfs.quota_state(btrfs.filesystem(parent) or "").mode and os.geteuid() == 0:
                # not in the same step: with full quotas the source's limit would win
                with _opened(target) as made:
                    btrfs.set_limit(made, limits.nbytes)
                btrfs.sync(parent)
        return _backing(target)

    def check(self, data: Path, backing: Mapping[str, str], limits: Limits | None) -> list[str]:
        """See ``Driver``."""
        number = _number(data)
        if number is None:
            return [f"{data} is no subvolume any more: copy it into a new volume."] if backing else []
        if limits is None:
            return []
        with _opened(data) as fd:
            state = btrfs.quota_state(btrfs.filesystem(fd) or "")
        if not state.mode:
            return [f"Quotas are off on the filesystem of {data}: switch them on (`btrfs quota enable {self.pool}`)."]
        found = []
        if not state.consistent:
            found.append(
                f"The quota counts of the filesystem of {data} are inconsistent: run `btrfs quota rescan {self.pool}`."
            )
        limit = self.usage(data, backing).limit_bytes
        if limit != limits.nbytes:
            found.append(f"{data} is limited to {limit} bytes, not {limits.nbytes}: resize the volume to its size.")
        return found


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _number(data: Path) -> int | None:
    """The id of the subvolume whose root is *data*; ``None`` if it is none, or nothing."""
    try:
        st = data.lstat()
    except FileNotFoundError:
        return None
    if st.st_ino != btrfs.ROOT_INODE or not stat.S_ISDIR(st.st_mode):
        return None
    with _opened(data) as fd:
        return btrfs.subvolume(fd) if btrfs.filesystem(fd) is not None else None


def _backing(data: Path) -> Backing:
    return {_SUBVOLUME: str(_number(data))}


def _destroy(parent: int, data: Path) -> None:
    try:
        btrfs.destroy(parent, data.name)
    except OSError as e:
        if e.errno != errno.ENOTEMPTY:
            raise
        # subvolumes that a user has made in it: for the administrator to look at
        raise removal.refusal(data, "something") from e


def _await_freed(parent: int, number: int) -> None:
    """Wait until the space of a removed subvolume can be used again, and have its quota group go as well."""
    # SUBVOL_SYNC_WAIT (Linux 6.13) waits as well, but wakes nobody, which takes up to 30 s; and one waking is not
    # always enough, since inodes that are still in memory keep the subvolume
    end, pause = time.monotonic() + _PATIENCE, 0.01
    btrfs.sync(parent)
    while btrfs.exists(parent, number) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
        btrfs.sync(parent)
    btrfs.sync(parent)  # what the freed subvolume counted is taken off at the end of the transaction that freed it
    if _counted(parent, number):
        log.warning("the quota group 0/%d stays: it still counts something of a removed subvolume", number)
        return
    try:
        btrfs.destroy_qgroup(parent, number)
    except OSError as e:
        if e.errno == errno.EBUSY:
            log.info("the quota group 0/%d stays: snapshots use what its subvolume has written", number)
        elif e.errno not in {errno.ENOENT, errno.ENOTCONN}:  # newer kernels remove it; quotas are off
            raise
    btrfs.sync(parent)  # freed blocks can be used in the next transaction


def _counted(parent: int, number: int) -> bool:
    """Whether a full quota group may not go yet.

    When one that counts something is removed, Linux (6.11 and later) takes all counts of the filesystem for wrong, and
    keeps no limit there any more until somebody has them counted again.
    """
    fsid = btrfs.filesystem(parent) or ""
    if btrfs.quota_state(fsid).mode != "qgroup":
        return False
    try:
        return btrfs.quota_group(fsid, number).referenced > 0
    except FileNotFoundError:
        return False
