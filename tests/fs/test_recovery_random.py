"""Random operations, killed at random instructions, one server after another: the counters are exact throughout."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fusevol.fs import FileSystem
from fusevol.fs.types import ROOT_NODE, Caller, SetAttr
from tests.conftest import LoopFs
from tests.support.sudden import Server, Volume, dies

pytestmark = [pytest.mark.root, pytest.mark.slow]

EXAMPLES = int(os.environ.get("FUSEVOL_EXAMPLES", "25"))
ME = Caller(os.geteuid(), os.getegid(), 0)
REG = stat.S_IFREG | 0o644
NAMES = st.sampled_from([b"a", b"b", b"c", b"d" * 20])
WHERE = st.sampled_from([b"", b"p", b"q"])
DEATH = st.one_of(st.none(), st.integers(0, 3000))
"""Of whether, and after how many instructions, the server is killed in an operation."""
LIMIT = 1 << 20
REFUSALS = {
    errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ESTALE,
    errno.ELOOP, errno.ENXIO,
}  # fmt: skip


class Machine(RuleBasedStateMachine):
    """What the kernel knows is its handles, and those that were answered; names are looked up each time."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(dir=place))
        self.volume = Volume(self.place, LIMIT)
        self.server = Server(self.volume)
        self.handles: list[int] = []
        self.kills = 0
        for name in (b"p", b"q"):
            self.server.fs.mkdir(ROOT_NODE, name, 0o755, ME)

    def teardown(self) -> None:
        """The end: all is closed and forgotten, and what is counted is what is there."""
        for fh in self.handles:
            self.server.fs.release(fh)
        for number in self.server.fs.known():
            self.server.fs.forget(number, 1 << 40)
        self.server.fs.drain()
        counted, expected = self.server.counted(), self.server.expected()
        reserved, kept = self.server.ledger.reserved(), self.server.fs.stats().nodes
        self.server.leave()
        self.volume.close()
        shutil.rmtree(self.place)

        assert counted == expected
        assert (reserved, kept) == ((0, 0), 1)

    def do(self, death: int | None, action: Callable[[FileSystem], int | None]) -> int | None:
        """Carry *action* out, in a server that is killed in it or not; returns what it does, if it is answered."""

        def answered() -> int | None:
            try:
                return action(self.server.fs)
            except OSError as e:
                if e.errno not in REFUSALS:
                    raise
                return None

        if death is None:
            return answered()
        self.kills += 1
        self.server.memory.opening(self.kills)
        dies(death, answered, unit="opcode")
        self.server.leave()
        self.server = Server(self.volume)
        unanswered = self.server.memory.opened(self.kills)
        if unanswered is not None:
            self.server.fs.release(unanswered.fh)
        return None

    def directory(self, fs: FileSystem, where: bytes) -> int:
        """The number of a directory, for which the kernel has a lookup more."""
        return fs.lookup(ROOT_NODE, where).node if where else ROOT_NODE

    @rule(death=DEATH, where=WHERE, name=NAMES, size=st.sampled_from([0, 100, 50_000]))
    def create(self, death: int | None, where: bytes, name: bytes, size: int) -> None:
        def action(fs: FileSystem) -> int:
            fh = fs.create(self.directory(fs, where), name, REG, os.O_RDWR, ME)[1]
            with contextlib.suppress(OSError):
                fs.write(fh, 0, b"c" * size)
            return fh

        fh = self.do(death, action)
        if fh is not None:
            self.handles.append(fh)

    @rule(death=DEATH, where=WHERE, name=NAMES, directory=st.booleans())
    def make(self, death: int | None, where: bytes, name: bytes, directory: bool) -> None:
        def action(fs: FileSystem) -> None:
            if directory:
                fs.mkdir(self.directory(fs, where), name, 0o755, ME)
            else:
                fs.symlink(self.directory(fs, where), name, b"/t" * 400, ME)

        self.do(death, action)

    @rule(death=DEATH, where=WHERE, name=NAMES)
    def remove(self, death: int | None, where: bytes, name: bytes) -> None:
        def action(fs: FileSystem) -> None:
            parent = self.directory(fs, where)
            entry = fs.lookup(parent, name)
            (fs.rmdir if stat.S_ISDIR(entry.attr.st_mode) else fs.unlink)(parent, name)
            fs.forget(entry.node, 1)

        self.do(death, action)

    @rule(death=DEATH, where=WHERE, name=NAMES, to=WHERE, newname=NAMES, flags=st.sampled_from([0, 0, 0, 1, 2, 4]))
    def rename(self, death: int | None, where: bytes, name: bytes, to: bytes, newname: bytes, flags: int) -> None:
        def action(fs: FileSystem) -> None:
            fs.rename(self.directory(fs, where), name, self.directory(fs, to), newname, flags)

        self.do(death, action)

    @rule(death=DEATH, where=WHERE, name=NAMES, to=WHERE, newname=NAMES)
    def link(self, death: int | None, where: bytes, name: bytes, to: bytes, newname: bytes) -> None:
        def action(fs: FileSystem) -> None:
            entry = fs.lookup(self.directory(fs, where), name)
            if not stat.S_ISDIR(entry.attr.st_mode):
                fs.link(entry.node, self.directory(fs, to), newname)

        self.do(death, action)

    @rule(
        death=DEATH,
        which=st.integers(0, 99),
        offset=st.sampled_from([0, 5000, 300_000]),
        size=st.sampled_from([1, 70_000]),
    )
    def write(self, death: int | None, which: int, offset: int, size: int) -> None:
        if self.handles:
            fh = self.handles[which % len(self.handles)]
            self.do(death, lambda fs: fs.write(fh, offset, b"w" * size) * 0)

    @rule(death=DEATH, which=st.integers(0, 99), mode=st.sampled_from([0, 1, 3]), size=st.sampled_from([5000, 200_000]))
    def allocate(self, death: int | None, which: int, mode: int, size: int) -> None:
        if self.handles:
            fh = self.handles[which % len(self.handles)]
            self.do(death, lambda fs: fs.fallocate(fh, mode, 4096, size))

    @rule(death=DEATH, which=st.integers(0, 99), size=st.sampled_from([0, 4097, 400_000]))
    def truncate(self, death: int | None, which: int, size: int) -> None:
        if self.handles:
            fh = self.handles[which % len(self.handles)]
            number = self.server.fs._files.get(fh).node.number
            self.do(death, lambda fs: fs.setattr(number, SetAttr(size=size), fh).st_size * 0)

    @rule(death=DEATH, which=st.integers(0, 99))
    def release(self, death: int | None, which: int) -> None:
        if self.handles:
            fh = self.handles.pop(which % len(self.handles))
            self.do(death, lambda fs: fs.release(fh))
            with contextlib.suppress(OSError):  # delivered again
                self.server.fs.release(fh)

    @rule(death=DEATH)
    def drain(self, death: int | None) -> None:
        self.do(death, lambda fs: fs.drain())

    @rule(death=DEATH, where=WHERE)
    def make_nameless(self, death: int | None, where: bytes) -> None:
        fh = self.do(death, lambda fs: fs.tmpfile(self.directory(fs, where), REG, os.O_RDWR, ME)[1])
        if fh is not None:
            self.handles.append(fh)

    @invariant()
    def exact(self) -> None:
        """All that was answered is open; what is counted is what is there, and never above the limit."""
        for fh in self.handles:
            self.server.fs.getattr(0, fh)
        assert self.server.counted() == self.server.expected()
        assert self.server.counted()[0] <= LIMIT


@pytest.mark.parametrize("kind", ["xfs", "ext4"])
def test_random_operations_and_kills(kind: str, loop_fs: LoopFs) -> None:
    """What is counted is what du finds after every operation and every kill, without a scan."""
    place = loop_fs(kind)  # type: ignore[arg-type]  # it is one
    run_state_machine_as_test(
        lambda: Machine(place),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            print_blob=True,
            phases=[Phase.generate],  # a failure is short enough, and takes minutes to make shorter
        ),
    )
