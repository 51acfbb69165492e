"""kill -9 between any two steps of an operation: the next server's counters are exact, and it counts nothing anew."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusevol.fs import FileSystem
from fusevol.fs.memory import UNKNOWN
from fusevol.fs.recovery import CountersError
from fusevol.fs.types import ROOT_NODE, Caller, SetAttr
from fusevol.quota.ledger import Ledger
from fusevol.server.memory import SessionMemory
from tests.conftest import LoopFs
from tests.support.polling import eventually
from tests.support.sudden import Server, Volume, dies

pytestmark = pytest.mark.root

ME = Caller(os.geteuid(), os.getegid(), 0)
REG = stat.S_IFREG | 0o644
KINDS = ["xfs", "ext4", "btrfs", "tmpfs"]
EVERY = int(os.environ.get("FUSEVOL_EVERY", "8"))
"""Of how many lines one is died at; 1 is thorough, and takes ten minutes. Each operation and kind begins at another."""


@pytest.fixture
def place(request: pytest.FixtureRequest, loop_fs: LoopFs) -> Iterator[Path]:
    """A directory on the kind of filesystem that the test is parametrised with."""
    kind = getattr(request, "param", "xfs")
    if kind != "tmpfs":
        yield loop_fs(kind)
        return
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def prepare(fs: FileSystem) -> None:
    """Files of every sort: closed, open, with blocks and without, without a name; what the kernel knows, and not."""
    for name in (b"closed", b"over", b"known", b"linked"):
        entry, fh = fs.create(ROOT_NODE, name, REG, os.O_RDWR, ME)
        fs.write(fh, 0, b"x" * 20_000)
        fs.release(fh)
        if name == b"closed":
            fs.forget(entry.node, 1)
        if name == b"linked":
            fs.link(entry.node, ROOT_NODE, b"link")
    for name in (b"open", b"gone"):
        fs.write(fs.create(ROOT_NODE, name, REG, os.O_RDWR, ME)[1], 0, b"y" * 10_000)
    fs.unlink(ROOT_NODE, b"gone")
    fs.mkdir(ROOT_NODE, b"dir", 0o755, ME)
    fs.mkdir(ROOT_NODE, b"empty", 0o755, ME)
    fs.setxattr(fs.lookup(ROOT_NODE, b"known").node, b"user.x", b"v" * 3000, 0)


def node(fs: FileSystem, name: bytes) -> int:
    """The number of a node that the kernel knows."""
    found = fs.lookup(ROOT_NODE, name)
    fs.forget(found.node, 1)
    return found.node


def handle(fs: FileSystem, *, named: bool = True) -> int:
    """The open file that has a name, or that has none."""
    return next(fh for fh, f in fs._files._open.items() if (os.fstat(f.fd).st_nlink > 0) == named)


def lookup(fs: FileSystem) -> None:
    """All names become known."""
    for name in (b"closed", b"dir", b"open"):
        fs.lookup(ROOT_NODE, name)


def forget(fs: FileSystem) -> None:
    """A file that is known and closed loses its name, and then the kernel forgets it."""
    number = node(fs, b"known")
    fs.unlink(ROOT_NODE, b"known")
    fs.forget(number, 1)


def release_nameless(fs: FileSystem) -> None:
    """The last that has a file without a name open closes it, after the kernel has forgotten it."""
    fh = handle(fs, named=False)
    fs.forget(fs._files.get(fh).node.number, 1)
    fs.release(fh)


def write_and_sync(fs: FileSystem) -> None:
    """Small pieces all over a file, which take a block for its map at write-back."""
    fh = handle(fs)
    for i in range(12):
        fs.write(fh, 40_000 * i + 20_000, b"w")
    fs.drain()


OPERATIONS: dict[str, Callable[[FileSystem], object]] = {
    "create": lambda fs: fs.create(ROOT_NODE, b"new", REG, os.O_RDWR, ME),
    "create what exists": lambda fs: fs.create(ROOT_NODE, b"closed", REG, os.O_RDWR | os.O_TRUNC, ME),
    "mkdir": lambda fs: fs.mkdir(node(fs, b"dir"), b"new", 0o755, ME),
    "mknod": lambda fs: fs.mknod(ROOT_NODE, b"new", stat.S_IFIFO | 0o600, 0, ME),
    "symlink": lambda fs: fs.symlink(ROOT_NODE, b"new", b"/" + b"t" * 1000, ME),
    "tmpfile": lambda fs: fs.release(fs.tmpfile(ROOT_NODE, REG, os.O_RDWR, ME)[1]),
    "tmpfile and link": lambda fs: fs.link(fs.tmpfile(ROOT_NODE, REG, os.O_RDWR, ME)[0].node, ROOT_NODE, b"new"),
    "link": lambda fs: fs.link(node(fs, b"known"), node(fs, b"dir"), b"n" * 255),
    "unlink what nobody knows": lambda fs: fs.unlink(ROOT_NODE, b"closed"),
    "unlink what is open": lambda fs: fs.unlink(ROOT_NODE, b"open"),
    "unlink one of two names": lambda fs: fs.unlink(ROOT_NODE, b"link"),
    "unlink and forget": forget,
    "rmdir": lambda fs: fs.rmdir(ROOT_NODE, b"empty"),
    "rename": lambda fs: fs.rename(ROOT_NODE, b"closed", node(fs, b"dir"), b"new", 0),
    "rename over what is closed": lambda fs: fs.rename(ROOT_NODE, b"closed", ROOT_NODE, b"over", 0),
    "rename over what is open": lambda fs: fs.rename(ROOT_NODE, b"closed", ROOT_NODE, b"open", 0),
    "rename over a directory": lambda fs: fs.rename(ROOT_NODE, b"dir", ROOT_NODE, b"empty", 0),
    "exchange": lambda fs: fs.rename(ROOT_NODE, b"closed", ROOT_NODE, b"open", 2),
    "whiteout": lambda fs: fs.rename(ROOT_NODE, b"closed", ROOT_NODE, b"new", 4),
    "whiteout over what is known": lambda fs: fs.rename(ROOT_NODE, b"closed", ROOT_NODE, b"known", 4),
    "append": lambda fs: fs.write(handle(fs), 10_000, b"z" * 100_000),
    "write without a name": lambda fs: fs.write(handle(fs, named=False), 10_000, b"z" * 100_000),
    "write far behind the end": lambda fs: fs.write(handle(fs), 1 << 20, b"z" * 10),
    "write in pieces and sync": write_and_sync,
    "allocate": lambda fs: fs.fallocate(handle(fs), 1, 0, 1 << 20),
    "punch a hole": lambda fs: fs.fallocate(handle(fs), 3, 0, 8192),
    "truncate": lambda fs: fs.setattr(node(fs, b"known"), SetAttr(size=100), None),
    "truncate by opening": lambda fs: fs.open(node(fs, b"known"), os.O_WRONLY | os.O_TRUNC),
    "release": lambda fs: fs.release(handle(fs)),
    "release what has no name": release_nameless,
    "fsync": lambda fs: fs.fsync(handle(fs), datasync=False),
    "setxattr": lambda fs: fs.setxattr(node(fs, b"known"), b"user.y", b"v" * 700, 0),
    "removexattr": lambda fs: fs.removexattr(node(fs, b"known"), b"user.x"),
    "chmod": lambda fs: fs.setattr(node(fs, b"known"), SetAttr(mode=0o600), None),
    "lookup": lookup,
}


@pytest.fixture
def volumes(place: Path) -> Iterator[Callable[[], Volume]]:
    """Makes volumes."""
    made: list[Volume] = []

    def make() -> Volume:
        directory = place / f"v{len(made)}"
        directory.mkdir()
        made.append(Volume(directory))
        return made[-1]

    yield make
    for volume in made:
        volume.close()


def prepared(volume: Volume) -> Volume:
    """*volume*, whose first server has died with files open."""
    server = Server(volume)
    prepare(server.fs)
    server.leave()
    return volume


def check(volume: Volume, where: str) -> None:
    """The next server of *volume* is exact at once, when it does the operation's like, and when all is closed."""
    server = Server(volume)
    first = server.counted(), server.expected()
    with contextlib.suppress(FileExistsError):
        server.fs.create(ROOT_NODE, b"another", REG, os.O_RDWR, ME)
    second = server.counted(), server.expected()
    for fh in list(server.fs._files._open):
        server.fs.release(fh)
    for number in server.fs.known():
        server.fs.forget(number, 1)
    server.fs.drain()
    third = server.counted(), server.expected()
    reserved = server.ledger.reserved()
    left = server.fs._nodes.gone
    server.leave()

    assert first[0] == first[1], f"at once, {where}"
    assert second[0] == second[1], f"after an operation, {where}"
    assert third[0] == third[1], f"at the end, {where}"
    assert (reserved, left) == ((0, 0), []), where


@pytest.mark.slow
@pytest.mark.parametrize("place", KINDS, indirect=True)
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_line(
    request: pytest.FixtureRequest, volumes: Callable[[], Volume], place: Path, name: str
) -> None:
    """Wherever a server is killed in an operation, the next one's counters are exact without a scan."""
    at = (len(name) + KINDS.index(request.node.callspec.params["place"])) % EVERY
    died = True
    while died:
        volume = prepared(volumes())
        server = Server(volume)
        died = dies(at, lambda server=server: OPERATIONS[name](server.fs))
        server.leave()
        check(volume, f"killed after {at} lines of {name}")
        at += EVERY

    assert at > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["create", "unlink and forget", "rename over what is open", "append", "whiteout"])
def test_killed_again_at_any_line_of_the_takeover(volumes: Callable[[], Volume], name: str) -> None:
    """A server that is killed while it takes over leaves as much to the one after it."""
    lines = 0
    while True:
        volume = prepared(volumes())
        server = Server(volume)
        died = dies(lines, lambda server=server: OPERATIONS[name](server.fs))
        server.leave()
        if not died:
            break
        lines += 10
    for first in range(5, lines, max(1, lines // 6)):
        at, died = first % EVERY, True
        while died:
            volume = prepared(volumes())
            server = Server(volume)
            assert dies(first, lambda server=server: OPERATIONS[name](server.fs))
            server.leave()
            died = dies(at, lambda volume=volume: Server(volume))
            check(volume, f"killed after {first} lines of {name}, and after {at} of taking over")
            at += 5 * EVERY


def test_a_number_that_was_used_again(volumes: Callable[[], Volume]) -> None:
    """An inode that is gone for good is given back, also where another one has its number before that was settled."""
    volume = volumes()
    server = Server(volume)
    fs, accounts = server.fs, server.fs._accounts
    assert accounts is not None
    entry, fh = fs.create(ROOT_NODE, b"old", REG, os.O_RDWR, ME)
    fs.write(fh, 0, b"x" * 50_000)
    fs.release(fh)
    accounts.drain()
    fs.unlink(ROOT_NODE, b"old")
    fs._nodes.forget([(entry.node, 1)])  # killed before the accounting heard of it
    gone, fs._nodes.gone = fs._nodes.gone, []
    numbers: list[int] = []

    def used_again() -> bool:  # XFS frees an inode in the background
        numbers.append(fs.create(ROOT_NODE, b"new%d" % len(numbers), REG, os.O_RDWR, ME)[0].node)
        return entry.node in numbers

    eventually(used_again, 20.0, what="the backing filesystem uses the number again")
    server.leave()
    following = Server(volume)
    counted, expected = following.counted(), following.expected()
    following.leave()

    assert [node.number for node in gone or []] == [entry.node]
    assert counted == expected


def test_a_count_of_lookups_that_is_too_high_keeps_no_space(volumes: Callable[[], Volume]) -> None:
    """A lookup that was counted but not answered does not keep an inode once the kernel forgets it without a name."""
    volume = volumes()
    server = Server(volume)
    entry, fh = server.fs.create(ROOT_NODE, b"f", REG, os.O_RDWR, ME)
    server.fs.write(fh, 0, b"x" * 50_000)
    server.fs.release(fh)
    server.fs.lookup(ROOT_NODE, b"f")  # not answered
    server.leave()
    following = Server(volume)
    fs = following.fs
    named = fs.lookup(ROOT_NODE, b"f").node
    fs.forget(named, 1)
    kept = fs.stats().nodes
    fs.lookup(ROOT_NODE, b"f")
    fs.unlink(ROOT_NODE, b"f")
    fs.forget(entry.node, 2)
    after = fs.stats().nodes
    counted, expected = following.counted(), following.expected()
    following.leave()

    assert (named, kept, after) == (entry.node, 2, 1)
    assert counted == expected


def test_all_is_counted_anew_where_the_journal_cannot_be_used(volumes: Callable[[], Volume]) -> None:
    """Without the journal a scan counts what has a name, and what is open without one is counted as well, once."""
    volume = prepared(volumes())
    broken = Server(volume)
    broken.memory.journal.distrust()
    broken.leave()
    server = Server(volume, may_scan=True)
    first = server.counted(), server.expected()
    server.fs.write(handle(server.fs, named=False), 10_000, b"z" * 50_000)
    second = server.counted(), server.expected()
    server.leave()
    check(volume, "after a scan")

    assert first[0] == first[1]
    assert second[0] == second[1]


def test_what_cannot_be_looked_at_is_an_error(volumes: Callable[[], Volume]) -> None:
    """An operation in flight on a node of which nobody knows what was counted can't be settled; nothing stays open."""
    volume = prepared(volumes())
    server = Server(volume)
    where = server.fs._nodes.get(node(server.fs, b"known")).where
    server.memory.journal.know(where, UNKNOWN)
    server.memory.journal.begin((where,))
    server.leave()
    memory = SessionMemory(volume.memory.fd, volume.memory.lot)
    descriptors = len(os.listdir("/proc/self/fd"))
    ledger = Ledger.open(volume.checkpoint, volume.source, limit_bytes=None, limit_inodes=None, counters=memory.journal)
    with pytest.raises(CountersError, match="is not known"):
        FileSystem(str(volume.source), quota=ledger, memory=memory)
    left = len(os.listdir("/proc/self/fd"))
    memory.journal.distrust()
    following = Server(volume, may_scan=True)
    counted, expected = following.counted(), following.expected()
    following.leave()

    assert left == descriptors
    assert counted == expected


def test_nodes_wake_one_by_one(volumes: Callable[[], Volume]) -> None:
    """What an earlier server knew is known, without having been made anew, and each node is what it was."""
    volume = volumes()
    server = Server(volume)
    entries = {}
    for i in range(300):
        name = b"n%d" % i
        entries[name] = server.fs.mknod(ROOT_NODE, name, REG, 0, ME)
    server.fs.drain()
    server.leave()
    following = Server(volume)
    fs = following.fs
    awake = len(fs._nodes.awake())
    known = fs.stats().nodes, len(set(fs.known()))
    by_number = fs.getattr(entries[b"n7"].node).st_ino
    by_name = fs.lookup(ROOT_NODE, b"n8")
    fs.forget(entries[b"n9"].node, 1)
    after = fs.stats().nodes, len(fs._nodes.awake())
    following.leave()

    assert (awake, known) == (1, (301, 300))
    assert by_number == entries[b"n7"].attr.st_ino
    assert (by_name.node, by_name.generation) == (entries[b"n8"].node, entries[b"n8"].generation)
    assert after == (300, 3)
