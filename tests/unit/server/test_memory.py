"""The session memory: what a server leaves to the next one."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.errors import UnavailableError
from fusevol.fs import FileSystem
from fusevol.fs.memory import FileRecord, NodeRecord
from fusevol.fs.types import ROOT_NODE, Caller
from fusevol.server.memory import SessionMemory

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
def heir(memory: SessionMemory) -> Iterator[SessionMemory]:
    """The same memory, as the next server finds it; nothing is read before it is asked."""
    made = SessionMemory.adopt(os.dup(memory.fd), (os.dup(memory.lot[0].fileno()), os.dup(memory.lot[1].fileno())))
    yield made
    _close(made)


def test_records_are_found_again(memory: SessionMemory, heir: SessionMemory) -> None:
    """Nodes, open files and the agreement are as they were written; what was dropped is gone, its place used again."""
    memory.set_agreement(45, 1 << 37 | 3, 4096)
    nodes = [memory.add_node(10 + i, i, (7, 100 + i), 1, b"handle%d" % i) for i in range(3)]
    memory.set_lookups(nodes[0], 5)
    memory.set_unlinked(nodes[2], True)
    memory.drop_node(nodes[1])
    again = memory.add_node(99, 9, (7, 999), 2, b"")
    files = [memory.add_file(1 + i, 10, os.O_RDWR) for i in range(2)]
    memory.set_backing(files[1], 42)
    memory.drop_file(files[0])

    assert heir.agreement() == (45, 1 << 37 | 3, 4096)
    assert list(heir.nodes()) == [
        NodeRecord(nodes[0], 10, 0, 7, 100, 5, False, b"handle0"),
        NodeRecord(nodes[1], 99, 9, 7, 999, 2, False, b""),
        NodeRecord(nodes[2], 12, 2, 7, 102, 1, True, b"handle2"),
    ]
    assert again == nodes[1]
    assert list(heir.files()) == [FileRecord(files[1], 2, 10, os.O_RDWR, 42)]


def test_heir_gives_no_place_twice(memory: SessionMemory, heir: SessionMemory) -> None:
    """What the next server writes down stands beside what it found."""
    for i in range(3):
        memory.add_node(10 + i, 1, (7, i), 1, b"h")
    found = [record.number for record in heir.nodes()]
    heir.add_node(50, 1, (7, 50), 1, b"h")

    assert [record.number for record in heir.nodes()] == [*found, 50]


def test_parked_inodes_stay_alive(memory: SessionMemory, heir: SessionMemory, tmp_path: Path) -> None:
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
    found = heir.parked()
    content = os.pread(found[7], 10, 0)
    again = heir.parked()
    for fd in [*found.values(), *again.values()]:
        os.close(fd)

    assert content == b"7"
    assert set(again) == set(found)
    assert len(found) < 100


def test_another_layout_is_refused(memory: SessionMemory) -> None:
    """A memory of another version is not read: one sentence, nothing is changed."""
    os.pwrite(memory.fd, struct.pack("=Q", 2), 8)
    before = os.pread(memory.fd, 4096, 0)

    with pytest.raises(UnavailableError, match="has layout 2, this version reads 1"):
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
    assert list(memory.nodes()) == []
