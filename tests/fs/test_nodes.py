"""The node table: identity, bounded descriptors, re-used inode numbers, and refusals."""

from __future__ import annotations

import errno
import gc
import os
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusevol.fs import FileSystem
from fusevol.fs.nodes import Node
from fusevol.fs.types import ROOT_NODE, Caller, SetAttr
from tests.fs.posix_cases import fails

ME = Caller(os.geteuid(), os.getegid(), 0)
Make = Callable[..., FileSystem]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes filesystems on ``tmp_path``."""
    made: list[FileSystem] = []

    def make(**options: object) -> FileSystem:
        made.append(FileSystem(str(tmp_path), **options))  # type: ignore[arg-type]  # the test knows them
        return made[-1]

    yield make
    for fs in made:
        fs.close()


def test_node_numbers_are_inode_numbers(make: Make, tmp_path: Path) -> None:
    """Names of one inode share a node, whose number is the inode's; the root is 1."""
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    fs = make()
    a, b = fs.lookup(ROOT_NODE, b"a"), fs.lookup(ROOT_NODE, b"b")

    assert (a.node, b.node, b.generation) == (os.stat(tmp_path / "a").st_ino, a.node, a.generation)
    assert fs.getattr(ROOT_NODE).st_ino == tmp_path.stat().st_ino


def test_a_used_number_gets_another_generation(make: Make, tmp_path: Path) -> None:
    """A node that was forgotten and found again is told apart by its generation."""
    (tmp_path / "a").touch()
    fs = make()
    first = fs.lookup(ROOT_NODE, b"a")
    fs.forget(first.node, 1)
    second = fs.lookup(ROOT_NODE, b"a")

    assert first.node == second.node
    assert first.generation != second.generation


def test_a_reused_inode_number_is_another_node(make: Make, tmp_path: Path) -> None:
    """An inode that took the number of one deleted behind our back gets its own node; the old one is ESTALE."""
    (tmp_path / "a").touch()
    fs = make()
    fs._nodes._limit = 0
    fs._nodes.handles or pytest.skip("needs file handles (CAP_DAC_READ_SEARCH)")
    old = fs.lookup(ROOT_NODE, b"a")
    (tmp_path / "x").touch()
    fs.lookup(ROOT_NODE, b"x")  # a's descriptor is closed by this
    assert fs._nodes.get(old.node).fd < 0
    os.unlink(tmp_path / "a")
    for i in range(200):
        (tmp_path / f"n{i}").touch()
        if os.stat(tmp_path / f"n{i}").st_ino == old.node:
            break
    else:
        pytest.skip("the backing filesystem did not use the number again")
    new = fs.lookup(ROOT_NODE, b"n%d" % i)
    with fails(errno.ESTALE):
        fs.getattr(old.node)

    assert new.node != old.node


@pytest.mark.parametrize(
    ("name", "number"),
    [*((name, errno.EINVAL) for name in (b"", b".", b"..", b"a/b", b"a\0b")), (b"n" * 256, errno.ENAMETOOLONG)],
)
def test_names_are_single_components(make: Make, name: bytes, number: int) -> None:
    """What could lead elsewhere is refused by every operation that takes a name."""
    fs = make()
    for call in (
        lambda: fs.lookup(ROOT_NODE, name),
        lambda: fs.mkdir(ROOT_NODE, name, 0o755, ME),
        lambda: fs.mknod(ROOT_NODE, name, stat.S_IFREG | 0o644, 0, ME),
        lambda: fs.symlink(ROOT_NODE, name, b"x", ME),
        lambda: fs.create(ROOT_NODE, name, 0o644, os.O_RDWR, ME),
        lambda: fs.link(ROOT_NODE, ROOT_NODE, name),
        lambda: fs.unlink(ROOT_NODE, name),
        lambda: fs.rmdir(ROOT_NODE, name),
        lambda: fs.rename(ROOT_NODE, name, ROOT_NODE, b"x", 0),
        lambda: fs.rename(ROOT_NODE, b"x", ROOT_NODE, name, 0),
    ):
        with fails(number):
            call()

    assert fs.stats().nodes == 1


def test_read_only_refuses_every_change(make: Make, tmp_path: Path) -> None:
    """EROFS, while reading goes on; and it can be changed while serving."""
    (tmp_path / "f").write_bytes(b"data")
    fs = make()
    entry = fs.lookup(ROOT_NODE, b"f")
    late = fs.open(entry.node, os.O_RDWR)
    fs.set_read_only(True)
    for call in (
        lambda: fs.open(entry.node, os.O_WRONLY),
        lambda: fs.write(late, 0, b"x"),
        lambda: fs.mkdir(ROOT_NODE, b"d", 0o755, ME),
        lambda: fs.create(ROOT_NODE, b"n", 0o644, os.O_RDWR, ME),
        lambda: fs.unlink(ROOT_NODE, b"f"),
        lambda: fs.rename(ROOT_NODE, b"f", ROOT_NODE, b"g", 0),
        lambda: fs.link(entry.node, ROOT_NODE, b"g"),
        lambda: fs.setattr(entry.node, SetAttr(mode=0), None),
        lambda: fs.setxattr(entry.node, b"user.x", b"", 0),
        lambda: fs.removexattr(entry.node, b"user.x"),
        lambda: fs.fallocate(late, 0, 0, 10),
    ):
        with fails(errno.EROFS):
            call()
    fh = fs.open(entry.node, os.O_RDONLY)

    assert fs.read(fh, 10, 0) == b"data"


def test_devices_by_policy(make: Make, tmp_path: Path) -> None:
    """Without the policy no device can be made; fifos and sockets always can."""
    fs = make()
    with fails(errno.EPERM):
        fs.mknod(ROOT_NODE, b"d", stat.S_IFCHR | 0o600, os.makedev(1, 3), ME)
    fs.mknod(ROOT_NODE, b"p", stat.S_IFIFO | 0o600, 0, ME)
    fs.mknod(ROOT_NODE, b"s", stat.S_IFSOCK | 0o600, 0, ME)

    assert sorted(os.listdir(tmp_path)) == ["p", "s"]


def test_special_files_are_not_opened(make: Make) -> None:
    """Opening a fifo here would block a thread of the server for ever: it is the kernel's business."""
    fs = make()
    entry = fs.mknod(ROOT_NODE, b"p", stat.S_IFIFO | 0o600, 0, ME)

    with fails(errno.ENXIO):
        fs.open(entry.node, os.O_RDONLY)


def test_unknown_numbers(make: Make) -> None:
    """A node that nobody knows is ESTALE, a handle EBADF, and forgetting too much is nothing."""
    fs = make()
    with fails(errno.ESTALE):
        fs.getattr(12345)
    with fails(errno.EBADF):
        fs.read(12345, 1, 0)
    fs.forget(12345, 1)
    fs.forget(ROOT_NODE, 100)

    assert stat.S_ISDIR(fs.getattr(ROOT_NODE).st_mode)


def test_eviction_under_threads(make: Make, tmp_path: Path) -> None:
    """Descriptors that are closed and opened again all the time never make one thread see another's file."""
    for i in range(60):
        (tmp_path / f"{i}").write_bytes(b"%d" % i)
    fs = make()
    fs._nodes._limit = 4
    nodes = {i: fs.lookup(ROOT_NODE, b"%d" % i) for i in range(60)}
    wrong: list[object] = []

    def work(seed: int) -> None:
        for n in range(600):
            i = (seed * 7 + n * 13) % 60
            try:
                if fs.getattr(nodes[i].node).st_ino != nodes[i].attr.st_ino:
                    wrong.append(i)
                fh = fs.open(nodes[i].node, os.O_RDONLY)
                if fs.read(fh, 9, 0) != b"%d" % i:
                    wrong.append(i)
                fs.release(fh)
            except OSError as e:
                wrong.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)

    assert wrong == []
    assert fs.stats().descriptors <= 5 + 8


def test_an_evicted_file_is_unlinked_and_lives_on(make: Make, tmp_path: Path) -> None:
    """A node whose descriptor was closed stays reachable after its last name went, while the kernel knows it."""
    (tmp_path / "a").write_bytes(b"alive")
    for i in range(20):
        (tmp_path / f"{i}").touch()
    fs = make()
    fs._nodes._limit = 2
    a = fs.lookup(ROOT_NODE, b"a")
    for i in range(20):
        fs.lookup(ROOT_NODE, b"%d" % i)
    assert not fs._nodes.handles or fs._nodes.get(a.node).fd < 0
    fs.unlink(ROOT_NODE, b"a")
    for i in range(20):
        fs.lookup(ROOT_NODE, b"%d" % i)
    fh = fs.open(a.node, os.O_RDONLY)

    assert fs.read(fh, 9, 0) == b"alive"
    assert fs.getattr(a.node).st_nlink == 0


@pytest.mark.slow
def test_many_nodes(make: Make, tmp_path: Path) -> None:
    """100,000 nodes visited twice hold a bounded number of descriptors and under a kilobyte each."""
    for d in range(100):
        (tmp_path / f"{d}").mkdir()
        for f in range(1000):
            os.mknod(tmp_path / f"{d}" / f"{f}")
    fs = make(descriptors=512)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    nodes = []
    for d in range(100):
        above = fs.lookup(ROOT_NODE, b"%d" % d).node
        nodes += [fs.lookup(above, b"%d" % f).node for f in range(1000)]
    per_node = (tracemalloc.get_traced_memory()[0] - before) / 100_000
    tracemalloc.stop()
    start = time.perf_counter()
    for node in nodes:
        fs.getattr(node)
    print(f"{per_node:.0f} bytes per node, {(time.perf_counter() - start) * 10:.1f} us per getattr of an evicted node")
    descriptors = len(os.listdir("/proc/self/fd"))

    assert fs.stats().nodes == 100_101
    assert fs.stats().descriptors <= 513
    assert descriptors < 600
    assert per_node < 1024


def test_removed_files_leave_nothing_behind(make: Make) -> None:
    """Without a quota too, nothing of an inode that was removed and forgotten stays in the server."""
    gc.collect()  # what other tests have left
    fs = make()
    for i in range(200):
        entry = fs.mknod(ROOT_NODE, b"f%d" % i, stat.S_IFREG | 0o600, 0, ME)
        fs.unlink(ROOT_NODE, b"f%d" % i)
        fs.forget(entry.node, 1)

    assert fs.stats().descriptors == 1
    assert [node for node in gc.get_objects() if isinstance(node, Node) and node.unlinked] == []
