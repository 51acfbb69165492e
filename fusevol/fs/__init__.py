"""The filesystem that one mount serves: nodes, open files, operations, accounting. Knows no transport and no pool."""

from __future__ import annotations

from fusevol.fs.filesystem import FileSystem, FsStats

__all__ = ["FileSystem", "FsStats"]
