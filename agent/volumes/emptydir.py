"""emptyDir: a volume of the pool, or in memory, that begins empty and ends with its Pod (volume-semantics 1)."""

from __future__ import annotations

from typing import Any

from agent.volumes import hugepages
from fusevol import quantity
from fusevol.errors import InvalidError
from fusevol.pool import VolumeRequest

Obj = dict[str, Any]
MODE = 0o777
MEMORY = "Memory"
MEMORY_MODE = 0o1777
"""What a tmpfs has by itself, and kubelet leaves it."""


def size_of(source: Obj) -> int | None:
    """The limit of an emptyDir in bytes; no ``sizeLimit``, or 0, is no limit (1.1)."""
    limit = source.get("sizeLimit")
    if limit is None:
        return None
    return quantity.parse(limit) or None


def check_medium(source: Obj) -> None:
    """Raise :class:`InvalidError` for a medium that is not served."""
    medium = str(source.get("medium") or "")
    if medium not in {"", MEMORY} and not hugepages.is_medium(medium):
        raise InvalidError(f"unknown storage medium {medium}")


def request(volume: str, source: Obj, owner: dict[str, str]) -> VolumeRequest:
    """The volume to provision. Raises :class:`InvalidError` for a medium or size that cannot be."""
    check_medium(source)
    if source.get("medium"):
        raise InvalidError(f"medium {source['medium']} is for the emptyDirs of Pods: leave it out.")
    mode = int(source.get("mode", MODE))
    return VolumeRequest(
        id=volume, capacity_bytes=size_of(source), inode_limit=None, owner=owner, mode=mode, labels={"kind": "emptyDir"}
    )
