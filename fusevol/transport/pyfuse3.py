"""The adapter between pyfuse3 and :class:`fusevol.fs.FileSystem`: it translates, and means nothing itself.

Every handler is a plain method here that calls the filesystem and returns what pyfuse3 wants to have; ``_handler``
makes of it what pyfuse3 calls: a coroutine that is suspended once (see :mod:`fusevol.transport.pump`), in which
``OSError`` becomes its errno and anything else becomes EIO and one traceback in the log. The session always lives on.

What the kernel is told, and why:

* FLUSH is not implemented. The kernel asks once, is told ENOSYS and saves the round trip at every close(2). Nothing
  is lost: without the write-back cache (which stays off, since the ledger must see a write before it is acknowledged)
  a write that fails has told its writer already; whoever wants its data on disk calls fsync(2).
* Names, absent names and attributes are cached for as long as the cache policy says.
* Listings: READDIRPLUS cannot be switched off in pyfuse3, but an entry may go without attributes
  (``_entries.NameOnly``), which costs a tenth. The first page of a directory has attributes, so that ``ls -l`` of a
  small directory is one request; the later pages of a big one have them only if names of that directory are being
  looked up since the listing began. A program that only wants the names of 10,000 files pays for the names.
* Permissions are the kernel's business (``default_permissions``), including POSIX ACLs.
* pyfuse3 3.5 does not pass on fallocate, lseek, copy_file_range and O_TMPFILE: the kernel's own fallbacks apply.
* The kernel reads ``security.capability`` before every write, a second round trip. Only a protocol feature that
  libfuse 3.14 lacks (HANDLE_KILLPRIV_V2) or a volume without any extended attributes would save it; where the
  backing filesystem has none, the kernel is told so once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from fusevol.fs import FileSystem
from fusevol.fs.listing import entries
from fusevol.fs.types import ROOT_NODE, Caller, DirEntry, Entry, SetAttr
from fusevol.transport._entries import NameOnly, absent, attributes
from fusevol.transport._load import load
from fusevol.transport.ending import Ending
from fusevol.transport.hangs import Hangs, Request
from fusevol.transport.in_use import InUse
from fusevol.transport.pump import Pump, started

if TYPE_CHECKING:
    import pyfuse3
else:
    pyfuse3 = load()

log = logging.getLogger(__name__)

_REMEMBERED: Final = 512
"""How many big directories the listing policy keeps in mind."""

_BLOCK: Final = 32 << 10
"""How much of a directory is read at once, in bytes."""
_OF_OPEN_FILE: Final = frozenset({"read", "write", "fsync", "release"})
_OF_OPEN_DIRECTORY: Final = frozenset({"readdir", "releasedir", "fsyncdir"})
"""Operations whose first argument is a handle."""

P = ParamSpec("P")
R = TypeVar("R")


def _handler(
    method: Callable[Concatenate[Adapter, P], R],
) -> Callable[Concatenate[Adapter, P], Coroutine[Any, Any, R]]:
    """Make a request handler for pyfuse3 of a synchronous *method*."""
    name = method.__name__

    async def handle(self: Adapter, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.pump.doing((name, args))
        await started()
        try:
            return method(self, *args, **kwargs)
        except OSError as e:
            if e.errno in {errno.ENOSPC, errno.EDQUOT}:
                self.refused += 1
            raise pyfuse3.FUSEError(e.errno or errno.EIO) from None
        except pyfuse3.FUSEError:
            raise
        except Exception as e:  # noqa: BLE001  # a bug costs one request, not the mount
            self.bug(name, e)
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            self.pump.doing(None)

    handle.__name__, handle.__doc__ = name, method.__doc__
    return handle


class _OpenDirectory:
    """A directory that is open, and what was read of it from ``offset`` on, but has not gone into an answer yet."""

    __slots__ = ("left", "node", "offset")

    def __init__(self, node: int) -> None:
        self.node = node
        self.offset = 0
        self.left: deque[DirEntry] = deque()


class Adapter(pyfuse3.Operations):
    """Serves *fs*. Its :attr:`pump` is told what each thread does, and before what is expected to take long."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        fs: FileSystem,
        hangs: Hangs,
        *,
        spin_us: int = 50,
        enable_acl: bool = True,
    ) -> None:
        super().__init__()
        self.on_init: Callable[[], None] | None = None
        """Called when the kernel has said hello: the mount is usable from then on."""
        self.fs = fs
        self.enable_acl = enable_acl
        self.refused = 0
        """Operations for which there was no room: by the volume's limits, or since its pool is full."""
        self.pump = Pump(hangs, self.told, spin_us=spin_us)
        self._entry, self._attr, self._negative, self._keep_pages = fs.cache
        self._absent = absent(self._negative) if self._negative > 0 else None
        self._bugs: set[tuple[str, str]] = set()
        self._open_dirs: dict[int, _OpenDirectory] = {}
        self._bare: dict[int, None] = {}
        """Nodes of directories that were listed without attributes, oldest first."""
        self._wanted: dict[int, None] = {}
        """Those whose names were looked up after that, until they are listed from the start again."""

    def told(self, operation: str, arguments: Sequence[Any]) -> Request:
        """What a handler of that name is doing, which was called with *arguments*. Does not wait."""
        node, last = arguments[0], arguments[-1]
        pid = int(getattr(last, "pid", 0))  # not every operation comes with a context
        if operation in _OF_OPEN_FILE:
            node = self.fs.node_of(node)
        elif operation in _OF_OPEN_DIRECTORY:
            node = self._open_dirs[node].node if node in self._open_dirs else 0
        elif not isinstance(node, int):  # statfs, forget
            node = ROOT_NODE
        name = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], bytes) else b""
        return Request(operation, node, self.fs.path_of(node, name), pid)

    def init(self) -> None:
        """Called by pyfuse3 for the kernel's first request."""
        if self.on_init is not None:
            self.on_init()

    def bug(self, where: str, error: Exception) -> None:
        """Log *error* with its traceback, once for each kind."""
        kind = (where, repr(error))
        if kind not in self._bugs and len(self._bugs) < 1000:
            self._bugs.add(kind)
            log.error("%s failed unexpectedly: the caller got EIO", where, exc_info=error)

    def _reply(self, entry: Entry) -> pyfuse3.EntryAttributes:
        return attributes(entry.node, entry.generation, entry.attr, self._entry, self._attr)

    def _stat(self, node: int, st: os.stat_result) -> pyfuse3.EntryAttributes:
        return attributes(node, 0, st, self._entry, self._attr)

    # -- names --------------------------------------------------------------------------------------------------------

    @_handler
    def lookup(self, parent: int, name: bytes, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if parent in self._bare:
            self._bare.pop(parent, None)
            self._remember(self._wanted, parent)
        try:
            return self._reply(self.fs.lookup(parent, name))
        except FileNotFoundError:
            if self._absent is None:
                raise
            return self._absent

    @_handler
    def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        for node, count in inodes:
            self.fs.forget_later(node, count)
        try:
            self.fs.tidy_up()
        except Exception as e:  # noqa: BLE001  # nobody is waiting for an answer
            self.bug("forget", e)

    @_handler
    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._reply(self.fs.mknod(parent, name, mode, rdev, _caller(ctx)))

    @_handler
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._reply(self.fs.mkdir(parent, name, mode, _caller(ctx)))

    @_handler
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._reply(self.fs.symlink(parent, name, target, _caller(ctx)))

    @_handler
    def link(self, node: int, parent: int, name: bytes, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._reply(self.fs.link(node, parent, name))

    @_handler
    def unlink(self, parent: int, name: bytes, _ctx: pyfuse3.RequestContext) -> None:
        self.fs.unlink(parent, name)

    @_handler
    def rmdir(self, parent: int, name: bytes, _ctx: pyfuse3.RequestContext) -> None:
        self.fs.rmdir(parent, name)

    @_handler
    def rename(
        self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int, _ctx: pyfuse3.RequestContext
    ) -> None:
        self.fs.rename(parent, name, newparent, newname, flags)

    @_handler
    def readlink(self, node: int, _ctx: pyfuse3.RequestContext) -> bytes:
        return self.fs.readlink(node)

    # -- attributes ---------------------------------------------------------------------------------------------------

    @_handler
    def getattr(self, node: int, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._stat(node, self.fs.getattr(node))

    @_handler
    def setattr(
        self,
        node: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        _ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        change = SetAttr(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        if change.size is not None:
            self.pump.hand_over()
        return self._stat(node, self.fs.setattr(node, change, fh))

    @_handler
    def getxattr(self, node: int, name: bytes, _ctx: pyfuse3.RequestContext) -> bytes:
        try:
            return self.fs.getxattr(node, name)
        except OSError as e:
            raise _no_xattrs(e, name) from None

    @_handler
    def setxattr(self, node: int, name: bytes, value: bytes, _ctx: pyfuse3.RequestContext) -> None:
        # XATTR_CREATE and XATTR_REPLACE are not passed on: pyfuse3 asks for the attribute first
        self.fs.setxattr(node, name, value, 0)

    @_handler
    def listxattr(self, node: int, _ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return self.fs.listxattr(node)

    @_handler
    def removexattr(self, node: int, name: bytes, _ctx: pyfuse3.RequestContext) -> None:
        self.fs.removexattr(node, name)

    @_handler
    def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = self.fs.statfs(ROOT_NODE)
        data = pyfuse3.StatvfsData()
        data.f_bsize = found.bsize
        data.f_frsize = found.frsize
        data.f_blocks = found.blocks
        data.f_bfree = found.bfree
        data.f_bavail = found.bavail
        data.f_files = found.files
        data.f_ffree = found.ffree
        data.f_favail = found.favail
        data.f_namemax = found.namemax
        return data

    # -- files --------------------------------------------------------------------------------------------------------

    @_handler
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        entry, fh = self.fs.create(parent, name, mode, flags, _caller(ctx), kill=ctx.uid != 0)
        return pyfuse3.FileInfo(fh=fh, keep_cache=self._keep_pages), self._reply(entry)

    @_handler
    def open(self, node: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=self.fs.open(node, flags, kill=ctx.uid != 0), keep_cache=self._keep_pages)

    @_handler
    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self.fs.read(fh, size, offset)

    @_handler
    def write(self, fh: int, offset: int, data: bytes) -> int:
        return self.fs.write(fh, offset, data)

    @_handler
    def flush(self, _fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @_handler
    def fsync(self, fh: int, datasync: bool) -> None:
        self.pump.hand_over()
        self.fs.fsync(fh, datasync)

    @_handler
    def release(self, fh: int) -> None:
        self.fs.release(fh)

    # -- directories --------------------------------------------------------------------------------------------------

    @_handler
    def opendir(self, node: int, _ctx: pyfuse3.RequestContext) -> int:
        fh = self.fs.opendir(node)
        self._open_dirs[fh] = _OpenDirectory(node)
        return fh

    @_handler
    def readdir(self, fh: int, offset: int, token: pyfuse3.ReaddirToken) -> None:
        node = self._open_dirs[fh].node
        names = self._names_after(fh, offset)
        if offset == 0:
            self._wanted.pop(node, None)  # what is cached since then is not asked for again
        if offset == 0 or node in self._wanted or not NameOnly.available:
            self._list_with_attributes(node, names, token)
            return
        self._remember(self._bare, node)
        only, reply = NameOnly(), pyfuse3.readdir_reply
        for name, ino, kind, after in names:
            if not reply(token, name, only.set(ino, kind), after):
                return

    def _names_after(self, fh: int, offset: int) -> Iterator[DirEntry]:
        """The names after *offset*. Of those that were read, the last one given and all after it stay for the next
        request: seeking back is not the same where offsets are places in a list (tmpfs before Linux 6.6)."""
        directory = self._open_dirs[fh]
        left = directory.left
        if offset == 0 or offset != directory.offset:
            left.clear()
        while True:
            if not left:
                left.extend(entries(self.fs.readdir(fh, offset, _BLOCK)))
            if not left:
                return
            directory.offset = offset
            yield left[0]
            offset = left.popleft().offset

    def _list_with_attributes(self, node: int, names: Iterable[Any], token: pyfuse3.ReaddirToken) -> None:
        fs, only, reply = self.fs, NameOnly(), pyfuse3.readdir_reply
        for name, ino, kind, after in names:
            if name in {b".", b".."}:  # the kernel takes no attributes for these
                if not reply(token, name, only.set(ino, kind), after):
                    return
                continue
            try:
                entry = fs.lookup(node, name)
            except FileNotFoundError:
                continue  # removed meanwhile
            if not reply(token, name, self._reply(entry), after):
                fs.forget(entry.node, 1)  # it did not fit, so the kernel did not hear of it
                return

    @_handler
    def releasedir(self, fh: int) -> None:
        self._open_dirs.pop(fh, None)
        self.fs.releasedir(fh)

    @_handler
    def fsyncdir(self, fh: int, datasync: bool) -> None:
        self.pump.hand_over()
        self.fs.fsyncdir(fh, datasync)

    @staticmethod
    def _remember(where: dict[int, None], node: int) -> None:
        where[node] = None
        if len(where) > _REMEMBERED:
            where.pop(next(iter(where)), None)


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)


def _no_xattrs(error: OSError, name: bytes) -> OSError:
    """ENOSYS if the backing filesystem has no extended attributes at all: the kernel then never asks again."""
    if error.errno == errno.EOPNOTSUPP and name == b"security.capability":
        return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return error


class Session:
    """A mounted filesystem. One per process, since pyfuse3 keeps its session in global variables.

    ``Session(...)`` mounts; :meth:`serve` answers requests until the mount is gone or :meth:`stop` is called.
    """

    def __init__(self, fs: FileSystem, mountpoint: str, options: set[str], hangs: Hangs, *, spin_us: int = 50) -> None:
        """Mount at *mountpoint*. Raises ``RuntimeError``; libfuse has then said why on standard error."""
        self._adapter = Adapter(fs, hangs, spin_us=spin_us)
        self._pump = self._adapter.pump
        fs.sweep = self._pump.hand_over
        vars(pyfuse3)["trio"] = self._pump  # the seam: see fusevol.transport.pump
        pyfuse3.init(self._adapter, mountpoint, options)

    @staticmethod
    def left() -> None:
        """Nothing by which another process could go on: libfuse has the state of the session."""

    def in_use(self) -> InUse:
        """How requests and data travel."""
        return InUse(
            "pyfuse3",
            io_uring=False,
            passthrough=False,
            takeover=False,
            why_not=dict.fromkeys(("io_uring", "passthrough", "takeover"), "the transport pyfuse3 has none"),
        )

    def describe(self) -> dict[str, object]:
        """What goes on, for a status."""
        pump = self._pump
        return {
            "operations": pump.served,
            "refused": self._adapter.refused,
            "under_way": pump.under_way,
            "threads": pump.threads,
            "threads_peak": pump.peak,
        }

    def hold(self, patience: float, limit: float) -> bool:
        """Hold requests up; see :class:`Gate`."""
        return self._pump.gate.hold(lambda: self._pump.under_way, patience, limit)

    def release(self) -> bool:
        """Let requests through again; whether they were held up until now."""
        return self._pump.gate.open()

    @property
    def passing_by(self) -> int:
        """How many files are open whose data passes this server by: none."""
        return 0

    def serve(self, ready: Callable[[], None]) -> Ending:
        """Answer requests until the session is over; *ready* is called once the mount is usable."""
        self._adapter.on_init = ready
        main = pyfuse3.main(min_tasks=1 << 30, max_tasks=1)  # numbers that leave all decisions to the pump
        with contextlib.suppress(StopIteration):
            main.send(None)
        if self._pump.threads:
            return Ending.HANGING
        pyfuse3.close(unmount=False)
        return Ending.OVER

    def leave(self) -> None:
        """Nobody can go on where this session ends: it goes on itself."""

    def stop(self) -> None:
        """End the session from any thread: no further request is read. A mount that is still there is dead then."""
        self._pump.close()


def options(*, fsname: str, allow_other: bool, read_only: bool, devices: bool) -> set[str]:
    """libfuse's mount options (``fuse_mount_opts`` in its lib/mount.c).

    setuid bits have no effect on a mount (libfuse's default): a volume is written by containers.
    """
    chosen = {f"fsname={fsname.replace(',', '_')}", "subtype=fusevol", "default_permissions"}
    chosen |= {"allow_other"} if allow_other else set()
    chosen |= {"ro"} if read_only else set()
    chosen |= {"dev"} if devices else set()
    return chosen
