"""``python -m tests.bench``: all subjects side by side, group by group and round by round.

A group of workloads runs on one subject after the other before the next group begins, so that the machine's moods hit
all alike. ``BENCH=quick`` for one small round; ``BENCH_ROUNDS`` and ``BENCH_FILES`` change either form;
``BENCH_SUBJECTS`` (all) is a comma-separated list, to which the bare directories are added.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import caches, data, names, plan, programs, promises, report, subjects
from tests.bench.kinds import Group
from tests.bench.programs import Material
from tests.bench.subjects import Entry, LeftOutError, Place, Subject
from tests.support import postgres

Found = dict[tuple[str, str], list[float]]


def _wanted(environment: dict[str, str]) -> list[Entry]:
    """The subjects to measure. Raises :class:`ValueError` with a sentence."""
    chosen = [name for name in environment.get("BENCH_SUBJECTS", "").split(",") if name]
    known = {entry.name: entry for entry in subjects.ENTRIES}
    for name in chosen:
        if name not in known:
            raise ValueError(f"BENCH_SUBJECTS names {name!r}: there are {', '.join(known)}.")
    needed = {known[name].native for name in chosen} | set(chosen)
    return [entry for entry in subjects.ENTRIES if not chosen or entry.name in needed]


def _home(stack: contextlib.ExitStack, scratch: Path, kind: subjects.FilesystemKind, plain: Path) -> Path:
    """A new filesystem, or *plain* in the place of XFS where none can be made. Raises :class:`LeftOutError`."""
    try:
        return stack.enter_context(subjects.backing(scratch, kind))
    except LeftOutError as e:
        if kind != "xfs":
            raise
        print(f"bench: {e}: what is said to be on it is in a directory of {scratch.parent}", file=sys.stderr)
        plain.mkdir()
        return plain


def _mount(
    stack: contextlib.ExitStack, scratch: Path, entries: list[Entry], material: Material
) -> tuple[list[Subject], str]:
    """Make the backing filesystems and enter all subjects that can be had; others are told of and left out.

    Returns the subjects, and the filesystems in words.
    """
    homes: dict[str, Path] = {}
    plain = scratch / "plain"
    entered = []
    for entry in entries:
        try:
            home = homes.get(entry.on) or homes.setdefault(entry.on, _home(stack, scratch, entry.on, plain))
            place = Place(home / entry.name, scratch / entry.name)
            place.source.mkdir()
            place.scratch.mkdir()
            if "listing" in entry.groups:
                names.make_listing(place.source / "listing")
            if "programs" in entry.groups and entry.identities and material.postgres:
                material.postgres.copy_to(place.source)
            root, pid = stack.enter_context(entry.make(place, entry.name))
        except LeftOutError as e:
            print(f"bench: {entry.name} is left out: {e}", file=sys.stderr)
            continue
        point = root if root != place.source else home if home != plain else None
        entered.append(Subject(entry.name, place.source, root, point, entry.groups, entry.identities, pid))
    return entered, " and ".join(
        "a plain directory" if home == plain else f"{kind} on a loop device" for kind, home in homes.items()
    )


def _run(group: Group, subject: Subject, sizes: plan.Plan, material: Material) -> Iterator[tuple[str, float]]:
    work = subject.root / "work"
    work.mkdir()
    try:
        match group:
            case "names":
                yield from names.names(subject, work, sizes)
            case "listing":
                yield from names.listing(subject, sizes)
            case "data":
                yield from data.data(subject, work, sizes)
            case "programs":
                yield from programs.programs(subject, work, sizes, material)
            case "memory":
                yield "private memory after work", subject.private_bytes() / 2**20
    finally:
        shutil.rmtree(work)
    caches.flush(subject.source)
    caches.settle(subject.pid)


@dataclass
class Run:
    """What a run has found; a failed workload is told of, and the group ends there in that round."""

    samples: Found = field(default_factory=lambda: defaultdict(list))
    subjects: list[str] = field(default_factory=list)
    rounds: int = 0
    backing: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, group: Group, subject: Subject, values: Iterator[tuple[str, float]]) -> None:
        """Run one group of workloads on one subject."""
        try:
            for workload, value in values:
                self.samples[workload, subject.name].append(value)
        except (OSError, RuntimeError, AssertionError, sqlite3.Error, subprocess.SubprocessError) as e:
            said = getattr(e, "stderr", None) or ""
            self.failures.append(f"{group} of {subject.name} in round {self.rounds + 1}: {e} {said[:300]}".rstrip())


def measure(scratch: Path, sizes: plan.Plan, entries: list[Entry]) -> Run:
    """Mount every subject, run every workload."""
    begun = time.monotonic()
    run = Run()
    server = postgres.installed(scratch)
    if server:
        _progress("preparing: PostgreSQL")
        server.prepare()
    else:
        print("bench: pgbench is left out: Debian's package postgresql is not installed", file=sys.stderr)
    _progress("preparing: source tree, mounts")
    material = programs.make_material(scratch, sizes, server)
    with contextlib.ExitStack() as stack:
        mounted, run.backing = _mount(stack, scratch, entries, material)
        run.subjects = [subject.name for subject in mounted]
        for subject in mounted:
            if "memory" in subject.groups:
                run.samples["private memory idle", subject.name].append(subject.private_bytes() / 2**20)
        longest = 0.0
        while run.rounds < sizes.rounds and time.monotonic() - begun + longest < sizes.seconds:
            start = time.monotonic()
            for group in subjects.ALL:
                # every subject is first once in a while
                for subject in mounted[run.rounds % len(mounted) :] + mounted[: run.rounds % len(mounted)]:
                    if group in subject.groups:
                        _progress(f"round {run.rounds + 1} of {sizes.rounds}: {group}, {subject.name}")
                        run.add(group, subject, _run(group, subject, sizes, material))
            longest = max(longest, time.monotonic() - start)
            run.rounds += 1
        _progress("")
    return run


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, store. 1 if fusevol is behind bindfs in any operation on metadata, or if a workload failed."""
    try:
        sizes = plan.from_environment(dict(os.environ))
        entries = _wanted(dict(os.environ))
    except ValueError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("bench: run it as root; it mounts, and makes caches cold.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was mounted is unmounted
    load, begun = os.getloadavg()[0], time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="fvbench."))
    scratch.chmod(0o755)  # PostgreSQL runs as an ordinary user
    try:
        run = measure(scratch, sizes, entries)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    natives = {entry.name: entry.native for entry in entries if entry.name in run.subjects}
    results = report.rows(run.samples, natives)
    title = (
        f"fusevol on Linux {platform.release()}, {run.backing}, {os.cpu_count()} CPUs, "
        f"medians of {run.rounds} rounds in {time.monotonic() - begun:.0f} s, load before {load:.1f}"
    )
    print(title)
    print(report.table(results, natives))
    verdicts = promises.judge(results)
    print("\nPromises (how many times as good as what each is compared with):")
    print(promises.table(verdicts))
    folder = Path("build/bench")
    report.store(results, natives, title, folder)
    print(
        f"\nStored in {folder}/latest.json and {folder}/latest.png. (In brackets: times as good as the bare directory.)"
    )
    for failure in run.failures:
        print(f"bench: failed: {failure}", file=sys.stderr)
    behind = any(v.promise is promises.AHEAD_OF_BINDFS and v.holds is False for v in verdicts)
    return 1 if behind or run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
