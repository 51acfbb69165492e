"""The session memory: what a server leaves to the next one."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusevol.errors import UnavailableError
from fusevol.fs import FileSystem
from fusevol.fs.memory import UNKNOWN, FileRecord, NodeRecord
from fusevol.fs.types import ROOT_NODE, Caller
from fusevol.server.memory import VERSION, SessionMemory

ME = Caller(os.geteuid(), os.getegid(), 0)


@pytest.fixture
def memory() -> Iterator[SessionMemory]:
    """An empty memory."""
    made = SessionMemory.create()
    yield made
    _close(made)


def _close(memory: SessionMemory) -> None:
    for end in memory.lot:
        end.close()
    os.close(memory.fd)


@pytest.fixture
def heir(memory: SessionMemory) -> Iterator[Callable[[], SessionMemory]]:
    """Makes the same memory as the next server finds it."""
    made: list[SessionMemory] = []

    def adopt() -> SessionMemory:
        lot = (os.dup(memory.lot[0].fileno()), os.dup(memory.lot[1].fileno()))
        made.append(SessionMemory.adopt(os.dup(memory.fd), lot))
        return made[-1]

    yield adopt
    for it in made:
        _close(it)


def _nodes(memory: SessionMemory) -> list[NodeRecord]:
    return [memory.node(where) for where in memory.nodes().values()]


def test_records_are_found_again(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """Nodes, open files and the agreement are as they were written; what was dropped is gone, its place used again."""
    memory.set_agreement(45, 1 << 37 | 3, 4096)
    nodes = [memory.add_node(10 + i, i, (7, 100 + i), 1, 512 * i, b"handle%d" % i) for i in range(4)]
    memory.set_lookups(nodes[0], 5)
    memory.set_unlinked(nodes[2], True)
    memory.journal.moves(nodes[3], True)
    memory.journal.know(nodes[3], 8192)
    memory.drop_node(nodes[1])
    again = memory.add_node(99, 9, (7, 999), 2, UNKNOWN, b"")
    files = [memory.add_file(1 + i, 10, os.O_RDWR) for i in range(2)]
    memory.set_backing(files[1], 42)
    memory.drop_file(files[0])
    memory.opening(4711)
    opened = memory.add_file(3, 12, os.O_RDONLY)
    found = heir()

    assert found.agreement() == (45, 1 << 37 | 3, 4096)
    assert _nodes(found) == [
        NodeRecord(nodes[0], 10, 0, 7, 100, 5, False, False, 0, b"handle0"),
        NodeRecord(nodes[1], 99, 9, 7, 999, 2, False, False, UNKNOWN, b""),
        NodeRecord(nodes[2], 12, 2, 7, 102, 1, True, False, 1024, b"handle2"),
        NodeRecord(nodes[3], 13, 3, 7, 103, 1, False, True, 8192, b"handle3"),
    ]
    assert again == nodes[1]
    assert (found.special(), found.last_generation()) == ([12, 13], 9)
    assert found.files() == [
        FileRecord(opened, 3, 12, os.O_RDONLY, 0, 4711),
        FileRecord(files[1], 2, 10, os.O_RDWR, 42, 0),
    ]
    assert [found.opened(request) for request in (1, 4711, 4711)] == [None, found.files()[0], None]


def test_heir_gives_no_place_twice(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """What the next server writes down stands beside what it found."""
    for i in range(3):
        memory.add_node(10 + i, 1, (7, i), 1, 0, b"h")
    next_one = heir()
    next_one.add_node(50, 1, (7, 50), 1, 0, b"h")

    assert sorted(heir().nodes()) == [10, 11, 12, 50]


def test_parked_inodes_stay_alive(memory: SessionMemory, heir: Callable[[], SessionMemory], tmp_path: Path) -> None:
    """A file without a name is there as long as it is parked, also after many others came and went."""
    for number in range(1, 200):
        path = tmp_path / "f"
        path.write_text(str(number))
        fd = os.open(path, os.O_RDONLY)
        path.unlink()
        memory.park(number, fd)
        os.close(fd)
        if number != 7:
            memory.unpark(number)
    next_one = heir()
    found = next_one.parked()
    content = os.pread(found[7], 10, 0)
    again = next_one.parked()
    for fd in [*found.values(), *again.values()]:
        os.close(fd)

    assert content == b"7"
    assert set(again) == set(found)
    assert len(found) < 100


def test_another_layout_is_refused(memory: SessionMemory) -> None:
    """A memory of another version is not read: one sentence, nothing is changed."""
    os.pwrite(memory.fd, struct.pack("=Q", VERSION + 1), 8)
    before = os.pread(memory.fd, 4096, 0)

    with pytest.raises(UnavailableError, match=f"has layout {VERSION + 1}, this version reads {VERSION}"):
        SessionMemory.adopt(memory.fd, (memory.lot[0].fileno(), memory.lot[1].fileno()))
    assert os.pread(memory.fd, 4096, 0) == before


@pytest.mark.root
def test_long_handles_are_not_remembered(
    memory: SessionMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the backing store's file handles have no room, the filesystem works, but does not survive its server."""
    monkeypatch.setattr(SessionMemory, "longest_handle", 4)
    fs = FileSystem(str(tmp_path), memory=memory)
    survives = fs.survives
    entry, fh = fs.create(ROOT_NODE, b"f", 0o100600, os.O_RDWR, ME)
    fs.release(fh)
    fs.forget(entry.node, 1)
    fs.close()

    assert not survives
    assert (tmp_path / "f").exists()
    assert memory.nodes() == {}
