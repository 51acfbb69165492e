"""Workloads on the data of one file. A pass is repeated until it has taken long enough to be told from noise."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.bench import caches
from tests.bench.plan import Plan
from tests.bench.subjects import Subject

SMALL: Final = b"x" * 4096
LARGE: Final = b"x" * (1 << 20)
SIZES: Final = {"4k": SMALL, "1M": LARGE}
RECORD: Final = b"x" * 128


class _File:
    """The file that is worked on, open anew for each measurement."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self._size = plan.data_mib << 20
        self._least = plan.pass_seconds

    def rate(self, flags: int, work: Callable[[int], int], before: Callable[[int], None] | None = None) -> float:
        """MB/s of *work*, which gets a descriptor and returns bytes; *before* goes ahead of each pass, untimed."""
        fd = os.open(self.path, flags, 0o644)
        moved, seconds = 0, 0.0
        try:
            while seconds < self._least:
                if before:
                    before(fd)
                start = time.perf_counter()
                moved += work(fd)
                seconds += time.perf_counter() - start
        finally:
            os.close(fd)
        return moved / seconds / 1e6

    def offsets(self, step: int, count: int) -> list[int]:
        """The same random places for every subject."""
        chooser = random.Random(20231)
        return [chooser.randrange(self._size // step) * step for _ in range(count)]

    def write_all(self, block: bytes) -> Callable[[int], int]:
        def work(fd: int) -> int:
            for _ in range(self._size // len(block)):
                os.write(fd, block)
            return self._size

        return work

    def read_all(self, step: int) -> Callable[[int], int]:
        def work(fd: int) -> int:
            while os.read(fd, step):
                pass
            return self._size

        return work


def _empty(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)


def _rewind(fd: int) -> None:
    os.lseek(fd, 0, os.SEEK_SET)


def data(subject: Subject, work: Path, plan: Plan) -> Iterator[tuple[str, float]]:
    """Write, read and map a file of *plan.data_mib*; MB/s, and microseconds per append and per fsynced write."""
    file = _File(work / "data", plan)
    both = [file.path, subject.source / file.path.relative_to(subject.root)]
    for name, block in SIZES.items():
        yield f"sequential write {name}", file.rate(os.O_CREAT | os.O_WRONLY, file.write_all(block), _empty)
    for name, block in SIZES.items():
        read = file.read_all(len(block))
        file.rate(os.O_RDONLY, read, _rewind)
        yield f"sequential read {name}", file.rate(os.O_RDONLY, read, _rewind)
    for name, block in SIZES.items():
        places = file.offsets(len(block), plan.blocks if block is SMALL else plan.blocks // 64)
        yield f"random write {name}", file.rate(os.O_WRONLY, _write_at(places, block))
        file.rate(os.O_RDONLY, file.read_all(len(LARGE)), _rewind)
        yield f"random read {name}", file.rate(os.O_RDONLY, _read_at(places, len(block)))

    def cold(fd: int) -> None:
        caches.forget_pages(both)
        _rewind(fd)

    yield "sequential read 1M cold", file.rate(os.O_RDONLY, file.read_all(len(LARGE)), cold)
    some = sorted(set(file.offsets(len(SMALL), plan.blocks // 8)), key=lambda place: place % 4099)
    yield "random read 4k cold", file.rate(os.O_RDONLY, _read_at(some, len(SMALL)), cold)
    file.rate(os.O_RDONLY, file.read_all(len(LARGE)), _rewind)
    yield "mmap write", file.rate(os.O_RDWR, _map_and_write)
    file.rate(os.O_RDONLY, file.read_all(len(LARGE)), _rewind)
    yield "mmap read", file.rate(os.O_RDONLY, _map_and_read)
    yield "append 128 B", _append(work / "log", plan.blocks)
    yield "write 4k + fsync", _write_and_sync(work / "synced", plan.fsyncs)


def _write_at(places: list[int], block: bytes) -> Callable[[int], int]:
    def work(fd: int) -> int:
        for place in places:
            os.pwrite(fd, block, place)
        return len(places) * len(block)

    return work


def _read_at(places: list[int], step: int) -> Callable[[int], int]:
    def work(fd: int) -> int:
        for place in places:
            os.pread(fd, step, place)
        return len(places) * step

    return work


def _map_and_write(fd: int) -> int:
    """Store a page's worth into each page of a new shared mapping: a fault each, then copying."""
    with mmap.mmap(fd, 0) as mapped:
        size = len(mapped)
        for place in range(0, size, len(SMALL)):
            mapped[place : place + len(SMALL)] = SMALL
    return size


def _map_and_read(fd: int) -> int:
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        size = len(mapped)
        for place in range(0, size, len(SMALL)):
            mapped[place : place + len(SMALL)]
    return size


def _append(path: Path, count: int) -> float:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    try:
        start = time.perf_counter()
        for _ in range(count):
            os.write(fd, RECORD)
        return (time.perf_counter() - start) / count * 1e6
    finally:
        os.close(fd)


def _write_and_sync(path: Path, count: int) -> float:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        start = time.perf_counter()
        for _ in range(count):
            os.write(fd, SMALL)
            os.fsync(fd)
        return (time.perf_counter() - start) / count * 1e6
    finally:
        os.close(fd)
