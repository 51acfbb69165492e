"""Workloads on names: making, looking up, opening, renaming, removing, listing.

The calls are system calls made from Python, whose own cost (well under a microsecond each) is the same for every
subject. *Warm* follows a pass over the same tree, *cold* follows :meth:`Subject.forget_names`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench.plan import LISTING, Plan
from tests.bench.subjects import Subject

BLOCK = b"x" * 4096


def make_listing(directory: Path) -> None:
    """The files of the listing workloads, made on the backing directory before anything is mounted."""
    directory.mkdir()
    for i in range(LISTING):
        (directory / f"file-{i:05d}").touch()


def names(subject: Subject, work: Path, plan: Plan) -> Iterator[tuple[str, float]]:
    """Work on *plan.files* files in *work*; microseconds per operation."""
    empty = [f"{work}/empty-{i}" for i in range(plan.files)]
    full = [f"{work}/full-{i}" for i in range(plan.files)]
    moved = [f"{path}-moved" for path in full]
    yield "create", _per_op(_create, empty)
    yield "create+write 4k", _per_op(_create_and_write, full)
    _per_op(os.stat, full)
    yield "stat warm", _per_op(os.stat, full)
    time.sleep(1.2)  # what is measured: whether caches outlive the second that is FUSE's usual time-out
    yield "stat after 1.2 s", _per_op(os.stat, full)
    subject.forget_names()
    yield "stat cold", _per_op(os.stat, full)
    yield "open+read+close 4k", _per_op(_open_and_read, full)
    start = time.perf_counter()
    for old, new in zip(full, moved, strict=True):
        os.rename(old, new)
    yield "rename", (time.perf_counter() - start) / len(full) * 1e6
    yield "unlink", _per_op(os.unlink, moved)


def listing(subject: Subject, plan: Plan) -> Iterator[tuple[str, float]]:
    """List the directory of :func:`make_listing`, alone and with every file's attributes; milliseconds."""
    directory = subject.root / "listing"

    def only_names() -> None:
        if len(os.listdir(directory)) != LISTING:
            raise AssertionError(f"{directory} does not list {LISTING} files")

    def with_attributes() -> None:
        with os.scandir(directory) as entries:
            for entry in entries:
                os.lstat(entry.path)

    for work, name in ((only_names, "readdir 10000"), (with_attributes, "readdir+stat 10000")):
        subject.forget_names()
        yield f"{name} cold", _milliseconds(work)
        work()  # FUSE's cache of a directory is complete after the second pass: the first may have asked for attributes
        yield f"{name} warm", _milliseconds(work)
    subject.forget_names()  # some servers hold a descriptor for each


def _per_op(step: Callable[[str], object], paths: Sequence[str]) -> float:
    start = time.perf_counter()
    for path in paths:
        step(path)
    return (time.perf_counter() - start) / len(paths) * 1e6


def _milliseconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _create_and_write(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, BLOCK)
    os.close(fd)


def _open_and_read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)
