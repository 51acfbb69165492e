"""What is measured. Each workload runs in a directory of one subject and yields one number.

The calls are system calls made from Python, whose own cost (well under a microsecond each) is the same for every
subject. A metadata workload works on a tree of *files* small files; caches are as the name says: *warm* follows a
pass over the same tree, *cold* follows a drop of the kernel's dentries and inodes.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BLOCK = b"x" * 4096
LISTING = 10_000
"""Files in the directory that the listing workloads read."""
DATA_BYTES = 64 << 20
RANDOM_OPS = 4_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A workload's name, the unit of its values and which direction is good."""

    name: str
    unit: str
    better: Literal["higher", "lower"]


def _per_op(name: str) -> Kind:
    return Kind(name, "us/op", "lower")


def _rate(name: str) -> Kind:
    return Kind(name, "MB/s", "higher")


KINDS: tuple[Kind, ...] = (
    _per_op("create"),
    _per_op("create+write 4k"),
    _per_op("stat warm"),
    _per_op("stat after 1.2 s"),
    _per_op("stat cold"),
    _per_op("open+read+close 4k"),
    _per_op("rename"),
    _per_op("unlink"),
    Kind("readdir 10000", "ms", "lower"),
    Kind("readdir+stat 10000 warm", "ms", "lower"),
    Kind("readdir+stat 10000 cold", "ms", "lower"),
    _rate("sequential write 4k"),
    _rate("sequential read 4k"),
    _rate("sequential read 4k cold"),
    _rate("random write 4k"),
    _rate("random read 4k"),
    _rate("random read 4k cold"),
    _per_op("append 128 B"),
    Kind("untar source tree", "s", "lower"),
    Kind("private memory idle", "MiB", "lower"),
    Kind("private memory after work", "MiB", "lower"),
)


def drop_caches(what: int) -> None:
    """1 drops pages, 2 dentries and inodes, 3 both. Dirty pages are written first, so that they can be dropped."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(f"{what}\n", encoding="ascii")


def make_listing(directory: Path) -> None:
    """The 10,000 files of the listing workloads, made on the backing directory before anything is mounted."""
    directory.mkdir()
    for i in range(LISTING):
        (directory / f"file-{i:05d}").touch()


def make_tar(target: Path) -> None:
    """A source tree that is on every machine: Python's own library, without caches and installed packages."""
    library = Path(os.__file__).parent

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(info.name).name in {"__pycache__", "site-packages", "dist-packages"} else info

    with tarfile.open(target, "w") as archive:
        archive.add(library, arcname="tree", filter=wanted)


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(root: Path, files: int, archive: Path) -> Iterator[tuple[str, float]]:
    """Run every workload once below *root* (which holds ``listing``); yields name and value, leaves no trace."""
    work = root / "work"
    work.mkdir()
    yield from _metadata(work, files)
    yield from _listing(root / "listing")
    yield from _data(work / "data")
    yield "append 128 B", _append(work / "log")
    yield (
        "untar source tree",
        _timed(lambda: _check(["tar", "-xf", str(archive), "-C", str(work), "--no-same-owner"])),
    )
    shutil.rmtree(work)


def _check(command: list[str]) -> None:
    subprocess.run(command, check=True)


def _metadata(work: Path, files: int) -> Iterator[tuple[str, float]]:
    empty = [f"{work}/empty-{i}" for i in range(files)]
    full = [f"{work}/full-{i}" for i in range(files)]
    moved = [f"{path}-moved" for path in full]

    def per_op(step: Callable[[str], object], paths: list[str]) -> float:
        start = time.perf_counter()
        for path in paths:
            step(path)
        return (time.perf_counter() - start) / len(paths) * 1e6

    yield "create", per_op(lambda p: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)), empty)
    yield "create+write 4k", per_op(_create_and_write, full)
    per_op(os.stat, full)
    yield "stat warm", per_op(os.stat, full)
    time.sleep(1.2)  # what is measured: whether caches outlive the second that is FUSE's usual time-out
    yield "stat after 1.2 s", per_op(os.stat, full)
    drop_caches(2)
    yield "stat cold", per_op(os.stat, full)
    yield "open+read+close 4k", per_op(_open_and_read, full)
    start = time.perf_counter()
    for old, new in zip(full, moved, strict=True):
        os.rename(old, new)
    yield "rename", (time.perf_counter() - start) / files * 1e6
    yield "unlink", per_op(os.unlink, moved)
    for path in empty:
        os.unlink(path)


def _create_and_write(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, BLOCK)
    os.close(fd)


def _open_and_read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def _listing(directory: Path) -> Iterator[tuple[str, float]]:
    def names() -> None:
        if len(os.listdir(directory)) != LISTING:
            raise AssertionError(f"{directory} does not list {LISTING} files")

    def names_and_attributes() -> None:
        with os.scandir(directory) as entries:
            for entry in entries:
                os.lstat(entry.path)

    names()
    yield "readdir 10000", _timed(names) * 1e3
    drop_caches(2)
    yield "readdir+stat 10000 cold", _timed(names_and_attributes) * 1e3
    yield "readdir+stat 10000 warm", _timed(names_and_attributes) * 1e3


def _data(path: Path) -> Iterator[tuple[str, float]]:
    blocks = DATA_BYTES // len(BLOCK)
    chooser = random.Random(20231)
    offsets = [chooser.randrange(blocks) * len(BLOCK) for _ in range(RANDOM_OPS)]

    def rate(count: int, work: Callable[[int], None], flags: int) -> float:
        fd = os.open(path, flags, 0o644)
        try:
            seconds = _timed(lambda: work(fd))
        finally:
            os.close(fd)
        return count * len(BLOCK) / seconds / 1e6

    def write_all(fd: int) -> None:
        for _ in range(blocks):
            os.write(fd, BLOCK)

    def read_all(fd: int) -> None:
        while os.read(fd, len(BLOCK)):
            pass

    def write_some(fd: int) -> None:
        for offset in offsets:
            os.pwrite(fd, BLOCK, offset)

    def read_some(fd: int) -> None:
        for offset in offsets:
            os.pread(fd, len(BLOCK), offset)

    yield "sequential write 4k", rate(blocks, write_all, os.O_CREAT | os.O_WRONLY)
    drop_caches(1)
    yield "sequential read 4k cold", rate(blocks, read_all, os.O_RDONLY)
    yield "sequential read 4k", rate(blocks, read_all, os.O_RDONLY)
    yield "random write 4k", rate(RANDOM_OPS, write_some, os.O_WRONLY)
    drop_caches(1)
    yield "random read 4k cold", rate(RANDOM_OPS, read_some, os.O_RDONLY)
    rate(blocks, read_all, os.O_RDONLY)
    yield "random read 4k", rate(RANDOM_OPS, read_some, os.O_RDONLY)


def _append(path: Path) -> float:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    record = b"x" * 128

    def append() -> None:
        for _ in range(RANDOM_OPS):
            os.write(fd, record)

    try:
        return _timed(append) / RANDOM_OPS * 1e6
    finally:
        os.close(fd)
