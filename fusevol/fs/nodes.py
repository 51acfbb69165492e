"""The inodes that the kernel knows, by number; and a bounded number of descriptors to reach them by.

A node is an inode of the backing store, found by device and inode number, whatever names it has. It is reached by an
O_PATH descriptor; the least recently used of these are closed, and opened again on demand by file handle
(name_to_handle_at(2)). The handle is computed only when a descriptor is closed, which keeps it off the fast path.
An inode whose descriptor is open cannot be freed, so its number cannot be used again; for one whose descriptor was
closed, handles are compared, since they hold the inode's generation.

Where there are no handles (backing store, or no CAP_DAC_READ_SEARCH), a node is opened again by its parent and name,
and refused with ESTALE if another inode is found there. A node whose last known name was removed, or which is on
another device than the root, keeps its descriptor.

A node is in the session memory, if there is one, for as long as it is here; if its inode is counted and has no name,
until that was settled (:meth:`Nodes.settled`). What the server does for itself *pins* a node; lookups are the kernel's.

Lock discipline: ``_lock`` guards all fields of nodes but ``charged``, ``hold`` and ``moving`` (see accounting). System
calls within it are close(2) of an inode that lives on, name_to_handle_at(2), fstat(2) of a new inode and what parks a
descriptor only, and the session memory's lock is the only one that is taken within it. A descriptor is used only
between :meth:`pin` and :meth:`unpin`, or by who holds the table's lock.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from fusevol.fs import _libc
from fusevol.fs.inherited import OTHER_NUMBERS, Heir
from fusevol.fs.memory import UNCOUNTED, UNKNOWN, Memory
from fusevol.fs.node import Node, stale
from fusevol.fs.types import ROOT_NODE

_TRIES: Final = 64
"""How many nodes are looked at when descriptors are to be closed."""
_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Nodes(Heir):
    """The table. Thread-safe."""

    def __init__(self, source: str, descriptors: int, memory: Memory | None = None) -> None:
        """*memory* has the nodes of an earlier server of the same connection, and is told of all changes."""
        self._lock = threading.Lock()
        self._memory = None
        self._inherited = None
        self._doubtful = 0
        self._limit = max(descriptors, 16)
        self._generation = 1
        self._other = OTHER_NUMBERS
        self._mount = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        st = os.fstat(fd)
        self.root = Node(ROOT_NODE, 0, (st.st_dev, st.st_ino), fd, st.st_blocks * 512)
        self.root.lookups = 1
        self._device = st.st_dev
        self._by_number = {ROOT_NODE: self.root}
        self._by_key = {self.root.key: self.root}
        self._open = OrderedDict()
        self.handles = self._have_handles()
        self._nameless: dict[Node, None] = {}
        self._dropped: list[int] = []
        """Descriptors of nodes that are gone, to be closed."""
        self.gone = None
        if memory is not None and self.handles:
            handle = _libc.file_handle(fd)
            if len(handle) <= memory.longest_handle:
                self._memory = memory
                self._inherit(memory, handle)

    @property
    def survives(self) -> bool:
        """Whether the nodes are in a memory that outlives this process."""
        return self._memory is not None

    def nameless(self) -> list[Node]:
        """Nodes whose inodes have no name: a scan of the tree does not find them."""
        with self._lock:
            return list(self._nameless)

    def expecting(self, *, opened: bool) -> bool:
        """Whether an inode without a name would be free if the kernel forgot it; if *opened*, also if it closed it."""
        return any(opened or not node.opens for node in self.nameless()) if self._nameless else False

    def _have_handles(self) -> bool:
        try:
            os.close(_libc.open_handle(self._mount, _libc.file_handle(self.root.fd), os.O_PATH))
        except OSError:
            return False
        return True

    @property
    def mount_fd(self) -> int:
        """A descriptor of the root directory, open for reading."""
        return self._mount

    def __len__(self) -> int:
        return len(self._by_number) + (len(self._inherited) if self._inherited is not None else 0)

    def numbers(self) -> list[int]:
        """The numbers of all nodes but the root."""
        with self._lock:
            left = self._inherited.numbers() if self._inherited is not None else []
            return left + [number for number in self._by_number if number != ROOT_NODE]

    def descriptors(self) -> int:
        """How many O_PATH descriptors are open, the root's included."""
        return len(self._open) + 1

    def get(self, number: int) -> Node:
        """The node of *number*. Raises ``OSError(ESTALE)`` if there is none."""
        node = self._by_number.get(number)
        if node is None and self._inherited is not None:
            with self._lock:
                node = self._wake(number)
        if node is None:
            raise stale()
        return node

    def path(self, number: int) -> str | None:
        """Where an inode is below the root, which is ``.``, as far as a descriptor of it tells.

        Waits for nothing: readlink(2) in /proc asks no filesystem, and no lock is taken.
        """
        node = self._by_number.get(number)
        fd = node.fd if node is not None else -1
        if fd < 0:
            return None
        try:
            root, found = os.readlink(_libc.BY_FD % self.root.fd), os.readlink(_libc.BY_FD % fd)
        except OSError:
            return None
        if node is None or node.fd != fd:  # it was closed meanwhile, and may be anything by now
            return None
        if found == root:
            return "."
        return os.fsdecode(found[len(root.rstrip(b"/")) + 1 :]) if found.startswith(root.rstrip(b"/") + b"/") else None

    # -- descriptors --------------------------------------------------------------------------------------------------

    def pin(self, node: Node) -> int:
        """A descriptor of *node* that stays open until :meth:`unpin`. Raises ``OSError``."""
        with self._lock:
            node.pins += 1
            fd = node.fd
            if fd >= 0:
                if node is not self.root:
                    self._open.move_to_end(node)
                return fd
        try:
            return self._reopen(node)
        except BaseException:
            self.unpin(node)
            raise

    def unpin(self, node: Node) -> None:
        """The end of :meth:`pin`."""
        with self._lock:
            node.pins -= 1
            if not node.pins and not node.lookups and not node.opens:
                self._drop(node)
        if self._dropped:
            self._close_dropped()

    def _reopen(self, node: Node) -> int:
        fd = self._open_again(node)
        with self._lock:
            if node.fd >= 0:  # another thread was faster
                os.close(fd)
                return node.fd
            node.fd = fd
            self._open[node] = None
            if len(self._open) > self._limit:
                self._evict()
            return fd

    def _open_again(self, node: Node) -> int:
        if node.handle is not None:
            return _libc.open_handle(self._mount, node.handle, os.O_PATH)
        parent, name = node.parent, node.name
        if parent is None or name is None:
            raise stale()
        above = self.pin(parent)
        try:
            fd = os.open(name, _PATH, dir_fd=above)
        except FileNotFoundError:
            raise stale() from None
        finally:
            self.unpin(parent)
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != node.key:
            os.close(fd)
            raise stale()
        return fd

    def _evict(self) -> None:
        """Close what is used least until the limit holds, and a few more: not every new node shall come here. Called
        with the lock."""
        tries = min(len(self._open), _TRIES)
        enough = self._limit - min(self._limit, _TRIES) // 2
        while len(self._open) > enough and tries:
            tries -= 1
            node = next(iter(self._open))
            if node.pins or node.unlinked or not self._can_reopen(node):
                self._open.move_to_end(node)
                continue
            del self._open[node]
            os.close(node.fd)
            node.fd = -1

    def _can_reopen(self, node: Node) -> bool:
        if node.handle is not None:
            return True
        if node.key[0] != self._device:
            return False
        if not self.handles:
            return node.name is not None
        try:
            node.handle = _libc.file_handle(node.fd)
        except OSError:
            return False
        return True

    # -- finding ------------------------------------------------------------------------------------------------------

    def find(self, parent: Node, above: int, name: bytes, *, new: bool = False) -> tuple[Node, os.stat_result]:
        """Look *name* up in *parent*, whose descriptor is *above*; the node has one lookup more. Raises ``OSError``.

        *new*: its inode was just made, and is not counted yet.
        """
        fd = os.open(name, _PATH, dir_fd=above)
        try:
            return self._enter(fd, os.fstat(fd), parent, name, new=new)
        except BaseException:
            os.close(fd)
            raise

    def take(self, parent: Node, above: int, name: bytes) -> tuple[Node, int, os.stat_result]:
        """As :meth:`find`, but pinned instead of looked up: the node, its descriptor, and its attributes.

        Nearly always the kernel has looked the name up, and the node is known and has a descriptor.
        """
        st = os.stat(name, dir_fd=above, follow_symlinks=False)
        with self._lock:
            node = self._by_key.get((st.st_dev, st.st_ino))
            if node is not None and node.fd >= 0:  # its inode cannot have been freed: it is the same
                node.pins += 1
                return node, node.fd, st
        node, st = self.find(parent, above, name)
        try:
            fd = self.pin(node)
        finally:
            self.forget([(node.number, 1)])
        return node, fd, st

    def _enter(
        self, fd: int, st: os.stat_result, parent: Node, name: bytes, *, new: bool
    ) -> tuple[Node, os.stat_result]:
        key = (st.st_dev, st.st_ino)
        with self._lock:
            node = self._by_key.get(key) or self._wake_inode(key)
            if node is not None and node.fd < 0 and not self._same(node, fd):
                self._by_key.pop(
                    key
                )  # the inode was freed and its number used again; the kernel may still know the old
                node = None
            if node is None:
                # Anew, since somebody may have changed it by a node that is gone now: what it has at this moment, while
                # there is no node, is what has been counted. (Nobody knows an inode that was just made.)
                if not new:
                    st = os.fstat(fd)
                if st.st_nlink == 0:  # removed since it was opened, and its node with it
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                node = self._add(fd, st, 1, counted=not new)
                if not self.handles:
                    node.parent, node.name = parent, name
                return self._settled(node), st
            if node.fd < 0:
                node.fd = fd
                self._open[node] = None
            else:
                os.close(fd)
                if node is not self.root:
                    self._open.move_to_end(node)
            node.lookups += 1
            if self._memory is not None:
                self._memory.set_lookups(node.where, node.lookups)
            if not self.handles:
                node.parent, node.name = parent, name
            return self._settled(node), st

    def _settled(self, node: Node) -> Node:
        """*node*, which keeps its descriptor while others' are closed to keep the limit. Called with the lock."""
        if len(self._open) > self._limit:
            node.pins += 1
            self._evict()
            node.pins -= 1
        return node

    def _add(self, fd: int, st: os.stat_result, lookups: int, *, counted: bool) -> Node:
        """A new node, which keeps *fd*. *counted*: what its inode has is part of what was counted. With the lock."""
        number = st.st_ino
        if number <= ROOT_NODE or number in self._by_number or (self._inherited and number in self._inherited):
            self._other += 1
            number = self._other
        self._generation += 1
        node = Node(number, self._generation, (st.st_dev, st.st_ino), fd, st.st_blocks * 512)
        node.lookups = lookups
        if self._memory is not None:
            if node.key[0] == self._device:
                node.handle = _libc.file_handle(fd)
            charged = node.charged if counted else UNCOUNTED
            node.where = self._memory.add_node(number, self._generation, node.key, lookups, charged, node.handle or b"")
        self._by_number[number] = self._by_key[node.key] = node
        self._open[node] = None
        return node

    @staticmethod
    def _same(node: Node, fd: int) -> bool:
        return node.handle is None or node.handle == _libc.file_handle(fd)

    def enter_nameless(self, opened: int) -> Node:
        """The node of a file without a name that is open as *opened*: one lookup, one open. Raises ``OSError``."""
        fd = os.open(_libc.BY_FD % opened, os.O_PATH | os.O_CLOEXEC)
        st = os.fstat(fd)
        with self._lock:
            node = self._add(fd, st, 1, counted=False)
            node.opens = 1
            self._set_unlinked(node, value=True)
            self._park(node, fd)
            return node

    def linked(self, node: Node) -> None:
        """*node* has a name (again)."""
        with self._lock:
            if node.unlinked:
                self._set_unlinked(node, value=False)

    def _set_unlinked(self, node: Node, *, value: bool) -> None:
        node.unlinked = value
        if value:
            self._nameless[node] = None
        else:
            self._nameless.pop(node, None)
        if self._memory is not None:
            self._memory.set_unlinked(node.where, value)

    def losing(self, node: Node, fd: int) -> None:
        """The last name of *node*, whose descriptor is *fd*, is about to go: if it is open, it must outlive us."""
        with self._lock:
            if node.opens:
                self._park(node, fd)

    def _park(self, node: Node, fd: int) -> None:
        if self._memory is not None:
            self._memory.park(node.number, fd)

    # -- counts -------------------------------------------------------------------------------------------------------

    def hold(self, node: Node) -> None:
        """Count one open file or directory of *node*."""
        with self._lock:
            node.opens += 1
            if node.unlinked:
                self._park(node, node.fd)

    def let_go(self, node: Node) -> None:
        """The end of :meth:`hold`."""
        with self._lock:
            node.opens -= 1
            if not node.opens and not node.lookups and not node.pins:
                self._drop(node)
        if self._dropped:
            self._close_dropped()

    def forget(self, numbers: Iterable[tuple[int, int]]) -> None:
        """The kernel takes lookups back, so many of each node number; without any, and not open, a node is gone.

        A number that is not known is skipped. A count that an earlier server has left may be too high. It does not keep
        an inode without a name: the kernel gives back all lookups of an inode at once, but for those of a name that it
        has just asked for.
        """
        with self._lock:
            for number, count in numbers:
                node = self._wake(number)
                if node is None or node is self.root:
                    continue
                doubtful = node.unlinked and node.generation <= self._doubtful
                node.lookups = 0 if doubtful else max(0, node.lookups - count)
                if self._memory is not None:
                    self._memory.set_lookups(node.where, node.lookups)
                if not node.lookups and not node.opens and not node.pins:
                    self._drop(node)
        if self._dropped:
            self._close_dropped()

    def removed(self, node: Node, parent: Node, name: bytes, *, last: bool) -> None:
        """*name* in *parent* is no longer a name of *node*; if it was the *last* the descriptor stays until the end."""
        with self._lock:
            if last:
                self._set_unlinked(node, value=True)
            if node.name == name and node.parent is parent:
                node.parent = node.name = None

    def renamed(self, node: Node, parent: Node, name: bytes) -> None:
        """*node* is reached by *name* in *parent* now."""
        if not self.handles:
            with self._lock:
                node.parent, node.name = parent, name

    def _drop(self, node: Node) -> None:
        if node.moving and not node.unlinked:
            return  # the accounting will look at it again: its unpin() drops it
        if self._by_number.get(node.number) is not node:
            return
        self._forget(node)
        if node.unlinked and self.gone is not None:
            self.gone.append(node)
            return
        self._nameless.pop(node, None)
        if self._memory is not None:
            self._memory.drop_node(node.where)

    def _forget(self, node: Node) -> None:
        """Take *node* out of the table, but not out of the session memory."""
        del self._by_number[node.number]
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        if node.unlinked and self._memory is not None:
            self._memory.unpark(node.number)
        if node.fd >= 0:
            if node.unlinked and node.charged == UNKNOWN:
                node.charged = os.fstat(node.fd).st_blocks * 512
            self._open.pop(node, None)
            self._dropped.append(node.fd)
            node.fd = -1

    def settled(self, node: Node) -> None:
        """The space of *node*, which was ``gone``, can be used; it is counted no longer."""
        with self._lock:
            self._nameless.pop(node, None)
            if self._memory is not None:
                self._memory.drop_node(node.where)

    def _close_dropped(self) -> None:
        """Close the descriptors of nodes that are gone. Called without the lock: freeing an inode takes its time.

        Those with adjoining numbers by one call: a thousand calls would pass the interpreter to and fro as often.
        """
        with self._lock:
            dropped, self._dropped = self._dropped, []
        dropped.sort()
        first = 0
        for at, fd in enumerate(dropped, 1):
            if at == len(dropped) or dropped[at] != fd + 1:
                os.closerange(dropped[first], fd + 1)
                first = at

    def end(self) -> None:
        """The kernel and all files are gone: nothing is looked up or open any longer."""
        with self._lock:
            for node in list(self._by_number.values()):
                if node is not self.root:
                    node.lookups = node.opens = 0
                    self._drop(node)
        self._close_dropped()

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            for node in [*self._open, self.root]:
                os.close(node.fd)
                node.fd = -1
            self._open.clear()
            self._by_number.clear()
            self._by_key.clear()
            os.close(self._mount)
