"""Nodes that an earlier server has left: records in the session memory, each made a node when somebody asks for it.

To make all of them at once took 250 ms for 100,000 nodes, in which nothing was answered; to learn where they are takes
25 ms.
"""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Final

from fusevol.fs import _libc
from fusevol.fs.memory import UNCOUNTED, UNKNOWN, Memory, NodeRecord
from fusevol.fs.node import Node
from fusevol.fs.types import ROOT_NODE

OTHER_NUMBERS: Final = 1 << 62
"""Where node numbers start that are not inode numbers; no filesystem in use has inode numbers of that size."""


def _node(record: NodeRecord) -> Node:
    node = Node(record.number, record.generation, (record.device, record.inode), -1, record.charged)
    node.lookups, node.where, node.handle = record.lookups, record.where, record.handle
    node.unlinked, node.moving = record.unlinked, record.moving
    return node


class Inherited:
    """See above. Callers hold the lock of the table of nodes."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._places = memory.nodes()
        self.root = self._places.pop(ROOT_NODE, -1)
        """Where the root's record is; -1 if there is none."""
        self.generation = memory.last_generation()
        """The highest that a node ever had."""
        self.number = max(self._places, default=0)
        """The highest of any node."""

    def superseded(self) -> list[Node]:
        """Nodes without a name that nobody knew any longer, whose numbers were used again before that was settled."""
        return [_node(record) for record in self._memory.superseded()]

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def numbers(self) -> list[int]:
        """Those that nobody has asked for."""
        return list(self._places)

    def urgent(self) -> list[int]:
        """Those that cannot wait: without a name, moving, not known to the kernel, or not found by inode number."""
        found = [number for number in self._memory.special() if number in self._places]
        if self.number >= OTHER_NUMBERS:
            found += [number for number in self._places if number >= OTHER_NUMBERS]
        return found

    def charge(self) -> int:
        """What has been counted of the root."""
        return self._memory.node(self.root).charged

    def take(self, number: int) -> Node | None:
        """The node *number*, which is no longer here then; ``None`` if there is none."""
        where = self._places.pop(number, None)
        if where is None:
            return None
        return _node(self._memory.node(where))

    def take_inode(self, key: tuple[int, int]) -> Node | None:
        """The node of an inode, as :meth:`take`."""
        where = self._places.get(key[1])  # a node's number is that of its inode, or it was taken as urgent
        if where is None:
            return None
        record = self._memory.node(where)
        return self.take(record.number) if (record.device, record.inode) == key else None


class Heir(ABC):
    """The part of the table of nodes that goes on with an earlier server's. See :class:`fusevol.fs.nodes.Nodes`."""

    root: Node
    gone: list[Node] | None
    """Unlinked nodes that nobody knows any longer, whose space is free now: where there is an accounting it takes them,
    and says so to :meth:`settled`."""
    _lock: threading.Lock
    _memory: Memory | None
    _inherited: Inherited | None
    _doubtful: int
    """The generation up to which counts of lookups may be too high."""
    _generation: int
    _other: int
    _mount: int
    _by_number: dict[int, Node]
    _by_key: dict[tuple[int, int], Node]
    _open: OrderedDict[Node, None]

    def _inherit(self, memory: Memory, handle: bytes) -> None:
        left = Inherited(memory)
        if left.root < 0:
            self.root.where = memory.add_node(ROOT_NODE, 0, self.root.key, 1, self.root.charged, handle)
            return
        self.root.where, self.root.charged = left.root, left.charge()
        self._inherited = left
        self._generation = max(self._generation, left.generation)
        self._doubtful = left.generation
        self._other = max(self._other, left.number)
        for number in left.urgent():
            self._wake(number)
        parked = memory.parked()
        for number in parked:
            self._wake(number)
        for node in [*self._by_number.values()]:
            if node.unlinked or node.number in parked:
                self._reach_nameless(node, parked.pop(node.number, -1), memory)
        for number, fd in parked.items():
            memory.unpark(number)
            os.close(fd)

    def _wake(self, number: int) -> Node | None:
        """The node *number*, which may be one that an earlier server has left. Called with the lock."""
        node = self._by_number.get(number)
        if node is None and self._inherited is not None:
            node = self._inherited.take(number)
            if node is not None:
                self._by_number[number] = self._by_key[node.key] = node
        return node

    def _reach_nameless(self, node: Node, fd: int, memory: Memory) -> None:
        """Reach an inode without a name: by the descriptor that was kept of it, or while somebody has it open."""
        if fd < 0:
            try:
                fd = _libc.open_handle(self._mount, node.handle or b"", os.O_PATH)
            except OSError as e:
                if e.errno not in {errno.ESTALE, errno.ENOENT}:
                    raise
                return  # it died with the earlier server
        node.fd = fd
        self._open[node] = None
        if os.fstat(fd).st_nlink:
            memory.unpark(node.number)
        self._set_unlinked(node, value=os.fstat(fd).st_nlink == 0)

    def known(self, number: int) -> Node | None:
        """The node *number*, if there is one."""
        with self._lock:
            return self._wake(number)

    def at(self, key: tuple[int, int]) -> Node | None:
        """The node of an inode, if it has one."""
        with self._lock:
            return self._by_key.get(key) or self._wake_inode(key)

    def _wake_inode(self, key: tuple[int, int]) -> Node | None:
        if self._inherited is None:
            return None
        node = self._inherited.take_inode(key)
        if node is not None:
            self._by_number[node.number] = self._by_key[key] = node
        return node

    def awake(self) -> list[Node]:
        """All nodes but those that an earlier server has left and nobody has asked for."""
        with self._lock:
            return list(self._by_number.values())

    def leave_unused(self) -> None:
        """Give up what was only kept for the earlier server: all files that are open were opened again before this.

        An inode without a name and without an open file dies with its server.
        """
        with self._lock:
            for node in list(self._by_number.values()):
                if not node.opens and (node.unlinked or not node.lookups):
                    node.lookups = 0
                    if node.charged == UNKNOWN:
                        node.charged = UNCOUNTED  # without a name, it was not found when all was counted anew
                    self._drop(node)
            if self._inherited is not None and self.gone is not None:
                self.gone += self._inherited.superseded()
        self._close_dropped()

    def lost(self, node: Node) -> None:
        """The inode of *node* is gone, which has been settled."""
        with self._lock:
            node.unlinked = True
            self._forget(node)
        self.settled(node)

    def lost_name(self, node: Node) -> None:
        """*node* was found to have no name."""
        with self._lock:
            self._set_unlinked(node, value=True)

    @abstractmethod
    def settled(self, node: Node) -> None:
        """The space of *node*, which was :attr:`gone`, can be used; it is counted no longer."""

    @abstractmethod
    def _set_unlinked(self, node: Node, *, value: bool) -> None:
        """*node* has no name, or has one."""

    @abstractmethod
    def _drop(self, node: Node) -> None:
        """Nobody knows *node* any longer. Called with the lock."""

    @abstractmethod
    def _forget(self, node: Node) -> None:
        """Take *node* out of the table, but not out of the session memory. Called with the lock."""

    @abstractmethod
    def _close_dropped(self) -> None:
        """Close the descriptors of nodes that are gone. Called without the lock."""
