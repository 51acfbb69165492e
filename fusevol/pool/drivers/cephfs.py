"""CephFS: a volume is a directory that any node may mount; the ledger keeps its limits, unless several nodes write.

*Why not CephFS's own quota?* Its clients keep it, each by counts of the whole directory that come from an MDS, level by
level, with seconds between two. Measured (16.2, one MDS, ceph-fuse, a limit of 64 MiB): one file stops at the byte, but
eight files in the directory itself passed it by up to 22 %, eight files six levels deep by 973 %, and two clients
by 1146 %, within a second each. What was deleted there counted for up to 20 s more. That is no hard limit. The ledger
is exact; but it knows only what its own server writes.

*So* a volume of one node has the ledger, and CephFS's quota at twice the limit, as a second line: it stops, some time,
whoever mounts the directory past fusevol, and is so far away that counts which are late never stop a writer whom the
ledger has let pass (at the limit itself they did, after each large deletion). A volume that several nodes may write to
at once has CephFS's quota alone, as late as it is.

*Snapshots.* ``.snap`` gives one moment in time, but cannot outlive the directory that it is of. So a snapshot is taken
there, copied, and given up. Where snapshots are off, or the client may not take any (the ``s`` of MDS capabilities),
the copy is of the files as they are.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Final

from fusevol.errors import ForbiddenError
from fusevol.pool import copying
from fusevol.pool.drivers.base import NO_LIMITS, Backing, Capabilities, Limits, Made, Progress
from fusevol.pool.drivers.plain import Plain
from fusevol.quota import cephquota
from fusevol.usage import Measured

log = logging.getLogger(__name__)

_AT_ONCE: Final = 8
"""Questions to the cluster at the same time."""
SECOND_LINE: Final = 2
"""How many times the limit of a volume with a ledger CephFS may count in it."""
_NAMESPACE: Final = "ceph.dir.layout.pool_namespace"
_MOMENT: Final = "fusevol-"
"""Begins the names of the snapshots that are taken here. CephFS keeps names that begin with ``_`` for itself."""
_NO_SNAPSHOTS: Final = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL}


class CephFS(Plain):
    """See above."""

    name: ClassVar[str] = "cephfs"

    def __init__(self, pool: Path) -> None:
        """See ``Driver``."""
        super().__init__(pool)
        self._moments: set[str] = set()
        """Snapshots that a living thread copies from."""
        self._lock = threading.Lock()

    @classmethod
    def fits(cls, pool: Path) -> bool:
        """See ``Driver``."""
        return cephquota.is_ceph(pool)

    def capabilities(self) -> Capabilities:
        """See ``Driver``."""
        return Capabilities(
            quota_bytes=False,
            quota_inodes=False,
            quota_shared=True,
            snapshot="copy",
            clone="copy",
            usage="ceph.dir.rbytes and ceph.dir.rentries, late",
            shared=True,
            granularity=0,
            remark="Limits of volumes that several nodes write to (ReadWriteMany) are CephFS's own, which stop writers "
            "late: one node (ReadWriteOnce) has exact ones.",
        )

    def make(self, data: Path, limits: Limits) -> Backing:
        """See ``Driver``."""
        super().make(data, limits)
        backing = {}
        try:
            # objects of its own, so that a Ceph user may be given this volume's and no other
            os.setxattr(data, _NAMESPACE, f"fusevol-{data.parent.name}".encode())
            backing = {"namespace": f"fusevol-{data.parent.name}"}
        except PermissionError as e:
            log.info("%s shares its namespace of objects with others: %s", data, e)
        self.set_limits(data, backing, limits)
        return backing

    def set_limits(self, data: Path, backing: Mapping[str, str], limits: Limits) -> None:  # noqa: ARG002
        """See ``Driver``. Raises :class:`ForbiddenError` where the Ceph client may set no quotas."""
        try:
            cephquota.set_limits(data, limits.nbytes, limits.inodes)
        except PermissionError as e:
            raise ForbiddenError(
                f"The Ceph client that has mounted {self.pool} may set no quotas: give it the MDS capability `p` "
                "(`ceph auth caps … mds 'allow rwp'`), or use another one."
            ) from e

    def second_line(self, data: Path, backing: Mapping[str, str], limits: Limits) -> None:
        """See ``Driver``."""
        far = Limits(*(None if limit is None else SECOND_LINE * limit for limit in limits))
        try:
            self.set_limits(data, backing, far)
        except ForbiddenError as e:
            log.info("%s has no second line behind its ledger: %s", data, e)

    def usage(self, data: Path, backing: Mapping[str, str]) -> Measured:  # noqa: ARG002
        """See ``Driver``."""
        return cephquota.measure(data)

    def usages(self, volumes: Mapping[str, Made]) -> dict[str, Measured]:
        """See ``Driver``. An MDS may be asked for each, so several at a time."""

        def ask(name: str) -> tuple[str, Measured | None]:
            try:
                return name, cephquota.measure(volumes[name][0])
            except OSError:
                return name, None

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="usage") as threads:
            return {name: found for name, found in threads.map(ask, volumes) if found is not None}

    def remove(self, data: Path, backing: Mapping[str, str], progress: Progress | None = None) -> None:
        """See ``Driver``."""
        if data.is_dir() and not data.is_symlink():
            self._forget_moments(data)
        super().remove(data, backing, progress)

    def snapshot(self, data: Path, backing: Mapping[str, str], target: Path) -> Backing:
        """See ``Driver``."""
        return self.clone(data, backing, target, NO_LIMITS)

    def clone(self, source: Path, backing: Mapping[str, str], target: Path, limits: Limits) -> Backing:
        """See ``Driver``."""
        backing = self.make(target, NO_LIMITS)
        with self._moment(source) as moment:
            copying.copy_tree(moment, target)
        self.set_limits(target, backing, limits)
        return dict(backing)

    @contextlib.contextmanager
    def _moment(self, data: Path) -> Iterator[Path]:
        """*data* as it is now, unchangeable where CephFS can do that."""
        self._forget_moments(data)
        moment = data / ".snap" / f"{_MOMENT}{uuid.uuid4().hex}"
        with self._lock:
            self._moments.add(moment.name)
        try:
            try:
                moment.mkdir()
            except OSError as e:
                if e.errno not in _NO_SNAPSHOTS:
                    raise
                log.info("%s is copied while it may change: its CephFS takes no snapshot (%s)", data, e.strerror)
                yield data
                return
            try:
                yield moment
            finally:
                moment.rmdir()
        finally:
            with self._lock:
                self._moments.discard(moment.name)

    def _forget_moments(self, data: Path) -> None:
        """Remove what copies have left that were killed: a directory that has a snapshot cannot be removed."""
        try:
            names = os.listdir(data / ".snap")
        except OSError as e:
            if e.errno not in _NO_SNAPSHOTS:
                raise
            return
        with self._lock:
            left = [n for n in names if n.startswith(_MOMENT) and n not in self._moments]
        for name in left:
            (data / ".snap" / name).rmdir()

    def check(self, data: Path, backing: Mapping[str, str], limits: Limits | None) -> list[str]:  # noqa: ARG002
        """See ``Driver``."""
        if limits is None:
            return []
        found = cephquota.measure(data)
        if Limits(found.limit_bytes, found.limit_inodes) == limits:
            return []
        kept = f"{found.limit_bytes} bytes and {found.limit_inodes} inodes"
        return [
            f"CephFS limits {data} to {kept}, not {limits.nbytes} and {limits.inodes}: resize the volume to its size."
        ]
