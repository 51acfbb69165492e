"""A program that works in a directory until told to stop, and knows at every moment what must be there.

``python torment.py KIND DIRECTORY BARE COUNTERS INDEX``: KIND is a class below, in lower case; BARE is an empty
directory that is no mount. It counts its steps in word INDEX of the file COUNTERS, works until SIGTERM, compares what
it finds with what it did, and prints one JSON object: the number of ``steps``, of system ``calls``, and of results
``checked`` against the model; all system calls that took ``long``, in the mount, and ``long_bare``, in BARE (pairs of
their beginning by CLOCK_MONOTONIC and their duration, in seconds). Anything unexpected ends it with a traceback; it
ends with who started it. Standard library only, and nothing of ours.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONG = 0.001
_PR_SET_PDEATHSIG = 1
_BLOCK = 4096
_BLOCKS = 256


class Work(ABC):
    """Work in the directory *root*, and beside it in *bare*."""

    def __init__(self, root: Path, bare: Path) -> None:
        self.root, self.bare = root, bare
        self.long: list[tuple[float, float]] = []
        self.long_bare: list[tuple[float, float]] = []
        self.calls = self.checked = 0

    def call(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """What *what* returns; how long it took is noted."""
        began = time.monotonic()
        found = what(*arguments)
        took = time.monotonic() - began
        self.calls += 1
        if took > LONG:
            self.long.append((began, took))
        return found

    def beside(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """The same on *bare*: what of its duration is this machine's, and not the mount's."""
        began = time.monotonic()
        found = what(*arguments)
        took = time.monotonic() - began
        if took > LONG:
            self.long_bare.append((began, took))
        return found

    def same(self, found: object, expected: object, what: str) -> None:
        """One result is as it must be."""
        assert found == expected, what
        self.checked += 1

    def open(self, name: str, flags: int = os.O_RDWR) -> int:
        """A descriptor of a new file."""
        fd: int = self.call(os.open, self.root / name, os.O_CREAT | os.O_EXCL | flags)
        return fd

    @abstractmethod
    def step(self, number: int) -> None:
        """Step *number*, from 0."""

    @abstractmethod
    def finish(self, steps: int) -> None:
        """After so many *steps*: compare."""


class Files(Work):
    """Rewrites blocks of an open file, appends to a log, and writes a file that has no name any longer."""

    def __init__(self, root: Path, bare: Path) -> None:
        super().__init__(root, bare)
        self.block, self.nameless = self.open("block"), self.open("gone")
        self.log = self.open("log", os.O_WRONLY | os.O_APPEND)
        self.call(os.unlink, root / "gone")
        self.model: dict[int, bytes] = {}

    def step(self, number: int) -> None:
        """A few operations on each."""
        at = random.randrange(_BLOCKS)
        self.model[at] = struct.pack("=QQ", number, at) * (_BLOCK // 16)
        call, same = self.call, self.same
        same(call(os.pwrite, self.block, self.model[at], at * _BLOCK), _BLOCK, "a block written")
        other = random.choice(list(self.model))
        same(call(os.pread, self.block, _BLOCK, other * _BLOCK), self.model[other], "a block that was read")
        same(call(os.write, self.log, b"%07d\n" % number), 8, "a line of the log")
        same(call(os.pwrite, self.nameless, b"%010d" % number, 0), 10, "ten bytes written")
        same(call(os.pread, self.nameless, 10, 0), b"%010d" % number, "the file without a name")
        if number % 64 == 0:
            self.call(os.fsync, self.log)
            self.call(os.ftruncate, self.nameless, random.choice([10, 5000, 100_000]))

    def finish(self, steps: int) -> None:
        """Everything was written once, and nothing else."""
        for fd in (self.block, self.log, self.nameless):
            os.close(fd)
        log = (self.root / "log").read_bytes().splitlines()
        assert len(log) == steps, "the log's length"
        for number, found in enumerate(log):
            self.same(found, b"%07d" % number, "the log")
        whole = (self.root / "block").read_bytes()
        for at, data in self.model.items():
            self.same(whole[at * _BLOCK : (at + 1) * _BLOCK], data, "the blocks")
        self.same(sorted(os.listdir(self.root)), ["block", "log"], "the names")


class Names(Work):
    """Makes, renames, links and removes files, directories and symbolic links."""

    def __init__(self, root: Path, bare: Path) -> None:
        super().__init__(root, bare)
        self.model: dict[str, int] = {}

    def step(self, number: int) -> None:
        """A file through all of them; each fails if it was done before, or was not."""
        call, same, root = self.call, self.same, self.root
        name = f"one{number}"
        one, other = root / name, root / f"other{number}"
        fd = self.open(name, os.O_WRONLY)
        call(os.write, fd, b"x" * (number % 7000))
        call(os.close, fd)
        call(os.rename, one, other)
        call(os.link, other, one)
        same(call(os.stat, one).st_nlink, 2, "links")
        call(os.unlink, other)
        call(os.mkdir, other)
        call(os.rename, one, other / "inside")
        call(os.rename, other / "inside", one)
        call(os.rmdir, other)
        call(os.symlink, "target", other)
        same(call(os.readlink, other), "target", "a target")
        call(os.unlink, other)
        call(os.setxattr, one, "user.number", b"%d" % number)
        self.model[name] = number
        if len(self.model) > 200:
            gone = random.choice(list(self.model))
            call(os.unlink, root / gone)
            del self.model[gone]
        if number % 16 == 0:
            same(sorted(call(os.listdir, root)), sorted(self.model), "the names")
        some = random.choice(list(self.model))
        same(call(os.stat, root / some).st_size, self.model[some] % 7000, "a size")
        same(call(os.getxattr, root / some, "user.number"), b"%d" % self.model[some], "an attribute")

    def finish(self, steps: int) -> None:
        """What should be there is, with its size."""
        self.same(sorted(os.listdir(self.root)), sorted(self.model), f"the names after {steps} steps")
        for name, number in self.model.items():
            self.same((self.root / name).stat().st_size, number % 7000, f"a size after {steps} steps")


class Mapped(Work):
    """Writes to a file by a mapping of it, and looks at what is there through the mapping."""

    def __init__(self, root: Path, bare: Path) -> None:
        super().__init__(root, bare)
        fd = self.open("mapped")
        self.call(os.write, fd, bytes(_BLOCK * _BLOCKS))
        self.memory = mmap.mmap(fd, _BLOCK * _BLOCKS)
        os.close(fd)
        self.model = [0] * _BLOCKS

    def step(self, number: int) -> None:
        """One page written, another one read."""
        at, other = random.randrange(_BLOCKS), random.randrange(_BLOCKS)
        self.model[at] = number
        self.call(struct.pack_into, "=Q", self.memory, at * _BLOCK, number)
        found = self.call(struct.unpack_from, "=Q", self.memory, other * _BLOCK)[0]
        self.same(found, self.model[other], "a page of the mapping")
        if number % 32 == 0:
            self.call(self.memory.flush)

    def finish(self, steps: int) -> None:
        """The file has what was written to the mapping."""
        self.memory.flush()
        self.memory.close()
        whole = (self.root / "mapped").read_bytes()
        for at, number in enumerate(self.model):
            self.same(struct.unpack_from("=Q", whole, at * _BLOCK)[0], number, f"a page after {steps} steps")


class Steady(Work):
    """Writes and reads blocks of an open file, 1,500 times a second at most, and the same beside the mount; before all
    others, if it may, so that what it waits for is the file and not the processor."""

    def __init__(self, root: Path, bare: Path) -> None:
        super().__init__(root, bare)
        self.fd = self.open("steady")
        self.fd_bare = os.open(bare / "steady", os.O_CREAT | os.O_EXCL | os.O_RDWR)
        if os.geteuid() == 0:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    def step(self, number: int) -> None:
        """One block."""
        data = struct.pack("=Q", number) * (_BLOCK // 8)
        at = number % _BLOCKS * _BLOCK
        self.call(os.pwrite, self.fd, data, at)
        self.same(self.call(os.pread, self.fd, _BLOCK, at), data, "a block just written")
        self.beside(os.pwrite, self.fd_bare, data, at)
        self.beside(os.pread, self.fd_bare, _BLOCK, at)
        time.sleep(0.0005)

    def finish(self, steps: int) -> None:
        """The last blocks are there."""
        os.close(self.fd)
        whole = (self.root / "steady").read_bytes()
        for number in range(max(0, steps - _BLOCKS), steps):
            found = struct.unpack_from("=Q", whole, number % _BLOCKS * _BLOCK)[0]
            self.same(found, number, f"a block after {steps} steps")


KINDS = {kind.__name__.lower(): kind for kind in (Files, Names, Mapped, Steady)}


def main(kind: str, root: Path, bare: Path, counters: Path, index: int) -> int:
    """See above."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    random.seed(index)
    work = KINDS[kind](root, bare)
    steps = 0
    with counters.open("r+b") as file, mmap.mmap(file.fileno(), 0) as words:
        while not ended:
            work.step(steps)
            steps += 1
            struct.pack_into("=Q", words, index * 8, steps)
    work.finish(steps)
    said = {"steps": steps, "calls": work.calls, "checked": work.checked}
    print(json.dumps(said | {"long": work.long, "long_bare": work.long_bare}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(Path, sys.argv[2:5]), int(sys.argv[5])))
