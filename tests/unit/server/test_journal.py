"""The journal: what is found after a kill between two stores, and when nothing can be found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from fusevol.fs.memory import GONE, UNCOUNTED, UNKNOWN, Unfinished
from fusevol.server.journal import ENTRIES, Journal
from fusevol.server.memory import SessionMemory, counted
from fusevol.usage import Usage
from tests.support.sudden import dies

COUNTED = Usage(1000, 10, 1 << 30, None)


@pytest.fixture
def memory() -> Iterator[SessionMemory]:
    """A memory with four nodes, 11 to 14, each charged a hundred times its number."""
    made = SessionMemory.create()
    made.journal.start(COUNTED)
    for number in range(11, 15):
        made.add_node(number, 1, (7, number), 1, number * 100, b"h")
    yield made
    for end in made.lot:
        end.close()
    os.close(made.fd)


@pytest.fixture
def heir(memory: SessionMemory) -> Callable[[], SessionMemory]:
    """The same memory in the hands of the next server."""
    return lambda: SessionMemory(memory.fd, memory.lot)


def charges(memory: SessionMemory) -> dict[int, int]:
    """What has been counted of each node."""
    return {number: memory.node(where).charged for number, where in memory.nodes().items()}


BEFORE = {11: 1100, 12: 1200, 13: 1300, 14: 1400}


def test_who_holds_a_memory_may_read_the_counters(memory: SessionMemory) -> None:
    """By the descriptor alone: what is counted now; nothing while nobody counts, and nothing of another file."""
    first = counted(memory.fd)
    memory.journal.begin(()).commit(2000, 20)
    second = counted(memory.fd)
    memory.journal.distrust()
    other = os.memfd_create("other")
    os.write(other, bytes(4096))
    nothing = [counted(memory.fd), counted(other)]
    os.close(other)

    assert (first, second) == (COUNTED, COUNTED._replace(used_bytes=2000, used_inodes=20))
    assert nothing == [None, None]


def test_a_commit_is_whole_or_not_there(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """Killed at any instruction, the next one finds counters and charges from before, and the entry in flight, or those
    from after and no entry; a charge that is gone takes its record along."""
    nodes = memory.nodes()

    def operation() -> None:
        entry = memory.journal.begin((nodes[11], nodes[12], nodes[13]))
        entry.charge(0, 5)
        entry.charge(1, GONE)
        entry.charge(2, 1300)
        entry.add(nodes[14], 77)
        entry.commit(2000, 20)

    seen = {"before": 0, "in flight": 0, "after": 0}
    at, died = 0, True
    while died:
        memory.journal.start(COUNTED)
        for number, charged in BEFORE.items():
            memory.journal.know(nodes[number], charged)
            memory.journal.words[nodes[number] >> 3] = number
        died = dies(at, operation, unit="opcode")
        found = heir()
        usage, unfinished = found.journal.load(), found.journal.unfinished()
        if usage == COUNTED:
            seen["in flight" if unfinished else "before"] += 1
            assert charges(found) == BEFORE
            assert [u[1:] for u in unfinished] in ([], [([11, 12, 13], 0, 0, b"", 0)])
        else:
            seen["after"] += 1
            assert usage == Usage(2000, 20, 1 << 30, None)
            assert unfinished == []
            assert charges(found) == {11: 5, 13: 1300, 14: 77}
        at += 1

    assert min(seen.values()) > 5, seen


def test_what_is_made_is_told_by_name(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """The name of an inode in the making is there whole, or not at all; also the longest, and the highest inode."""
    nodes = memory.nodes()
    for name, inode in ((b"n", 0), (b"\xff" * 255, (1 << 64) - 1)):
        at, told = 0, 0

        def operation(name: bytes = name, inode: int = inode) -> None:
            memory.journal.begin((nodes[11],)).makes(nodes[12], name, inode)

        while dies(at, operation, unit="opcode"):
            found = heir()
            found.journal.load()
            unfinished = found.journal.unfinished()
            if unfinished and unfinished[0].parent:
                told += 1
                assert unfinished[0][1:] == ([11], 0, 12, name, inode)
            memory.journal.start(COUNTED)
            at += 1

        found = heir()
        found.journal.load()
        assert [u[1:] for u in found.journal.unfinished()] == [([11], 0, 12, name, inode)]
        memory.journal.start(COUNTED)


def test_entries_are_used_again(memory: SessionMemory) -> None:
    """Operations one after another take one entry; more at once than there are entries are refused."""
    nodes = memory.nodes()
    for _ in range(10_000):
        memory.journal.begin((nodes[11],)).cancel()
    few = heir_entries(memory.journal)
    for _ in range(ENTRIES):
        memory.journal.begin((nodes[11],))
    with pytest.raises(OSError, match="Too many open files in system"):
        memory.journal.begin((nodes[11],))

    assert few == 1


def heir_entries(journal: Journal) -> int:
    """How many entries were ever used."""
    return journal.words[journal.counters + 5]


def test_limits(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """Limits that were changed are found, no limit included."""
    memory.journal.set_limits(None, 5)

    assert heir().journal.load() == Usage(1000, 10, None, 5)


@pytest.mark.expect_log("counted anew")
@pytest.mark.parametrize("damage", ["bytes", "inodes", "state", "place", "unnamed", "parent", "length"])
def test_nonsense_is_not_believed(memory: SessionMemory, heir: Callable[[], SessionMemory], damage: str) -> None:
    """Counters and entries that no server can have written are found out: nothing is known then, until a new start."""
    nodes = memory.nodes()
    entry = memory.journal.begin((nodes[11],))
    entry.makes(nodes[12], b"name", 0)
    words, counters, at = memory.journal.words, memory.journal.counters, entry.at
    word, value = {
        "bytes": (counters + 1, -1),
        "inodes": (counters + 2, 0),
        "state": (at, 99),
        "place": (at + 7, nodes[11] + 8),
        "unnamed": (at + 3, 5),
        "parent": (at + 4, 1 << 40),
        "length": (at + 6, 256),
    }[damage]
    words[word] = value
    found = heir().journal.load()
    again = heir()
    again.journal.start(COUNTED)

    assert found is None
    assert heir().journal.load() == COUNTED
    assert charges(again) == dict.fromkeys(BEFORE, UNKNOWN)


def test_distrusted(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """What a server distrusts the next one does not find; what was never started neither."""
    memory.journal.distrust()
    fresh = SessionMemory.create()
    never = fresh.journal.load()
    for end in fresh.lot:
        end.close()
    os.close(fresh.fd)

    assert heir().journal.load() is None
    assert never is None


def test_the_later_of_two_nodes_has_the_number(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """Where a number was used again before the node that had it was settled, both are found, each as what it is."""
    memory.add_node(11, 9, (7, 11), 1, UNCOUNTED, b"later")
    found = heir()

    assert found.node(found.nodes()[11]).handle == b"later"
    assert [(r.number, r.charged, r.handle) for r in found.superseded()] == [(11, 1100, b"h")]


def test_unfinished_is_what_it_says(memory: SessionMemory, heir: Callable[[], SessionMemory]) -> None:
    """Entries that are in flight are handed over once, free ones are not, and theirs can be committed."""
    nodes = memory.nodes()
    memory.journal.begin((nodes[11],)).cancel()
    memory.journal.begin((nodes[12], nodes[13]))
    found = heir()
    found.journal.load()
    unfinished: list[Unfinished] = found.journal.unfinished()
    unfinished[0].entry.charge(0, 1)
    unfinished[0].entry.charge(1, 2)
    unfinished[0].entry.commit(7, 8)
    after = heir()

    assert [u.nodes for u in unfinished] == [[12, 13]]
    assert found.journal.unfinished() == []
    assert after.journal.load() == Usage(7, 8, 1 << 30, None)
    assert charges(after) == BEFORE | {12: 1, 13: 2}
