"""Requests that a killed server had carried out, or not, carried out by the next one: once is once."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusevol.fs import FileSystem
from fusevol.fs.types import ROOT_NODE
from fusevol.server.memory import SessionMemory
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel.operations import Answer, Operations
from fusevol.transport.kernel.protocol import Op
from fusevol.transport.kernel.replay import WITHOUT_TRACE, Replay

pytestmark = pytest.mark.root

UNIQUE = 4711
IDS = (os.geteuid(), os.getegid(), 1)
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


class Killed(BaseException):
    """The server's end at a place of the test's choice."""


class Dying(SessionMemory):
    """A session memory of a server that is killed when an operation is done, but not answered."""

    def drop_intent(self, where: int) -> None:
        """Too late."""
        raise Killed(where)


class Server:
    """A server's filesystem and operations, without a kernel."""

    def __init__(self, source: Path, memory: SessionMemory) -> None:
        self.fs = FileSystem(str(source), memory=memory)
        assert self.fs.survives
        self.operations = Operations(self.fs, passthrough=None, setxattr_ext=True)
        self.replay = Replay(self.fs, self.operations, memory)

    def first(self, op: Op, argument: bytes, rest: bytes) -> Answer:
        """The request as the kernel sends it at first."""
        view = memoryview(rest)
        if op in WITHOUT_TRACE:
            return self.replay.first_time(UNIQUE, op, ROOT_NODE, argument, 0, view, IDS)
        return self.operations.carry_out(op, ROOT_NODE, argument, 0, view, IDS)

    def again(self, op: Op, argument: bytes, rest: bytes) -> Answer:
        """The request as it is delivered again."""
        return self.replay.again(UNIQUE | p.RESENT, op, ROOT_NODE, argument, 0, memoryview(rest), IDS)


def populate(source: Path) -> Path:
    """Two files, a directory and a link."""
    source.mkdir()
    (source / "a").write_text("A")
    (source / "b").write_text("B")
    (source / "d").mkdir()
    os.setxattr(source / "a", "user.old", b"1")
    return source


def tree(source: Path) -> dict[str, tuple[Any, ...]]:
    """What is there: type, links and content of each name."""
    found = {}
    for path in sorted(source.rglob("*")):
        st = path.lstat()
        content = path.read_text() if stat.S_ISREG(st.st_mode) else path.readlink() if path.is_symlink() else None
        attributes = os.listxattr(path, follow_symlinks=False)
        found[path.name] = (stat.S_IFMT(st.st_mode), st.st_nlink, st.st_rdev, content, attributes)
    return found


def node_of(server: Server, name: bytes) -> int:
    """The node of a name in the root."""
    return server.fs.lookup(ROOT_NODE, name).node


Request = tuple[Op, Callable[[Server], bytes], bytes]
REQUESTS: dict[str, Request] = {
    "mknod": (Op.MKNOD, lambda _: p.MKNOD_IN.pack(stat.S_IFIFO | 0o600, 0, 0), b"n\0"),
    "mkdir": (Op.MKDIR, lambda _: p.MKDIR_IN.pack(0o700, 0), b"n\0"),
    "symlink": (Op.SYMLINK, lambda _: b"", b"n\0target\0"),
    "link": (Op.LINK, lambda s: p.LINK_IN.pack(node_of(s, b"a")), b"n\0"),
    "create": (Op.CREATE, lambda _: p.CREATE_IN.pack(os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, 0, 0), b"n\0"),
    "unlink": (Op.UNLINK, lambda _: b"", b"a\0"),
    "rmdir": (Op.RMDIR, lambda _: b"", b"d\0"),
    "rename": (Op.RENAME, lambda _: p.RENAME_IN.pack(ROOT_NODE), b"a\0n\0"),
    "rename over": (Op.RENAME, lambda _: p.RENAME_IN.pack(ROOT_NODE), b"a\0b\0"),
    "rename noreplace": (Op.RENAME2, lambda _: p.RENAME2_IN.pack(ROOT_NODE, NOREPLACE), b"a\0n\0"),
    "rename exchange": (Op.RENAME2, lambda _: p.RENAME2_IN.pack(ROOT_NODE, EXCHANGE), b"a\0b\0"),
    "rename whiteout": (Op.RENAME2, lambda _: p.RENAME2_IN.pack(ROOT_NODE, WHITEOUT), b"a\0n\0"),
    "rename whiteout over": (Op.RENAME2, lambda _: p.RENAME2_IN.pack(ROOT_NODE, WHITEOUT), b"a\0b\0"),
    "setxattr create": (Op.SETXATTR, lambda _: p.SETXATTR_IN.pack(1, os.XATTR_CREATE, 0), b"user.n\0" + b"1"),
    "removexattr": (Op.REMOVEXATTR, lambda _: b"", b"user.old\0"),
}
"""Requests that may not simply be done twice."""


@pytest.fixture
def memory() -> Iterator[SessionMemory]:
    """What outlives the servers of a test."""
    kept = SessionMemory.create()
    yield kept
    for end in kept.lot:
        end.close()
    os.close(kept.fd)


def heir(memory: SessionMemory, kind: type[SessionMemory] = SessionMemory) -> SessionMemory:
    """The same memory in the hands of the next server."""
    return kind(os.dup(memory.fd), (memory.lot[0].dup(), memory.lot[1].dup()))


def leave(server: Server) -> None:
    """The end of a killed server, as far as this process is concerned: nothing is told to anybody."""
    memory = server.fs._memory
    assert isinstance(memory, SessionMemory)
    for file in [*server.fs._files.values(), *server.fs._dirs.values()]:
        os.close(file.fd)
    server.fs._nodes._memory = None
    server.fs._nodes.close()
    for end in memory.lot:
        end.close()
    os.close(memory.fd)


@pytest.mark.parametrize("done", [True, False], ids=["was done", "was not done"])
@pytest.mark.parametrize("name", REQUESTS)
def test_once_is_once(tmp_path: Path, memory: SessionMemory, name: str, *, done: bool) -> None:
    """The next server answers success, and the tree is as after one operation, whether it had been carried out or not.

    A second kill in the middle of the replay changes nothing of that.
    """
    op, make, rest = REQUESTS[name]
    plain, source = populate(tmp_path / "plain"), populate(tmp_path / "source")
    for root in (plain, source):
        os.setxattr(root, "user.old", b"1")
    reference = Server(plain, SessionMemory.create())
    expected = reference.first(op, make(reference), rest)
    leave(reference)
    before = tree(source)
    if done:
        killed = Server(source, heir(memory, Dying))
        with contextlib.suppress(Killed):
            killed.first(op, make(killed), rest)
        leave(killed)
    answers = []
    for kind in (Dying, SessionMemory):
        server = Server(source, heir(memory, kind))
        with contextlib.suppress(Killed):
            answers.append(server.again(op, make(server), rest))
        leave(server)

    assert isinstance(expected, bytes)
    assert all(isinstance(answer, bytes) for answer in answers)
    assert [len(answer) for answer in answers[-1:]] == [len(expected)]
    assert tree(source) == tree(plain)
    assert os.listxattr(source) == os.listxattr(plain)
    assert (tree(plain), os.listxattr(plain)) != (before, ["user.old"])


OPENS: dict[str, Request] = {
    "open": (Op.OPEN, lambda _: p.OPEN_IN.pack(os.O_RDWR, 0), b""),
    "open and truncate": (Op.OPEN, lambda _: p.OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, 0), b""),
    "create": (Op.CREATE, lambda _: p.CREATE_IN.pack(os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, 0, 0), b"n\0"),
    "tmpfile": (Op.TMPFILE, lambda _: p.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0), b"\0"),
    "opendir": (Op.OPENDIR, lambda _: p.OPEN_IN.pack(os.O_RDONLY, 0), b""),
}


@pytest.mark.parametrize("kills", [1, 2])
@pytest.mark.parametrize("name", OPENS)
def test_an_open_leaves_one_file_open(tmp_path: Path, memory: SessionMemory, name: str, kills: int) -> None:
    """What was opened for a request that comes again is closed; what was made for it without a name is gone."""
    op, make, rest = OPENS[name]
    source = populate(tmp_path / "source")
    first = Server(source, heir(memory))
    number = node_of(first, b"a") if op == Op.OPEN else ROOT_NODE
    argument = make(first)
    first.replay.first_time(UNIQUE, op, number, argument, 0, memoryview(rest), IDS)
    opened = sum(first.fs.stats()[1:3])
    leave(first)
    for _ in range(kills):
        server = Server(source, heir(memory))
        answer = server.replay.again(UNIQUE | p.RESENT, op, number, argument, 0, memoryview(rest), IDS)
        again, nameless = sum(server.fs.stats()[1:3]), len(server.fs._nodes.nameless())
        leave(server)

    assert isinstance(answer, bytes)
    assert (opened, again) == (1, 1)
    assert nameless == (name == "tmpfile")


def test_an_answered_open_stays(tmp_path: Path, memory: SessionMemory) -> None:
    """A file that was opened for another request is not closed."""
    source = populate(tmp_path / "source")
    first = Server(source, heir(memory))
    number = node_of(first, b"a")
    argument = p.OPEN_IN.pack(os.O_RDONLY, 0)
    for unique in (UNIQUE, UNIQUE + 2):
        first.replay.first_time(unique, Op.OPEN, number, argument, 0, memoryview(b""), IDS)
    leave(first)
    second = Server(source, heir(memory))
    second.replay.again(UNIQUE + 2 | p.RESENT, Op.OPEN, number, argument, 0, memoryview(b""), IDS)
    opened = second.fs.stats().open_files
    leave(second)

    assert opened == 2
