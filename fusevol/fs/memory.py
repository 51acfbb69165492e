"""What a filesystem must not forget when its process is killed: an interface, and the values that cross it.

The kernel holds node numbers and file handles for as long as the connection lives, longer than a server may. Who serves
the connection next must know what they mean. Each change is written before the kernel hears of it; a count may be too
high after a kill (something stays known until the unmount), never too low.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class NodeRecord(NamedTuple):
    """An inode that the kernel knows."""

    where: int
    number: int
    generation: int
    device: int
    inode: int
    lookups: int
    unlinked: bool
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


class Memory(Protocol):
    """See above. *where* names a record. Thread-safe."""

    @property
    def longest_handle(self) -> int:
        """Bytes of a file handle for which there is room; a filesystem that has longer ones is not remembered."""

    def add_node(self, number: int, generation: int, key: tuple[int, int], lookups: int, handle: bytes) -> int:
        """Remember a node. Raises ``OSError(ENFILE)`` when there is no room for more."""

    def set_lookups(self, where: int, count: int) -> None:
        """How often the kernel has looked a node up."""

    def set_unlinked(self, where: int, value: bool) -> None:
        """Whether a node has no name any longer."""

    def drop_node(self, where: int) -> None:
        """The kernel has forgotten a node."""

    def add_file(self, fh: int, node: int, flags: int) -> int:
        """Remember an open file or directory. Raises ``OSError(ENFILE)``."""

    def set_backing(self, where: int, backing: int) -> None:
        """An open file has the backing id *backing*."""

    def drop_file(self, where: int) -> None:
        """It was closed."""

    def park(self, number: int, fd: int) -> None:
        """Keep the inode behind *fd*, which has no name, alive: only an open descriptor does."""

    def unpark(self, number: int) -> None:
        """The end of :meth:`park`."""

    def nodes(self) -> Iterator[NodeRecord]:
        """All that is remembered."""

    def files(self) -> Iterator[FileRecord]:
        """All that is remembered."""

    def parked(self) -> dict[int, int]:
        """Descriptors of what is parked, by node; the caller closes them."""
