"""Which files the kernel reads and writes itself, by the backing ids that it gives for them (Linux 6.9).

A backing id belongs to the connection and to an inode: all opens of one inode use the same id for as long as one of
them is open, and none of them may go through the page cache of the mount meanwhile (fs/fuse/iomode.c). So the id is
counted per node. The kernel opens the backing file anew, with the flags of each opener and the rights of this process.

A write by passthrough does not come by here, but before one to a file with setuid or setgid bits the kernel sends a
SETATTR that changes nothing (``Operations.setattr``), which clears them as the writer's rights demand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterable

from fusevol.transport.kernel.protocol import (
    BACKING_ID,
    BACKING_MAP,
    DEV_IOC_BACKING_CLOSE,
    DEV_IOC_BACKING_OPEN,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    INVAL_INODE_OUT,
    OUT_HEADER,
    Notify,
)

log = logging.getLogger(__name__)


class Passthrough:
    """The backing ids of one connection. Thread-safe."""

    def __init__(self, device: int, opened: Iterable[tuple[int, int]] = ()) -> None:
        """*device* is the connection's descriptor of /dev/fuse; *opened*: node and id of each file that is open.

        Ids outlive the process that asked for them, and must be used again.
        """
        self._device = device
        self._lock = threading.Lock()
        self._ids: dict[int, list[int]] = {}
        """Backing id and number of opens, by node; id 0: open through the page cache."""
        self.refused = ""
        """Why the kernel will not do it for any file; empty while it may."""
        for node, backing in opened:
            self._ids.setdefault(node, [backing, 0])[1] += 1

    def __len__(self) -> int:
        return len(self._ids)

    def opened(self, node: int, fd: int) -> tuple[int, int]:
        """One more open of *node*, whose backing file is *fd*: FOPEN_* flags and backing id for the answer.

        Flags and id 0 where the kernel refuses: the file is then read and written through the server.
        """
        with self._lock:
            entry = self._ids.get(node)
            if entry is None:
                entry = self._ids[node] = [self._register(fd), 0]
            entry[1] += 1
        if not entry[0]:
            return 0, 0
        return FOPEN_PASSTHROUGH | FOPEN_NOFLUSH, entry[0]

    def closed(self, node: int) -> None:
        """The end of one open."""
        with self._lock:
            entry = self._ids.get(node)
            if entry is None:
                return
            entry[1] -= 1
            if entry[1]:
                return
            del self._ids[node]
            if entry[0]:
                fcntl.ioctl(self._device, DEV_IOC_BACKING_CLOSE, BACKING_ID.pack(entry[0]))

    def forget_attributes(self, node: int) -> None:
        """Let the kernel ask for the attributes of *node* again."""
        head = OUT_HEADER.pack(OUT_HEADER.size + INVAL_INODE_OUT.size, Notify.INVAL_INODE, 0)
        with contextlib.suppress(OSError):  # ENOENT: the kernel does not know it yet
            os.write(self._device, head + INVAL_INODE_OUT.pack(node, -1, 0))

    def _register(self, fd: int) -> int:
        if self.refused:
            return 0
        try:
            # with a mutable buffer, fcntl.ioctl returns what ioctl(2) does: the id
            backing: int = fcntl.ioctl(self._device, DEV_IOC_BACKING_OPEN, bytearray(BACKING_MAP.pack(fd, 0, 0)))
        except OSError as e:
            if e.errno in {errno.ELOOP, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY}:
                # a backing store that is stacked too deeply, or no CAP_SYS_ADMIN: that will not change
                self.refused = f"the kernel refuses it for this backing filesystem: {e.strerror}"
            log.info("no passthrough: %s", e.strerror)
            return 0
        return backing
