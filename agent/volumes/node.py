"""What a node has to give: where a container sets no limit, that is what it is told (volume-semantics 3.5)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as its Pods see it."""

    name: str = "localhost"
    cpus: int = 1
    memory: int = 0
    """Bytes; 0: not known."""
    storage: int = 0
    """Bytes of the filesystem that ephemeral data is on."""
    huge_pages: frozenset[int] = frozenset()
    """The sizes that its huge pages have, in bytes."""

    @classmethod
    def here(cls, name: str, storage: str | Path) -> Self:
        """This machine; *storage* is a directory on the filesystem of its ephemeral data."""
        try:
            found = os.statvfs(storage)
            size = found.f_blocks * found.f_frsize
        except OSError:
            size = 0
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # hugepages-2048kB (Documentation/admin-guide/mm/hugetlbpage.rst)
        huge = frozenset(int(d.name[10:-2]) << 10 for d in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"))
        return cls(name=name, cpus=os.cpu_count() or 1, memory=memory, storage=size, huge_pages=huge)
