"""Makes the counters right after a killed server, without looking at more than what it was about to change.

Counters and charges are as of the last operation that was settled. What the operations in flight have done beyond that
is found by looking: at the inodes that they named, and at the name of an inode that they were making. Each of them is
settled in one step, so that this may be killed and begun again, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from fusevol.fs import _libc
from fusevol.fs.accounting import Accounts
from fusevol.fs.memory import GONE, UNKNOWN, Journal, Unfinished
from fusevol.fs.node import Node
from fusevol.fs.nodes import Nodes

_GONE: Final = frozenset({errno.ESTALE, errno.ENOENT})
"""What open_by_handle_at(2) says of an inode that was freed."""


class CountersError(Exception):
    """An operation that was in flight cannot be settled: the volume must be counted anew."""


def settle_unfinished(nodes: Nodes, accounts: Accounts, journal: Journal) -> int:
    """Settle what an earlier server had begun, and count what is open without a name and was not counted.

    Returns how many operations were in flight.
    Called once, when all open files are open again and before any request is carried out. Raises
    :class:`CountersError`.
    """
    unfinished = journal.unfinished()
    for operation in unfinished:
        try:
            _settle(nodes, accounts, operation)
        except OSError as e:
            raise CountersError(f"what a killed server was doing cannot be looked at ({e}): all is counted anew") from e
    for node in nodes.awake():
        if node.unlinked and node.opens and node.charged == UNKNOWN:
            accounts.count(node, node.fd)  # the scan, which has counted all others, could not see it
    accounts.resume()
    return len(unfinished)


def _settle(nodes: Nodes, accounts: Accounts, operation: Unfinished) -> None:
    entry = operation.entry
    nbytes = inodes = 0
    gone: list[Node] = []
    for place, number in enumerate(operation.nodes):
        node = nodes.known(number)
        if node is None:  # another operation was under way that has cost it its last name
            entry.charge(place, GONE)
            continue
        with _reached(nodes, node) as fd:
            now = os.fstat(fd) if fd is not None else None
            if now is None:
                gone.append(node)
                entry.charge(place, GONE)
                continue
            if stat.S_ISREG(now.st_mode):
                accounts.moves(node)
            entry.charge(place, now.st_blocks * 512)
            nbytes += now.st_blocks * 512 - _charge(node)
            node.charged = now.st_blocks * 512
    node = nodes.known(operation.unnamed)
    if node is not None:
        with _reached(nodes, node) as fd:
            if fd is None:
                gone.append(node)
                entry.add(node.where, GONE)
            elif os.fstat(fd).st_nlink == 0:
                nodes.lost_name(node)
    for node in gone:
        nbytes -= _charge(node)
        inodes -= 1
    if operation.parent:
        made = _made(nodes, operation)
        if made is not None:
            inodes += 1
            nbytes += made.st_blocks * 512
            child = nodes.at((made.st_dev, made.st_ino))
            if child is not None:
                entry.add(child.where, made.st_blocks * 512)
                child.charged = made.st_blocks * 512
    accounts.quota.settle(0, 0, nbytes, inodes, entry)
    for node in gone:
        nodes.lost(node)


def _charge(node: Node) -> int:
    """What has been counted of *node*."""
    if node.charged < 0:
        raise OSError(errno.EUCLEAN, f"what was counted of node {node.number} is not known")
    return node.charged


def _made(nodes: Nodes, operation: Unfinished) -> os.stat_result | None:
    """The inode that *operation* has made, if it has."""
    with _reached(nodes, nodes.get(operation.parent)) as fd:
        if fd is None:
            return None
        try:
            st = os.stat(operation.name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
    return st if st.st_ino != operation.inode else None


@contextlib.contextmanager
def _reached(nodes: Nodes, node: Node) -> Iterator[int | None]:
    """A descriptor of *node*; ``None`` if its inode is gone."""
    if node.fd >= 0:
        yield node.fd
        return
    try:
        fd = _libc.open_handle(nodes.mount_fd, node.handle or b"", os.O_PATH)
    except OSError as e:
        if e.errno not in _GONE:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
