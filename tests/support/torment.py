"""A program that works in a directory until told to stop, and knows at every moment what must be there.

``python torment.py KIND DIRECTORY COUNTERS INDEX``: KIND is a class below, in lower case. It counts its steps
in word INDEX of the file COUNTERS, works until SIGTERM, compares what it finds with what it did, and prints one JSON
object: the number of ``steps``, all system calls that took ``long`` (pairs of their beginning by CLOCK_MONOTONIC and
their duration, in seconds), and the ``worst`` duration. Anything unexpected ends it with a traceback. Standard library
only, and nothing of ours.
"""

from __future__ import annotations

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

LONG = 0.003
_BLOCK = 4096
_BLOCKS = 256


class Work(ABC):
    """Work in the directory *root*."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.long: list[tuple[float, float]] = []
        self.worst = 0.0

    def call(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """What *what* returns; how long it took is noted."""
        began = time.monotonic()
        found = what(*arguments)
        took = time.monotonic() - began
        self.worst = max(self.worst, took)
        if took > LONG:
            self.long.append((began, took))
        return found

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

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.block, self.nameless = self.open("block"), self.open("gone")
        self.log = self.open("log", os.O_WRONLY | os.O_APPEND)
        self.call(os.unlink, root / "gone")
        self.model: dict[int, bytes] = {}

    def step(self, number: int) -> None:
        """A few operations on each."""
        at = random.randrange(_BLOCKS)
        self.model[at] = struct.pack("=QQ", number, at) * (_BLOCK // 16)
        assert self.call(os.pwrite, self.block, self.model[at], at * _BLOCK) == _BLOCK
        other = random.choice(list(self.model))
        assert self.call(os.pread, self.block, _BLOCK, other * _BLOCK) == self.model[other], "a block that was read"
        assert self.call(os.write, self.log, b"%07d\n" % number) == 8
        assert self.call(os.pwrite, self.nameless, b"%010d" % number, 0) == 10
        assert self.call(os.pread, self.nameless, 10, 0) == b"%010d" % number, "the file without a name"
        if number % 64 == 0:
            self.call(os.fsync, self.log)
            self.call(os.ftruncate, self.nameless, random.choice([10, 5000, 100_000]))

    def finish(self, steps: int) -> None:
        """Everything was written once, and nothing else."""
        for fd in (self.block, self.log, self.nameless):
            os.close(fd)
        assert (self.root / "log").read_bytes() == b"".join(b"%07d\n" % n for n in range(steps)), "the log"
        whole = (self.root / "block").read_bytes()
        assert all(whole[at * _BLOCK : (at + 1) * _BLOCK] == data for at, data in self.model.items()), "the blocks"
        assert sorted(os.listdir(self.root)) == ["block", "log"], "the names"


class Names(Work):
    """Makes, renames, links and removes files, directories and symbolic links."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.model: dict[str, int] = {}

    def step(self, number: int) -> None:
        """A file through all of them; each fails if it was done before, or was not."""
        call, root = self.call, self.root
        name = f"one{number}"
        one, other = root / name, root / f"other{number}"
        fd = self.open(name, os.O_WRONLY)
        call(os.write, fd, b"x" * (number % 7000))
        call(os.close, fd)
        call(os.rename, one, other)
        call(os.link, other, one)
        assert call(os.stat, one).st_nlink == 2
        call(os.unlink, other)
        call(os.mkdir, other)
        call(os.rename, one, other / "inside")
        call(os.rename, other / "inside", one)
        call(os.rmdir, other)
        call(os.symlink, "target", other)
        assert call(os.readlink, other) == "target"
        call(os.unlink, other)
        call(os.setxattr, one, "user.number", b"%d" % number)
        self.model[name] = number
        if len(self.model) > 200:
            gone = random.choice(list(self.model))
            call(os.unlink, root / gone)
            del self.model[gone]
        if number % 16 == 0:
            assert sorted(call(os.listdir, root)) == sorted(self.model), "the names"
        some = random.choice(list(self.model))
        assert call(os.stat, root / some).st_size == self.model[some] % 7000, "a size"
        assert call(os.getxattr, root / some, "user.number") == b"%d" % self.model[some], "an attribute"

    def finish(self, steps: int) -> None:
        """What should be there is, with its size."""
        sizes = {name: (self.root / name).stat().st_size for name in os.listdir(self.root)}
        assert sizes == {name: number % 7000 for name, number in self.model.items()}, f"after {steps} steps"


class Mapped(Work):
    """Writes to a file by a mapping of it, and looks at what is there through the mapping."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
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
        assert found == self.model[other], "a page of the mapping"
        if number % 32 == 0:
            self.call(self.memory.flush)

    def finish(self, steps: int) -> None:
        """The file has what was written to the mapping."""
        self.memory.flush()
        self.memory.close()
        whole = (self.root / "mapped").read_bytes()
        found = [struct.unpack_from("=Q", whole, at * _BLOCK)[0] for at in range(_BLOCKS)]
        assert found == self.model, f"after {steps} steps"


class Steady(Work):
    """Writes and reads blocks of an open file, 2,000 times a second at most; before all others, if it may, so that what
    it waits for is the file and not the processor."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fd = self.open("steady")
        if os.geteuid() == 0:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    def step(self, number: int) -> None:
        """One block."""
        data = struct.pack("=Q", number) * (_BLOCK // 8)
        self.call(os.pwrite, self.fd, data, number % _BLOCKS * _BLOCK)
        assert self.call(os.pread, self.fd, _BLOCK, number % _BLOCKS * _BLOCK) == data, "a block just written"
        time.sleep(0.0005)

    def finish(self, steps: int) -> None:
        """The last blocks are there."""
        os.close(self.fd)
        whole = (self.root / "steady").read_bytes()
        for number in range(max(0, steps - _BLOCKS), steps):
            assert struct.unpack_from("=Q", whole, number % _BLOCKS * _BLOCK)[0] == number, f"after {steps} steps"


KINDS = {kind.__name__.lower(): kind for kind in (Files, Names, Mapped, Steady)}


def main(kind: str, root: Path, counters: Path, index: int) -> int:
    """See above."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    random.seed(index)
    work = KINDS[kind](root)
    steps = 0
    with counters.open("r+b") as file, mmap.mmap(file.fileno(), 0) as words:
        while not ended:
            work.step(steps)
            steps += 1
            struct.pack_into("=Q", words, index * 8, steps)
    work.finish(steps)
    print(json.dumps({"steps": steps, "long": work.long, "worst": work.worst}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
