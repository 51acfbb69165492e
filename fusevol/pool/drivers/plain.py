"""Any directory of any POSIX filesystem: a volume is a directory, the ledger keeps its limits, copies are copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from fusevol.files import sync_directory
from fusevol.pool import copying, removal
from fusevol.pool.drivers.base import Backing, Capabilities, Driver, Limits, Progress
from fusevol.usage import Measured


class Plain(Driver):
    """See above. Also what drivers build upon whose volumes are directories."""

    name: ClassVar[str] = "plain"

    @classmethod
    def fits(cls, pool: Path) -> bool:  # noqa: ARG003  # fits everywhere
        """See ``Driver``."""
        return True

    def capabilities(self) -> Capabilities:
        """See ``Driver``."""
        kind: copying.Kind = "reflink" if copying.shares_blocks(self.pool) else "copy"
        return Capabilities(
            quota_bytes=False, quota_inodes=False, snapshot=kind, clone=kind, usage="", shared=False, granularity=0
        )

    def make(self, data: Path, limits: Limits) -> Backing:  # noqa: ARG002  # the ledger keeps them
        """See ``Driver``."""
        data.mkdir()
        sync_directory(data)
        return {}

    def set_limits(self, data: Path, backing: Mapping[str, str], limits: Limits) -> None:
        """See ``Driver``."""
        raise NotImplementedError(f"the kernel keeps no limits for {data}")

    def usage(self, data: Path, backing: Mapping[str, str]) -> Measured:
        """See ``Driver``."""
        raise NotImplementedError(f"the kernel counts nothing for {data}")

    def remove(self, data: Path, backing: Mapping[str, str], progress: Progress | None = None) -> None:  # noqa: ARG002
        """See ``Driver``."""
        if data.is_dir() and not data.is_symlink():
            removal.empty(data, progress)
            data.rmdir()

    def snapshot(self, data: Path, backing: Mapping[str, str], target: Path) -> Backing:  # noqa: ARG002
        """See ``Driver``."""
        copying.copy_tree(data, target)
        return {}

    def clone(self, source: Path, backing: Mapping[str, str], target: Path, limits: Limits) -> Backing:  # noqa: ARG002
        """See ``Driver``."""
        copying.copy_tree(source, target)
        return {}

    def check(self, data: Path, backing: Mapping[str, str], limits: Limits | None) -> list[str]:  # noqa: ARG002
        """See ``Driver``."""
        if limits is None:
            return []
        return [f"The limits of {data} are not kept by its filesystem any more: move the volume's data to a new one."]
