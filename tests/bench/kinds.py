"""What is measured, by name: the words that workloads, report, promises and docs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Group = Literal["names", "listing", "data", "programs", "memory"]
"""Workloads that run one after the other on a subject, before the next subject has its turn."""
Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A workload's name, the unit of its values and which direction is good."""

    name: str
    group: Group
    unit: str
    better: Better


def _kinds(group: Group, unit: str, better: Better, *names: str) -> tuple[Kind, ...]:
    return tuple(Kind(name, group, unit, better) for name in names)


KINDS: Final[tuple[Kind, ...]] = (
    *_kinds("names", "us/op", "lower", "create", "create+write 4k", "stat warm", "stat after 1.2 s", "stat cold"),
    *_kinds("names", "us/op", "lower", "open+read+close 4k", "rename", "unlink"),
    *_kinds("listing", "ms", "lower", "readdir 10000 cold", "readdir 10000 warm"),
    *_kinds("listing", "ms", "lower", "readdir+stat 10000 cold", "readdir+stat 10000 warm"),
    *_kinds("data", "MB/s", "higher", "sequential write 4k", "sequential write 1M"),
    *_kinds("data", "MB/s", "higher", "sequential read 4k", "sequential read 1M", "sequential read 1M cold"),
    *_kinds("data", "MB/s", "higher", "random write 4k", "random write 1M"),
    *_kinds("data", "MB/s", "higher", "random read 4k", "random read 1M", "random read 4k cold"),
    *_kinds("data", "MB/s", "higher", "mmap write", "mmap read"),
    *_kinds("data", "us/op", "lower", "append 128 B", "write 4k + fsync"),
    *_kinds("programs", "s", "lower", "untar source tree", "git clone", "git status"),
    *_kinds("programs", "tx/s", "higher", "SQLite, WAL", "SQLite, rollback journal", "PostgreSQL, pgbench"),
    *_kinds("memory", "MiB", "lower", "private memory idle", "private memory after work"),
)


def of(group: Group) -> tuple[str, ...]:
    """The names of the workloads of a *group*."""
    return tuple(kind.name for kind in KINDS if kind.group == group)
