"""Requests that a killed server may have carried out already, carried out again.

The kernel delivers a request again that was not answered; what the server had done of it is not known. Most requests
may be done twice. Those that may not are recognised by what they find:

* A name that is to be removed or renamed is gone, a name that is to be made exists. The kernel holds the lock of the
  directory while it asks, and has looked the name up before: in a volume that only this mount changes nobody else can
  have done it. (In a volume that others change too, they may have: the answer is then "done", which it is.)
* An open leaves a file open that nobody will close. Open files are remembered with the request's number: one that is
  found for a request that comes again is closed, and the request carried out anew.
* Two kinds of renaming leave no such trace, since the old name is there afterwards too: exchanging two names, and
  leaving a whiteout behind. Before these, the inodes of both names are written down as an *intent*, by the request's
  number.
"""

from __future__ import annotations

import errno
from struct import error as StructError  # noqa: N812  # an exception's name
from typing import Any, Final, Protocol

from fusevol.fs import FileSystem
from fusevol.fs.memory import FileRecord
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel.operations import Answer, Operations
from fusevol.transport.kernel.protocol import Op

_OPENING: Final = frozenset({Op.OPEN, Op.CREATE, Op.TMPFILE, Op.OPENDIR})
WITHOUT_TRACE: Final = _OPENING | {Op.RENAME2}
"""Operations that come to :meth:`Replay.first_time`."""
_MAKE: Final = frozenset({Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK})
_REMOVE: Final = frozenset({Op.UNLINK, Op.RMDIR})
_O_EXCL: Final = 0o200


class Intents(Protocol):
    """Where intents are written down."""

    def intend(self, request: int, first: int, second: int) -> int:
        """Remember two numbers for a request; returns where."""

    def intended(self, request: int) -> tuple[int, int, int] | None:
        """Where, and the two numbers."""

    def drop_intent(self, where: int) -> None:
        """The request is answered."""

    def opening(self, request: int) -> None:
        """What this thread opens from here on, it opens for *request*."""

    def opened(self, request: int) -> FileRecord | None:
        """What an earlier server has opened for *request*, and maybe not answered."""


class Replay:
    """Carries requests out so that doing it twice is doing it once."""

    def __init__(self, fs: FileSystem, operations: Operations, intents: Intents) -> None:
        self._fs = fs
        self._operations = operations
        self._intents = intents

    def first_time(self, unique: int, op: int, node: int, argument: Any, at: int, rest: memoryview, ids: Any) -> Answer:
        """A request of :data:`WITHOUT_TRACE`: what it finds, or its number, is written down first."""
        if op in _OPENING:
            self._intents.opening(unique & ~p.RESENT)
            return self._operations.carry_out(op, node, argument, at, rest, ids)
        before = self._inodes(node, argument, at, rest)
        if before is None:
            return self._operations.carry_out(op, node, argument, at, rest, ids)
        where = self._intents.intend(unique & ~p.RESENT, *before)
        found = self._operations.carry_out(op, node, argument, at, rest, ids)
        self._intents.drop_intent(where)
        return found

    def again(self, unique: int, op: int, node: int, argument: Any, at: int, rest: memoryview, ids: Any) -> Answer:
        """A request that is delivered again."""
        if op in _OPENING:
            self._undo(op, unique, ids)
            if op == Op.CREATE:
                argument, at = bytearray(argument[at : at + p.CREATE_IN.size]), 0
                flags, *others = p.CREATE_IN.unpack(argument)
                p.CREATE_IN.pack_into(argument, 0, flags & ~_O_EXCL, *others)
            return self.first_time(unique, op, node, argument, at, rest, ids)
        if op in WITHOUT_TRACE:
            intent = self._intents.intended(unique & ~p.RESENT)
            if intent is not None:
                where, *before = intent
                found: Answer = b""
                if self._inodes(node, argument, at, rest) == tuple(before):
                    found = self._operations.carry_out(op, node, argument, at, rest, ids)
                self._intents.drop_intent(where)
                return found
            found = self.first_time(unique, op, node, argument, at, rest, ids)
            return self._was_renamed(op, argument, at, rest) if found == errno.ENOENT else found
        found = self._operations.carry_out(op, node, argument, at, rest, ids)
        if (found == errno.ENOENT and op in _REMOVE) or (found == errno.EBADF and op in {Op.RELEASE, Op.RELEASEDIR}):
            return b""
        if found == errno.ENODATA and op == Op.REMOVEXATTR:
            return b""
        if found == errno.EEXIST and op == Op.SETXATTR:
            return self._same_value(node, argument, at, rest)
        if found == errno.EEXIST and op in _MAKE:
            return self._operations.carry_out(Op.LOOKUP, node, b"", 0, rest, ids)
        if found == errno.ENOENT and op == Op.RENAME:
            return self._was_renamed(op, argument, at, rest)
        return found

    def _undo(self, op: int, unique: int, ids: Any) -> None:
        """Close what was opened for a request of which the kernel has no answer."""
        record = self._intents.opened(unique & ~p.RESENT)
        if record is None:
            return
        if op == Op.OPENDIR:
            self._fs.releasedir(record.fh)
        elif record.backing:
            release = p.RELEASE_IN.pack(record.fh, 0, 0, 0)
            self._operations.carry_out(Op.RELEASE, record.node, release, 0, memoryview(b""), ids)
        else:
            self._fs.release(record.fh)
        if op in {Op.CREATE, Op.TMPFILE}:
            self._fs.forget(record.node, 1)

    def _inodes(self, node: int, argument: Any, at: int, rest: memoryview) -> tuple[int, int] | None:
        """The inodes of both names of a RENAME2 (0: none); ``None`` if it may be done twice, or can't be done."""
        try:
            parent, flags = p.RENAME2_IN.unpack_from(argument, at)
            if not flags & (p.RENAME_EXCHANGE | p.RENAME_WHITEOUT):
                return None
            old, new = p.names(rest, 2)
            return self._fs.inode(node, old), self._inode(parent, new)
        except (OSError, StructError):
            return None  # it will fail: carrying it out tells how

    def _inode(self, parent: int, name: bytes) -> int:
        try:
            return self._fs.inode(parent, name)
        except FileNotFoundError:
            return 0

    def _was_renamed(self, op: int, argument: Any, at: int, rest: memoryview) -> Answer:
        parent = (p.RENAME_IN if op == Op.RENAME else p.RENAME2_IN).unpack_from(argument, at)[0]
        try:
            self._fs.inode(parent, p.names(rest, 2)[1])
        except OSError:
            return errno.ENOENT
        return b""

    def _same_value(self, node: int, argument: Any, at: int, rest: memoryview) -> Answer:
        size = p.GETXATTR_IN.unpack_from(argument, at)[0]
        name = p.names(rest, 1)[0]
        try:
            found = self._fs.getxattr(node, name)
        except OSError as e:
            return e.errno or errno.EIO
        return b"" if found == bytes(rest[len(name) + 1 :])[:size] else errno.EEXIST
