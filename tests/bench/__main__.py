"""``python -m tests.bench``: all subjects side by side, rounds interleaved so that the machine's moods hit all alike.

``BENCH_ROUNDS`` (5) and ``BENCH_FILES`` (2000) make it quicker: ``BENCH_ROUNDS=1 BENCH_FILES=200 make bench``.
``BENCH_SUBJECTS`` (all) is a comma-separated list; the bare directory is always one of them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.bench import report, subjects, workloads

METADATA = ("create", "stat after 1.2 s", "stat cold", "open+read+close 4k", "rename", "unlink", "readdir 10000")
"""Where fusevol has to be ahead of bindfs. ("stat warm" is the kernel's cache for both: a tie.)"""


def measure(scratch: Path, rounds: int, files: int, wanted: list[str]) -> tuple[report.Samples, list[str], str]:
    """Mount every subject, run every workload *rounds* times. Returns samples, subject names, the backing's name."""
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    archive = scratch / "tree.tar"
    workloads.make_tar(archive)
    with contextlib.ExitStack() as stack:
        home, kind = stack.enter_context(subjects.backing(scratch))
        makers = {
            "native": subjects.native,
            "fusevol": lambda source: subjects.fusevol(source, scratch, quota=True),
            "fusevol-noquota": lambda source: subjects.fusevol(source, scratch, quota=False),
            "bindfs": lambda source: subjects.bindfs(source, scratch),
        }
        if not shutil.which("bindfs"):
            print("bench: bindfs is not installed and is left out", file=sys.stderr)
            del makers["bindfs"]
        mounted: list[subjects.Subject] = []
        for name, make in makers.items():
            if name != "native" and wanted and name not in wanted:
                continue
            source = home / name
            source.mkdir()
            workloads.make_listing(source / "listing")
            mounted.append(stack.enter_context(make(source)))
        for subject in mounted:
            samples["private memory idle", subject.name].append(subject.private_bytes() / 2**20)
        for number in range(rounds):
            # every subject is first once in a while
            for subject in mounted[number % len(mounted) :] + mounted[: number % len(mounted)]:
                _progress(f"round {number + 1} of {rounds}: {subject.name}")
                workloads.drop_caches(3)
                for workload, value in workloads.run(subject.root, files, archive):
                    samples[workload, subject.name].append(value)
                samples["private memory after work", subject.name].append(subject.private_bytes() / 2**20)
        _progress("")
        return samples, [subject.name for subject in mounted], kind


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, store. 1 if a metadata workload is slower than bindfs's."""
    rounds = int(os.environ.get("BENCH_ROUNDS", "5"))
    files = int(os.environ.get("BENCH_FILES", "2000"))
    wanted = [name for name in os.environ.get("BENCH_SUBJECTS", "").split(",") if name]
    if os.geteuid() != 0:
        print("bench: run it as root; it drops the kernel's caches and mounts.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was mounted is unmounted
    scratch = Path(tempfile.mkdtemp(prefix="fvbench."))
    try:
        samples, names, kind = measure(scratch, rounds, files, wanted)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    title = f"fusevol on Linux {platform.release()}, {kind}, {os.cpu_count()} CPUs, medians of {rounds} rounds"
    results = report.rows(samples, names)
    print(title)
    print(report.table(results, names))
    folder = Path("build/bench")
    report.store(results, names, title, folder)
    print(f"\nStored in {folder}/latest.json and {folder}/latest.png. (1.00x = as fast as the bare directory.)")
    slower = report.behind(results, METADATA)
    if slower:
        print(f"bench: not ahead of bindfs in: {', '.join(slower)}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
