"""What a filesystem must not forget when its process is killed: an interface, and the values that cross it.

The kernel holds node numbers and file handles for as long as the connection lives, longer than a server may. Who serves
the connection next must know what they mean, and what has been counted of each inode. Each change is written before the
kernel hears of it; a count of lookups may be too high after a kill, never too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from fusevol.usage import Entry as CommittedEntry

UNKNOWN: Final = -1
"""Charge of a node: its inode was counted, but nobody knows how much. What it has now, when nothing is under way."""
UNCOUNTED: Final = -2
"""Charge of a node whose inode is being made, and not yet counted."""
GONE: Final = -3
"""Instead of a charge in an :class:`Entry`: the inode is counted no longer, and its node's record is free."""


class NodeRecord(NamedTuple):
    """An inode that the kernel knows, or that has an open file."""

    where: int
    number: int
    generation: int
    device: int
    inode: int
    lookups: int
    unlinked: bool
    moving: bool
    """Whether its blocks may change by themselves (``fusevol.fs.accounting``)."""
    charged: int
    """What has been counted of it in bytes, or one of the values above."""
    handle: bytes
    """``struct file_handle`` (name_to_handle_at(2))."""


class FileRecord(NamedTuple):
    """A file or directory that is open."""

    where: int
    fh: int
    node: int
    flags: int
    """Those of open(2); O_DIRECTORY for a directory."""
    backing: int
    """The id by which the kernel reads and writes it itself; 0 if it does not."""
    request: int
    """The request by which it was opened; 0 if that is not known."""


class Entry(CommittedEntry, Protocol):
    """An operation that is under way, and may change what has been counted. Ends with a commit or :meth:`cancel`."""

    def makes(self, parent: int, name: bytes, inode: int) -> None:
        """It makes an inode called *name* in the node at *parent*; *inode* is the one of that name before, or 0."""

    def unnames(self, where: int) -> None:
        """It takes a name of the node at *where*, maybe the last one."""

    def charge(self, place: int, charged: int) -> None:
        """What it has cost: the node that was named *place*-th has so much now, or is :data:`GONE`."""

    def add(self, where: int, charged: int) -> None:
        """It has made the inode of the node at *where*, which has so much."""

    def cancel(self) -> None:
        """It has changed nothing that is counted."""


class Unfinished(NamedTuple):
    """An operation that was under way when an earlier server was killed."""

    entry: Entry
    nodes: list[int]
    unnamed: int
    """The node that loses a name; 0 if none does."""
    parent: int
    """The node in which it makes an inode; 0 if it makes none."""
    name: bytes
    inode: int


class Journal(Protocol):
    """What is under way, and what has been counted. Thread-safe; a node is in one entry at a time, under its lock."""

    def begin(self, nodes: Sequence[int]) -> Entry:
        """An operation on the nodes at these places begins. Raises ``OSError(ENFILE)`` when too many are under way."""

    def know(self, where: int, charged: int) -> None:
        """The charge of the node at *where*, which was unknown, is this."""

    def moves(self, where: int, value: bool) -> None:
        """Whether the blocks of the node at *where* may change by themselves."""

    def unfinished(self) -> list[Unfinished]:
        """What an earlier server has left undone."""


class Memory(Protocol):
    """See above. *where* names a record. Thread-safe."""

    @property
    def journal(self) -> Journal:
        """What is under way."""

    @property
    def longest_handle(self) -> int:
        """Bytes of a file handle for which there is room; a filesystem that has longer ones is not remembered."""

    def add_node(
        self, number: int, generation: int, key: tuple[int, int], lookups: int, charged: int, handle: bytes
    ) -> int:
        """Remember a node. Raises ``OSError(ENFILE)`` when there is no room for more."""

    def set_lookups(self, where: int, count: int) -> None:
        """How often the kernel has looked a node up."""

    def set_unlinked(self, where: int, value: bool) -> None:
        """Whether a node has no name any longer."""

    def drop_node(self, where: int) -> None:
        """The kernel has forgotten a node."""

    def add_file(self, fh: int, node: int, flags: int) -> int:
        """Remember an open file or directory, and the request of this thread. Raises ``OSError(ENFILE)``."""

    def set_backing(self, where: int, backing: int) -> None:
        """An open file has the backing id *backing*."""

    def drop_file(self, where: int) -> None:
        """It was closed."""

    def park(self, number: int, fd: int) -> None:
        """Keep the inode behind *fd*, which has no name, alive: only an open descriptor does."""

    def unpark(self, number: int) -> None:
        """The end of :meth:`park`."""

    # what an earlier server has left

    def nodes(self) -> dict[int, int]:
        """Where the records of the nodes are, by number."""

    def node(self, where: int) -> NodeRecord:
        """One of them."""

    def superseded(self) -> list[NodeRecord]:
        """Those that :meth:`nodes` has left out, since a later node has the number: their inodes are gone."""

    def special(self) -> list[int]:
        """The numbers of nodes that have no name, that move, or that the kernel does not know."""

    def last_generation(self) -> int:
        """The highest generation that a node ever had."""

    def files(self) -> list[FileRecord]:
        """What is open."""

    def parked(self) -> dict[int, int]:
        """Descriptors of what is parked, by node; the caller closes them."""
