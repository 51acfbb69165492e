"""Carries requests out: decodes what the kernel asks, calls :class:`fusevol.fs.FileSystem`, encodes the answer.

A handler is a method that takes a request's node, the fields of its first argument (a layout of
:mod:`~fusevol.transport.kernel.protocol`), the rest of the request, and the caller's ids; it returns the answer's bytes
or raises ``OSError``. The table of handlers is made of their decorators. ``OSError`` becomes its errno, a request that
cannot be decoded EINVAL, an operation without a handler ENOSYS (upon which the kernel stops asking for it), anything
else EIO and one traceback in the log.

What is left out on purpose. INTERRUPT is answered ENOSYS: a file operation on Linux cannot be interrupted either once
it has begun, so the kernel is spared of asking. FLUSH likewise: nothing waits here to be flushed, a write that failed
has told its writer. ioctl(2) is ENOTTY: its arguments would be the server's to copy. flock and POSIX locks are the
kernel's own, since one node mounts the volume.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable
from struct import Struct
from struct import error as StructError  # noqa: N812  # an exception's name
from typing import Any, Final

from fusevol.fs import FileSystem
from fusevol.fs.listing import entries
from fusevol.fs.types import NOW, Caller, Entry, SetAttr
from fusevol.transport.hangs import Request
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel.passthrough import Passthrough
from fusevol.transport.kernel.protocol import Op

log = logging.getLogger(__name__)

Handler = Callable[..., bytes | None]
Answer = bytes | int | None
"""The answer's bytes, an errno, or nothing for a request that wants no answer."""

Ids = tuple[int, int, int]
"""uid, gid and pid of a caller."""

_LAYOUTS: Final[dict[Op, Struct]] = {}
_METHODS: Final[dict[Op, str]] = {}
SLOW: Final = frozenset({
    Op.FSYNC, Op.FSYNCDIR, Op.FALLOCATE, Op.COPY_FILE_RANGE, Op.COPY_FILE_RANGE_64, Op.SYNCFS,
})  # fmt: skip
"""Operations that wait for a disk or move much data: others should not wait for them."""
_ERRNO_END: Final = 512
"""Errors from here on are the kernel's own, which it takes from no server (fuse_dev_do_write in fs/fuse/dev.c)."""
_NANO: Final = 1_000_000_000
_READ_MOST: Final = 1 << 20
_MAPPED: Final = 1
"""Seconds for which attributes of a file are trusted that passthrough may have mapped: a write to the mapping changes
the times in the backing store, of which the kernel's FUSE code hears nothing, even after the file was closed. Less is
not worth it: databases ask for the size of their files all the time."""
_OF_NAMES: Final = frozenset({
    Op.LOOKUP, Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.CREATE,
})  # fmt: skip
"""Operations on a name in the directory that the request names."""
_NAME_MOST: Final = 256
_CHANGES: Final = (
    p.FATTR_MODE | p.FATTR_UID | p.FATTR_GID | p.FATTR_SIZE | p.FATTR_ATIME | p.FATTR_MTIME | p.FATTR_CTIME
)


def handles(op: Op, layout: Struct = p.EMPTY) -> Callable[[Handler], Handler]:
    """Enter a method in the table of handlers; its first argument has *layout*."""

    def enter(method: Handler) -> Handler:
        _LAYOUTS[op] = layout
        _METHODS[op] = method.__name__
        return method

    return enter


_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Operations:
    """All requests of one mount but INIT. Thread-safe, as the filesystem is."""

    def __init__(self, fs: FileSystem, *, passthrough: Passthrough | None, setxattr_ext: bool) -> None:
        self._fs = fs
        self._passthrough = passthrough
        policy = fs.cache
        self._entry_s, self._entry_ns = p.seconds(policy.entry)
        self._attr_s, self._attr_ns = p.seconds(policy.attr)
        self._mapped_for = min((self._attr_s, self._attr_ns), (_MAPPED, 0))
        self._mapped: set[int] = set()
        """Nodes that may be mapped and written past the server, and past the kernel's notice, once opened."""
        self._inherited = set(fs.known() if passthrough is not None else ())
        """Those that an earlier server of the connection may have opened so."""
        self._keep = p.FOPEN_KEEP_CACHE if policy.keep_pages else 0
        self._listing = self._keep | p.FOPEN_CACHE_DIR if policy.keep_pages else 0
        self._absent: bytes | None = None
        if policy.negative > 0:
            whole, nano = p.seconds(policy.negative)
            self._absent = p.ENTRY_OUT.pack(0, 0, whole, 0, nano, 0) + bytes(p.ATTR.size)
        self.refused = 0
        """Operations for which there was no room: by the volume's limits, or since its pool is full."""
        self._bugs: set[tuple[str, str]] = set()
        layouts = dict(_LAYOUTS)
        if not setxattr_ext:
            layouts[Op.SETXATTR] = p.SETXATTR_IN_OLD
        self._setxattr_ext = setxattr_ext
        count = max(Op) + 1
        self.sizes = [layouts.get(op, p.EMPTY).size for op in range(count)]  # type: ignore[call-overload]  # an int is one
        """Size in bytes of the first argument, by operation."""
        self._table: list[tuple[Callable[..., tuple[Any, ...]], Handler] | None] = [None] * count
        for op, name in _METHODS.items():
            self._table[op] = (layouts[op].unpack_from, getattr(self, name))

    def carry_out(self, op: int, node: int, argument: Any, at: int, rest: memoryview, ids: Ids) -> Answer:
        """One request. *argument* has the first argument at *at*, *rest* is what follows it; *ids*: uid, gid, pid."""
        try:
            found = self._table[op]
        except IndexError:
            found = None
        if found is None:
            return errno.ENOSYS
        unpack, handler = found
        try:
            return handler(node, unpack(argument, at), rest, ids)
        except OSError as e:
            number = e.errno or errno.EIO
            if number in _NO_ROOM:
                self.refused += 1
            return number if number < _ERRNO_END else errno.EIO
        except (StructError, OverflowError):  # the latter: an offset or flags that no system call takes
            return errno.EINVAL
        except Exception as e:  # noqa: BLE001  # a bug costs one request, not the mount
            self._bug(_METHODS[Op(op)], e)
            return errno.EIO

    def _bug(self, where: str, error: Exception) -> None:
        """Log *error* with its traceback, once for each kind."""
        kind = (where, repr(error))
        if kind not in self._bugs and len(self._bugs) < 1000:
            self._bugs.add(kind)
            log.error("%s failed unexpectedly: the caller got EIO", where, exc_info=error)

    @property
    def untidy(self) -> bool:
        """Whether there are things that were put off."""
        return self._fs.untidy

    def tidy(self, most: int) -> None:
        """Do up to *most* of them."""
        try:
            self._fs.tidy(most)
        except Exception as e:  # noqa: BLE001  # nobody is waiting for an answer
            self._bug("forget", e)

    def tell(self, op: int, node: int, rest: memoryview, pid: int) -> Request:
        """What a request is about, for a report; *rest* is what follows its first argument. Waits for nothing."""
        name = bytes(rest[:_NAME_MOST]).partition(b"\0")[0] if op in _OF_NAMES else b""
        known = op < len(self._table) and self._table[op] is not None
        what = Op(op).name.lower() if known else f"operation {op}"
        return Request(what, node, self._fs.path_of(node, name), pid)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _trust(self, node: int) -> tuple[int, int]:
        """How long the attributes of *node* may be trusted: seconds and nanoseconds."""
        if node in self._mapped or node in self._inherited:
            return self._mapped_for
        return self._attr_s, self._attr_ns

    def _entry(self, entry: Entry) -> bytes:
        attr_s, attr_ns = self._trust(entry.node)
        return p.ENTRY_OUT.pack(
            entry.node, entry.generation, self._entry_s, attr_s, self._entry_ns, attr_ns
        ) + p.pack_attr(entry.attr)

    def _attr(self, node: int, st: os.stat_result) -> bytes:
        return p.ATTR_OUT.pack(*self._trust(node)) + p.pack_attr(st)

    def _opened(self, node: int, fh: int, flags: int) -> bytes:
        if self._passthrough is None:
            return p.OPEN_OUT.pack(fh, self._keep, 0)
        if flags & os.O_ACCMODE == os.O_RDWR and node not in self._mapped:
            self._mapped.add(node)
            self._passthrough.forget_attributes(node)
        how, backing = self._passthrough.opened(node, self._fs.descriptor(fh))
        if backing:
            self._fs.set_backing(fh, backing)
        return p.OPEN_OUT.pack(fh, how or self._keep, backing)

    # -- names --------------------------------------------------------------------------------------------------------

    @handles(Op.LOOKUP)
    def lookup(self, node: int, _fields: tuple[()], rest: memoryview, _ids: Any) -> bytes:
        name = p.names(rest, 1)[0]
        try:
            return self._entry(self._fs.lookup(node, name))
        except FileNotFoundError:
            if self._absent is None:
                raise
            return self._absent

    @handles(Op.FORGET, p.FORGET_IN)
    def forget(self, node: int, fields: tuple[int], _rest: memoryview, _ids: Any) -> None:
        self._forget(node, fields[0])

    @handles(Op.BATCH_FORGET, p.BATCH_FORGET_IN)
    def batch_forget(self, _node: int, fields: tuple[int], rest: memoryview, _ids: Any) -> None:
        size = p.FORGET_ONE.size
        for node, count in p.FORGET_ONE.iter_unpack(rest[: min(fields[0], len(rest) // size) * size]):
            self._forget(node, count)

    def _forget(self, node: int, count: int) -> None:
        self._mapped.discard(node)
        self._inherited.discard(node)
        try:
            self._fs.forget_later(node, count)
        except Exception as e:  # noqa: BLE001  # nobody is waiting for an answer, and the others must be forgotten too
            self._bug("forget", e)

    @handles(Op.MKNOD, p.MKNOD_IN)
    def mknod(self, node: int, fields: tuple[int, int, int], rest: memoryview, ids: Ids) -> bytes:
        mode, rdev, umask = fields
        return self._entry(self._fs.mknod(node, p.names(rest, 1)[0], mode, rdev, Caller(*ids, umask)))

    @handles(Op.MKDIR, p.MKDIR_IN)
    def mkdir(self, node: int, fields: tuple[int, int], rest: memoryview, ids: Ids) -> bytes:
        mode, umask = fields
        return self._entry(self._fs.mkdir(node, p.names(rest, 1)[0], mode, Caller(*ids, umask)))

    @handles(Op.SYMLINK)
    def symlink(self, node: int, _fields: tuple[()], rest: memoryview, ids: Ids) -> bytes:
        name, target = p.names(rest, 2)
        return self._entry(self._fs.symlink(node, name, target, Caller(*ids)))

    @handles(Op.LINK, p.LINK_IN)
    def link(self, node: int, fields: tuple[int], rest: memoryview, _ids: Any) -> bytes:
        return self._entry(self._fs.link(fields[0], node, p.names(rest, 1)[0]))

    @handles(Op.UNLINK)
    def unlink(self, node: int, _fields: tuple[()], rest: memoryview, _ids: Any) -> bytes:
        self._fs.unlink(node, p.names(rest, 1)[0])
        return b""

    @handles(Op.RMDIR)
    def rmdir(self, node: int, _fields: tuple[()], rest: memoryview, _ids: Any) -> bytes:
        self._fs.rmdir(node, p.names(rest, 1)[0])
        return b""

    @handles(Op.RENAME, p.RENAME_IN)
    def rename(self, node: int, fields: tuple[int], rest: memoryview, _ids: Any) -> bytes:
        old, new = p.names(rest, 2)
        self._fs.rename(node, old, fields[0], new, 0)
        return b""

    @handles(Op.RENAME2, p.RENAME2_IN)
    def rename2(self, node: int, fields: tuple[int, int], rest: memoryview, _ids: Any) -> bytes:
        old, new = p.names(rest, 2)
        self._fs.rename(node, old, fields[0], new, fields[1])
        return b""

    @handles(Op.READLINK)
    def readlink(self, node: int, _fields: tuple[()], _rest: memoryview, _ids: Any) -> bytes:
        return self._fs.readlink(node)

    # -- attributes ---------------------------------------------------------------------------------------------------

    @handles(Op.GETATTR, p.GETATTR_IN)
    def getattr(self, node: int, fields: tuple[int, int], _rest: memoryview, _ids: Any) -> bytes:
        flags, fh = fields
        return self._attr(node, self._fs.getattr(node, fh if flags & p.GETATTR_FH else None))

    @handles(Op.STATX, p.STATX_IN)
    def statx(self, node: int, fields: tuple[int, int, int, int], _rest: memoryview, _ids: Any) -> bytes:
        flags, fh, _sx_flags, mask = fields
        found = self._fs.statx(node, fh if flags & p.GETATTR_FH else None, mask)
        return p.STATX_OUT.pack(*self._trust(node), 0) + found

    @handles(Op.SETATTR, p.SETATTR_IN)
    def setattr(self, node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        valid, fh, size, _owner, atime, mtime, _ctime, atime_ns, mtime_ns, _ctime_ns, mode, uid, gid = fields
        kill_size = p.FATTR_KILL_SUIDGID | p.FATTR_SIZE
        change = SetAttr(
            mode=mode if valid & p.FATTR_MODE else None,
            uid=uid if valid & p.FATTR_UID else None,
            gid=gid if valid & p.FATTR_GID else None,
            size=size if valid & p.FATTR_SIZE else None,
            atime_ns=_time(valid, p.FATTR_ATIME, p.FATTR_ATIME_NOW, atime * _NANO + atime_ns),
            mtime_ns=_time(valid, p.FATTR_MTIME, p.FATTR_MTIME_NOW, mtime * _NANO + mtime_ns),
            # nothing to change: file_remove_privs() for a write by passthrough, a copy or an allocation (fs/inode.c),
            # of which the kernel leaves out what HANDLE_KILLPRIV_V2 makes ours, or chown(2) of nothing
            kill=not valid & _CHANGES or valid & kill_size == kill_size,
        )
        return self._attr(node, self._fs.setattr(node, change, fh if valid & p.FATTR_FH else None))

    @handles(Op.GETXATTR, p.GETXATTR_IN)
    def getxattr(self, node: int, fields: tuple[int], rest: memoryview, _ids: Any) -> bytes:
        try:
            value = self._fs.getxattr(node, p.names(rest, 1)[0])
        except OSError as e:
            if e.errno == errno.EOPNOTSUPP and bytes(rest).startswith(b"security.capability\0"):
                # the backing store has no extended attributes at all: never ask again
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
            raise
        return _sized(value, fields[0])

    @handles(Op.LISTXATTR, p.GETXATTR_IN)
    def listxattr(self, node: int, fields: tuple[int], _rest: memoryview, _ids: Any) -> bytes:
        return _sized(b"".join(name + b"\0" for name in self._fs.listxattr(node)), fields[0])

    @handles(Op.SETXATTR, p.SETXATTR_IN)
    def setxattr(self, node: int, fields: tuple[int, ...], rest: memoryview, _ids: Any) -> bytes:
        size, flags = fields[:2]
        name = p.names(rest, 1)[0]
        value = bytes(rest[len(name) + 1 :])
        if len(value) < size:
            raise p.malformed("a value is shorter than it says")
        self._fs.setxattr(node, name, value[:size], flags)
        if self._setxattr_ext and fields[2] & p.SETXATTR_ACL_KILL_SGID:
            mode = self._fs.getattr(node).st_mode
            if mode & stat.S_ISGID:
                self._fs.setattr(node, SetAttr(mode=stat.S_IMODE(mode) & ~stat.S_ISGID), None)
        return b""

    @handles(Op.REMOVEXATTR)
    def removexattr(self, node: int, _fields: tuple[()], rest: memoryview, _ids: Any) -> bytes:
        self._fs.removexattr(node, p.names(rest, 1)[0])
        return b""

    @handles(Op.STATFS)
    def statfs(self, node: int, _fields: tuple[()], _rest: memoryview, _ids: Any) -> bytes:
        s = self._fs.statfs(node)
        return p.STATFS_OUT.pack(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namemax, s.frsize)

    # -- files --------------------------------------------------------------------------------------------------------

    @handles(Op.CREATE, p.CREATE_IN)
    def create(self, node: int, fields: tuple[int, int, int, int], rest: memoryview, ids: Ids) -> bytes:
        flags, mode, umask, how = fields
        kill = bool(how & p.OPEN_KILL_SUIDGID)
        entry, fh = self._fs.create(node, p.names(rest, 1)[0], mode, flags, Caller(*ids, umask), kill=kill)
        opened = self._opened(entry.node, fh, flags)
        return self._entry(entry) + opened

    @handles(Op.TMPFILE, p.CREATE_IN)
    def tmpfile(self, node: int, fields: tuple[int, int, int, int], _rest: memoryview, ids: Ids) -> bytes:
        flags, mode, umask, _how = fields
        entry, fh = self._fs.tmpfile(node, mode, flags, Caller(*ids, umask))
        opened = self._opened(entry.node, fh, flags)
        return self._entry(entry) + opened

    @handles(Op.OPEN, p.OPEN_IN)
    def open(self, node: int, fields: tuple[int, int], _rest: memoryview, _ids: Any) -> bytes:
        flags, how = fields
        return self._opened(node, self._fs.open(node, flags, kill=bool(how & p.OPEN_KILL_SUIDGID)), flags)

    @handles(Op.READ, p.READ_IN)
    def read(self, _node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        return self._fs.read(fields[0], min(fields[2], _READ_MOST), fields[1])

    @handles(Op.WRITE, p.WRITE_IN)
    def write(self, _node: int, fields: tuple[int, ...], rest: memoryview, _ids: Any) -> bytes:
        fh, offset, size, flags = fields[:4]
        if len(rest) < size:
            raise p.malformed("data is shorter than it says")
        return p.WRITE_OUT.pack(self._fs.write(fh, offset, rest[:size], kill=bool(flags & p.WRITE_KILL_SUIDGID)))

    @handles(Op.FSYNC, p.FSYNC_IN)
    def fsync(self, _node: int, fields: tuple[int, int], _rest: memoryview, _ids: Any) -> bytes:
        self._fs.fsync(fields[0], bool(fields[1] & p.FSYNC_FDATASYNC))
        return b""

    @handles(Op.RELEASE, p.RELEASE_IN)
    def release(self, node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        try:
            self._fs.release(fields[0])
        finally:  # after the file's record is gone, so that no later server would use an id that was closed
            if self._passthrough is not None:
                self._passthrough.closed(node)
        return b""

    @handles(Op.FALLOCATE, p.FALLOCATE_IN)
    def fallocate(self, _node: int, fields: tuple[int, int, int, int], _rest: memoryview, _ids: Any) -> bytes:
        fh, offset, length, mode = fields
        self._fs.fallocate(fh, mode, offset, length)
        return b""

    @handles(Op.LSEEK, p.LSEEK_IN)
    def lseek(self, _node: int, fields: tuple[int, int, int], _rest: memoryview, _ids: Any) -> bytes:
        return p.LSEEK_OUT.pack(self._fs.lseek(*fields))

    @handles(Op.COPY_FILE_RANGE, p.COPY_FILE_RANGE_IN)
    def copy_file_range(self, _node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        return p.WRITE_OUT.pack(self._copy(fields))

    @handles(Op.COPY_FILE_RANGE_64, p.COPY_FILE_RANGE_IN)
    def copy_file_range_64(self, _node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        return p.COPY_OUT_64.pack(self._copy(fields))

    def _copy(self, fields: tuple[int, ...]) -> int:
        fh_in, off_in, _node_out, fh_out, off_out, length, flags = fields
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._fs.copy_file_range(fh_in, off_in, fh_out, off_out, min(length, 1 << 30))

    @handles(Op.IOCTL)
    def ioctl(self, _node: int, _fields: tuple[()], _rest: memoryview, _ids: Any) -> bytes:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    # -- directories --------------------------------------------------------------------------------------------------

    @handles(Op.OPENDIR, p.OPEN_IN)
    def opendir(self, node: int, _fields: tuple[int, int], _rest: memoryview, _ids: Any) -> bytes:
        return p.OPEN_OUT.pack(self._fs.opendir(node), self._listing, 0)

    @handles(Op.READDIR, p.READ_IN)
    def readdir(self, _node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        fh, offset, room = fields[:3]
        return p.dirents(self._fs.readdir(fh, offset, room * 3 // 4))  # of 24 bytes there can become 32

    @handles(Op.READDIRPLUS, p.READ_IN)
    def readdirplus(self, node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        fh, offset, room = fields[:3]
        fs, page = self._fs, bytearray()
        nameless = bytes(p.ENTRY_OUT.size + p.ATTR.size)
        for name, ino, kind, after in entries(fs.readdir(fh, offset, room * 3 // 20)):  # of 24 there can become 160
            entry = nameless
            if name not in {b".", b".."}:  # the kernel takes no attributes for these
                # Removed meanwhile, or not to be read: no reason to fail the listing. The name must be there all the
                # same, for the listing goes on after it; whoever asks for it is told.
                with contextlib.suppress(OSError):
                    entry = self._entry(fs.lookup(node, name))
            page += entry + p.dirent(name, ino, kind, after)
        return bytes(page)

    @handles(Op.RELEASEDIR, p.RELEASE_IN)
    def releasedir(self, _node: int, fields: tuple[int, ...], _rest: memoryview, _ids: Any) -> bytes:
        self._fs.releasedir(fields[0])
        return b""

    @handles(Op.FSYNCDIR, p.FSYNC_IN)
    def fsyncdir(self, _node: int, fields: tuple[int, int], _rest: memoryview, _ids: Any) -> bytes:
        self._fs.fsyncdir(fields[0], bool(fields[1] & p.FSYNC_FDATASYNC))
        return b""

    # -- the whole ----------------------------------------------------------------------------------------------------

    @handles(Op.SYNCFS)
    def syncfs(self, _node: int, _fields: tuple[()], _rest: memoryview, _ids: Any) -> bytes:
        self._fs.drain()
        return b""

    @handles(Op.DESTROY)
    def destroy(self, _node: int, _fields: tuple[()], _rest: memoryview, _ids: Any) -> bytes:
        return b""


def _sized(value: bytes, room: int) -> bytes:
    """What getxattr(2) and listxattr(2) answer: the size for *room* 0, ERANGE where *room* is too little."""
    if room == 0:
        return p.GETXATTR_OUT.pack(len(value))
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _time(valid: int, given: int, is_now: int, value: int) -> int | None:
    if not valid & given:
        return None
    return NOW if valid & is_now else value
