"""What a node is called, and what it has to give: a container without limits is told that (volume-semantics 3.5)."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

TOPOLOGY: Final = "topology.fusevol.io/node"
"""The label, and the key of CSI's topology, that names the node of a volume."""
_VALUE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
"""What uname(2) says, and Go (``GOARCH``)."""


def segment(name: str) -> str:
    """The node's name, where a label can have it as its value; else what stands for it."""
    if _VALUE.fullmatch(name):
        return name
    return f"node-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


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
    labels: Mapping[str, str] = field(default_factory=dict)
    """Those that a kubelet gives it, and more."""

    @classmethod
    def here(cls, name: str, storage: str | Path, labels: Mapping[str, str] | None = None) -> Self:
        """This machine; *storage* is a directory on the filesystem of its ephemeral data, *labels* are more of them."""
        try:
            found = os.statvfs(storage)
            size = found.f_blocks * found.f_frsize
        except OSError:
            size = 0
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # hugepages-2048kB (Documentation/admin-guide/mm/hugetlbpage.rst)
        huge = frozenset(int(d.name[10:-2]) << 10 for d in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"))
        machine = platform.machine()
        every = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _ARCHITECTURES.get(machine, machine),
            TOPOLOGY: segment(name),
            **(labels or {}),
        }
        return cls(name=name, cpus=os.cpu_count() or 1, memory=memory, storage=size, huge_pages=huge, labels=every)
