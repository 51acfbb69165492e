"""Volumes in memory: a tmpfs of their own, with a size (volume-semantics 1.4)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any, Final

from agent.volumes import hugepages
from agent.volumes.node import Node
from fusevol import quantity
from fusevol.transport import mount

Obj = dict[str, Any]

FSTYPE: Final = "tmpfs"
_NOSUID_NODEV: Final = 2 | 4
_PAGE: Final = 4096
_FEWEST_INODES: Final = 1024
_libc = ctypes.CDLL(None, use_errno=True)


def size(pod: Obj, limit: int | None, node: Node) -> int | None:
    """Bytes of a volume in memory: the least of what the node has, the Pod may use, and *limit*; None: nobody knows."""
    known = [n for n in (node.memory, pod_memory(pod), limit) if n]
    return min(known) if known else None


def pod_memory(pod: Obj) -> int | None:
    """Bytes of memory that the Pod may use; None if it has no limit. One container without a limit is enough for that.

    Init containers run one after the other before all others, except for those that go on (sidecars).
    """
    spec = pod["spec"]
    if own := _limit(spec):
        return own
    init = spec.get("initContainers") or []
    sidecars = [c for c in init if c.get("restartPolicy") == "Always"]
    together = [_limit(c) for c in [*(spec.get("containers") or []), *sidecars]]
    before = [_limit(c) for c in init if c not in sidecars]
    known = [n for n in together if n]
    if not known or len(known) < len(together) or None in before:
        return None
    return max(sum(known), *(n for n in before if n), 0)


def _limit(of: Obj) -> int | None:
    value = ((of.get("resources") or {}).get("limits") or {}).get("memory")
    return quantity.parse(value) or None if value is not None else None


def options(limit: int | None, *, mode: int, gid: int | None = None) -> str:
    """The mount options. An inode takes memory that ``size`` does not count, so there are as many as there are pages.

    With a group, the root is what :mod:`agent.volumes.ownership` would make of it.
    """
    words = [f"mode={mode if gid is None else mode | 0o2770:o}"]
    if limit is not None:
        words += [f"size={limit}", f"nr_inodes={max(_FEWEST_INODES, limit // _PAGE)}"]
    if gid is not None:
        words.append(f"gid={gid}")
    return ",".join(words)


def mount_at(target: Path, wanted: str) -> bool:
    """Mount a tmpfs, or a hugetlbfs if *wanted* is of one, at *target*, which is made if it is missing; ``False``: one
    that is there already stays.

    Raises ``OSError``.
    """
    huge = wanted.startswith(hugepages.PAGE_SIZE)
    kind = "hugetlbfs" if huge else FSTYPE
    found = mount.find(target)
    if found is not None and found.fstype == kind:
        if huge:
            _give_mode(target, wanted)
        return False
    target.mkdir(mode=0o750, parents=True, exist_ok=True)
    for data in (wanted,) if huge else (f"{wanted},noswap", wanted):  # noswap: since Linux 6.3
        done = _libc.mount(
            kind.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(_NOSUID_NODEV), data.encode()
        )
        code = ctypes.get_errno() if done else 0
        if code != errno.EINVAL:
            break
    if code:
        raise OSError(code, os.strerror(code), str(target))
    if huge:
        _give_mode(target, wanted)
    return True


def _give_mode(target: Path, wanted: str) -> None:
    """hugetlbfs takes no set-group-ID bit from its option ``mode`` (fs/hugetlbfs/inode.c)."""
    words = dict(word.partition("=")[::2] for word in wanted.split(","))
    target.chmod(int(words["mode"], 8))
