"""What fusevol promises of its speed, and whether a run has shown it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.kinds import KINDS, of

SERVED: Final = tuple(name for name in (*of("names"), *of("listing")) if name not in {"stat warm", "stat after 1.2 s"})
"""Metadata that a server is asked for. ("stat warm" is the kernel's cache in all, and so is "stat after 1.2 s" where
caches live for more than a second: ties.)"""
BASIC: Final = ("create", "stat cold", "open+read+close 4k", "rename", "unlink")


@dataclass(frozen=True, slots=True)
class Promise:
    """*subject* is at least *least* times as good as *against* in each of *workloads*."""

    text: str
    workloads: tuple[str, ...]
    subject: str
    against: str
    least: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise and how many times as good the subject was; ``times`` is empty where one of the two was left out."""

    promise: Promise
    times: Mapping[str, float]

    @property
    def worst(self) -> str | None:
        """The workload with the smallest number."""
        return min(self.times, key=self.times.__getitem__, default=None)

    @property
    def holds(self) -> bool | None:
        """``None``: not measured."""
        return all(value >= self.promise.least for value in self.times.values()) if self.times else None


AHEAD_OF_BINDFS: Final = Promise("metadata: ahead of bindfs", (*SERVED, "stat after 1.2 s"), "fusevol", "bindfs", 1.0)
PROMISES: Final = (
    AHEAD_OF_BINDFS,
    Promise("data, passthrough: 0.9 of native", of("data"), "fusevol-noquota", "native", 0.9),
    Promise("data, passthrough: 0.9 of native btrfs", of("data"), "noquota-btrfs", "native-btrfs", 0.9),
    Promise("metadata on /dev/fuse, ledger: passthrough_hp's", SERVED, "fusevol", "passthrough_hp", 1.0),
    Promise("metadata on /dev/fuse, no quota: passthrough_hp's", SERVED, "fusevol-noquota", "passthrough_hp", 1.0),
    Promise("io_uring, ledger: 1.5 of passthrough_hp", BASIC, "fusevol-uring", "passthrough_hp", 1.5),
    Promise("io_uring, no quota: 1.5 of passthrough_hp", BASIC, "fusevol-uring-noquota", "passthrough_hp", 1.5),
    Promise("warm: 0.8 of native", ("stat warm", "readdir 10000 warm"), "fusevol", "native", 0.8),
)


def judge(results: Sequence[Mapping[str, Any]], promises: Sequence[Promise] = PROMISES) -> list[Verdict]:
    """Hold *results* (rows of :func:`tests.bench.report.rows`) against *promises*."""
    values = {(row["workload"], row["subject"]): row["value"] for row in results}
    better = {kind.name: kind.better for kind in KINDS}
    verdicts = []
    for promise in promises:
        times = {}
        for workload in promise.workloads:
            ours, theirs = values.get((workload, promise.subject)), values.get((workload, promise.against))
            if ours and theirs:
                times[workload] = ours / theirs if better[workload] == "higher" else theirs / ours
        verdicts.append(Verdict(promise, times))
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """Two lines per promise: the verdict with the number that decides it, and all numbers."""
    lines = []
    for verdict in verdicts:
        promise = verdict.promise
        if verdict.worst is None:
            lines.append(f"{'not measured':15} {promise.text}")
            continue
        said = "holds" if verdict.holds else "does not hold"
        number = f"{_down(verdict.times[verdict.worst])} ({verdict.worst})"
        lines.append(f"{said:15} {promise.text:50} at least {promise.least:g}, worst {number}")
        lines.append(" " * 16 + ", ".join(f"{name} {_down(value)}" for name, value in verdict.times.items()))
    return "\n".join(lines)


def _down(value: float) -> str:
    """Two digits, never more than there is: what does not hold by a little must not look as if it did."""
    return f"{math.floor(value * 100) / 100:.2f}"
