"""Programs that torment mounts (:mod:`tests.support.torment`), and what they felt while somebody killed processes."""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.polling import eventually

_PROGRAM = Path(__file__).parent / "torment.py"


@dataclass
class Torment:
    """One program."""

    kind: str
    place: Path
    process: subprocess.Popen[str]
    result: dict[str, Any] = field(default_factory=dict)
    """What it said at its end; empty if it failed."""

    def longest(self, since: float, until: float, where: str = "long") -> float:
        """Seconds of the longest system call that was under way between two moments (time.monotonic); *where* is
        ``long_bare`` for those beside the mount. None is longer than :data:`tests.support.torment.LONG` if it is 0."""
        return max((took for began, took in self.result[where] if began < until and began + took > since), default=0.0)


class Torments:
    """All programs of one test; counts their steps."""

    def __init__(self, counters: Path) -> None:
        self._counters = counters
        self._counters.write_bytes(bytes(mmap.PAGESIZE))
        self._bare = counters.with_name(f"{counters.name}.bare")
        self.all: list[Torment] = []

    def start(self, mountpoint: Path, kinds: Sequence[str]) -> None:
        """One program of each kind, in a directory of its own in the mount."""
        for kind in kinds:
            place = mountpoint / f"{kind}{len(self.all)}"
            bare = self._bare / str(len(self.all))
            place.mkdir()
            bare.mkdir(parents=True)
            command = [sys.executable, "-IS", _PROGRAM, kind, place, bare, self._counters, str(len(self.all))]
            process = subprocess.Popen(
                list(map(os.fspath, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self.all.append(Torment(kind, place, process))

    def steps(self) -> list[int]:
        """How many steps each has done."""
        words = self._counters.read_bytes()
        return [struct.unpack_from("=Q", words, index * 8)[0] for index in range(len(self.all))]

    def go_on(self, more: int, timeout: float = 30.0) -> None:
        """Wait until each has done so many steps *more*, or has failed: then the test need not go on."""
        before = self.steps()

        def enough() -> bool:
            self.check()
            return all(now >= then + more for then, now in zip(before, self.steps(), strict=True))

        eventually(enough, timeout, what=f"every program goes on; steps before {before}, now {self.steps()}")

    def check(self) -> None:
        """Raise what a program said that has ended by itself."""
        for torment in self.all:
            if torment.process.poll() is not None:
                raise RuntimeError(f"{torment.kind} in {torment.place} ended: {torment.process.communicate()[1]}")

    def stop(self) -> list[str]:
        """End them; what those said that failed."""
        complaints = []
        for torment in self.all:
            torment.process.send_signal(signal.SIGTERM)
        for torment in self.all:
            out, errors = torment.process.communicate(timeout=60)
            if torment.process.returncode == 0:
                torment.result = json.loads(out)
            else:
                complaints.append(f"{torment.kind} in {torment.place}: {torment.process.returncode}: {errors}")
        return complaints

    def report(self) -> list[str]:
        """What they did, in a line each, and all of them; after :meth:`stop`."""
        results = [(f"{t.kind} in {t.place.parent.name}", t.result) for t in self.all if t.result]
        lines = [f"{name}: {r['steps']:,} steps, {r['calls']:,} calls, {r['checked']:,} checked" for name, r in results]
        calls, checked = (sum(r[what] for _, r in results) for what in ("calls", "checked"))
        return [*lines, f"all: {calls:,} system calls, {checked:,} results checked against the model"]

    def kill(self) -> None:
        """End them, whatever they are doing."""
        for torment in self.all:
            if torment.process.poll() is None:
                torment.process.kill()
                torment.process.communicate(timeout=60)


def figures(times: Iterable[float]) -> str:
    """Percentiles of *times* in milliseconds."""
    found = sorted(times)
    if not found:
        return "never"
    at = {p: found[min(len(found) - 1, len(found) * p // 100)] for p in (50, 90, 99)}
    return f"{len(found)} times, ms: {' '.join(f'p{p} {ms:.1f}' for p, ms in at.items())} max {found[-1]:.1f}"
