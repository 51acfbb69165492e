"""A Hypothesis state machine: the same random operations on a filesystem under test and on a plain directory.

What is under test is reached through a :class:`Subject`: :class:`Direct` calls a ``FileSystem`` without a mount,
:class:`Mounted` the system calls of a mount. Results and errno must agree after every step, and the quota must be what
a recount finds (:meth:`Subject.check_quota`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fusevol.fs import FileSystem
from fusevol.fs.listing import entries
from fusevol.fs.types import ROOT_NODE, Caller, SetAttr
from fusevol.quota.ledger import Ledger

ME = Caller(os.geteuid(), os.getegid(), 0)
NAMES = st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/a", "a/a/a", "d" * 200, "b/" + "e" * 255])
OFFSETS = st.sampled_from([0, 1, 4095, 4096, 10_000, 65_536, 1 << 20, (1 << 22) + 5])
SIZES = st.sampled_from([1, 10, 4095, 4096, 4097, 20_000, 70_000])


def du(path: Path) -> tuple[int, int]:
    """Bytes and inodes of a tree, as du(1) counts them."""
    values = [
        int(subprocess.run(["du", "-s", how, path], check=True, capture_output=True).stdout.split()[0])
        for how in ("--block-size=1", "--inodes")
    ]
    return values[0], values[1]


class Subject(Protocol):
    """What the machine does to a tree; paths are relative. All raise ``OSError``."""

    def mkdir(self, path: str) -> None: ...
    def write(self, path: str, offset: int, data: bytes) -> None: ...
    def append(self, path: str, data: bytes) -> None: ...
    def read(self, path: str) -> bytes: ...
    def truncate(self, path: str, size: int) -> None: ...
    def trunc_open(self, path: str) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def link(self, old: str, new: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def setxattr(self, path: str, name: str, value: bytes) -> None: ...
    def removexattr(self, path: str, name: str) -> None: ...
    def hold(self, path: str) -> None: ...
    def held(self) -> list[bytes]: ...
    def drop(self) -> None: ...
    def tree(self) -> dict[str, Any]: ...
    def check_quota(self) -> None: ...
    def close(self) -> None: ...


def describe(mode: int, nlink: int, content: Any) -> tuple[Any, ...]:
    """What must agree of one inode; link counts of directories differ between filesystems."""
    return (mode, None if stat.S_ISDIR(mode) else nlink, content)


class Mounted:
    """The system calls of a directory: a mount, or the plain directory that is the model."""

    def __init__(self, root: Path, check: Callable[[], None] | None = None) -> None:
        self.root = root
        self._check = check
        self._held: list[int] = []

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def mkdir(self, path: str) -> None:
        os.mkdir(self._at(path), 0o755)

    def _write(self, path: str, flags: int, data: bytes, offset: int | None) -> None:
        fd = os.open(self._at(path), os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | flags, 0o644)
        try:
            if offset is None:
                os.write(fd, data)
            elif data:
                os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def write(self, path: str, offset: int, data: bytes) -> None:
        self._write(path, 0, data, offset)

    def append(self, path: str, data: bytes) -> None:
        self._write(path, os.O_APPEND, data, None)

    def trunc_open(self, path: str) -> None:
        self._write(path, os.O_TRUNC, b"", 0)

    def read(self, path: str) -> bytes:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return os.read(fd, 1 << 23)
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> None:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def chmod(self, path: str, mode: int) -> None:
        os.lstat(self._at(path))
        os.chmod(self._at(path), mode, follow_symlinks=True)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        os.setxattr(self._at(path), name, value, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def hold(self, path: str) -> None:
        self._held.append(os.open(self._at(path), os.O_RDONLY | os.O_NOFOLLOW))

    def held(self) -> list[bytes]:
        return [os.pread(fd, 1 << 23, 0) for fd in self._held if stat.S_ISREG(os.fstat(fd).st_mode)]

    def drop(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def tree(self) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def walk(at: str) -> None:
            for name in sorted(os.listdir(self._at(at))):
                path = f"{at}{name}"
                s = os.lstat(self._at(path))
                if stat.S_ISDIR(s.st_mode):
                    found[path] = describe(s.st_mode, s.st_nlink, None)
                    walk(path + "/")
                elif stat.S_ISLNK(s.st_mode):
                    found[path] = describe(s.st_mode, s.st_nlink, os.readlink(self._at(path)))
                else:
                    found[path] = describe(s.st_mode, s.st_nlink, self.read(path))

        walk("")
        return found

    def check_quota(self) -> None:
        if self._check is not None:
            self._check()

    def close(self) -> None:
        self.drop()


class Direct:
    """A ``FileSystem`` without a mount, driven as the kernel would: each path walked, each lookup forgotten."""

    def __init__(self, place: Path, *, limit: int | None = None, descriptors: int = 2) -> None:
        self.source = place / "source"
        self.source.mkdir()
        self.ledger = Ledger.open(place / "ledger", self.source, limit_bytes=limit, limit_inodes=None)
        self.fs = FileSystem(str(self.source), quota=self.ledger)
        self.fs._nodes._limit = descriptors  # so few that nearly every node is opened again each time
        self._known: Counter[int] = Counter()
        self._held: list[tuple[int, bool]] = []

    @contextlib.contextmanager
    def _node(self, path: str) -> Any:
        """The node of *path*; what was looked up stays known, as in the kernel's cache.

        Symbolic links on the way lead nowhere: all that the machine makes do.
        """
        node = ROOT_NODE
        for name in path.split("/") if path else []:
            self._walk_through(node)
            node = self.fs.lookup(node, name.encode()).node
            self._known[node] += 1
        yield node

    @contextlib.contextmanager
    def _parent(self, path: str) -> Any:
        above, _, name = path.rpartition("/")
        with self._node(above) as node:
            self._walk_through(node)
            yield node, name.encode()

    def _walk_through(self, node: int) -> None:
        mode = self.fs.getattr(node).st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ENOENT, "dangling")
        if not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, "not a directory")

    def mkdir(self, path: str) -> None:
        with self._parent(path) as (node, name):
            self.fs.forget(self.fs.mkdir(node, name, 0o755, ME).node, 1)

    def _write(self, path: str, flags: int, data: bytes, offset: int | None) -> None:
        with self._parent(path) as (parent, name):
            entry, fh = self.fs.create(parent, name, stat.S_IFREG | 0o644, os.O_WRONLY | flags, ME)
            try:
                if data:
                    at = self.fs.getattr(entry.node, fh).st_size if offset is None else offset
                    self.fs.write(fh, at, data)
            finally:
                self.fs.flush(fh)
                self.fs.release(fh)
                self.fs.forget(entry.node, 1)

    def write(self, path: str, offset: int, data: bytes) -> None:
        self._write(path, 0, data, offset)

    def append(self, path: str, data: bytes) -> None:
        self._write(path, os.O_APPEND, data, None)

    def trunc_open(self, path: str) -> None:
        self._write(path, os.O_TRUNC, b"", 0)

    def read(self, path: str) -> bytes:
        with self._node(path) as node:
            fh = self.fs.open(node, os.O_RDONLY)
            try:
                return self.fs.read(fh, 1 << 23, 0)
            finally:
                self.fs.release(fh)

    def truncate(self, path: str, size: int) -> None:
        with self._node(path) as node:
            fh = self.fs.open(node, os.O_WRONLY)
            try:
                self.fs.setattr(node, SetAttr(size=size), fh)
            finally:
                self.fs.release(fh)

    def chmod(self, path: str, mode: int) -> None:
        with self._node(path) as node:
            if stat.S_ISLNK(self.fs.getattr(node).st_mode):
                raise OSError(errno.ENOENT, "dangling")
            self.fs.setattr(node, SetAttr(mode=mode), None)

    def symlink(self, target: str, path: str) -> None:
        with self._parent(path) as (node, name):
            self.fs.forget(self.fs.symlink(node, name, target.encode(), ME).node, 1)

    def link(self, old: str, new: str) -> None:
        with self._node(old) as node, self._parent(new) as (parent, name):
            self.fs.forget(self.fs.link(node, parent, name).node, 1)

    def rename(self, old: str, new: str) -> None:
        with self._parent(old) as (a, name), self._parent(new) as (b, newname):
            self.fs.rename(a, name, b, newname, 0)

    def unlink(self, path: str) -> None:
        with self._parent(path) as (node, name):
            self.fs.unlink(node, name)

    def rmdir(self, path: str) -> None:
        with self._parent(path) as (node, name):
            self.fs.rmdir(node, name)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        with self._node(path) as node:
            self.fs.setxattr(node, name.encode(), value, 0)

    def removexattr(self, path: str, name: str) -> None:
        with self._node(path) as node:
            self.fs.removexattr(node, name.encode())

    def hold(self, path: str) -> None:
        with self._node(path) as node:
            if stat.S_ISDIR(self.fs.getattr(node).st_mode):
                self._held.append((self.fs.opendir(node), True))
            else:
                self._held.append((self.fs.open(node, os.O_RDONLY), False))

    def held(self) -> list[bytes]:
        return [self.fs.read(fh, 1 << 23, 0) for fh, directory in self._held if not directory]

    def drop(self) -> None:
        for fh, directory in self._held:
            (self.fs.releasedir if directory else self.fs.release)(fh)
        self._held.clear()

    def tree(self) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def walk(node: int, at: str) -> None:
            fh = self.fs.opendir(node)
            names = [e.name for e in entries(self.fs.readdir(fh, 0, 1 << 20)) if e.name not in {b".", b".."}]
            self.fs.releasedir(fh)
            for name in sorted(names):
                path = f"{at}{name.decode()}"
                entry = self.fs.lookup(node, name)
                mode = entry.attr.st_mode
                content: Any = None
                if stat.S_ISDIR(mode):
                    walk(entry.node, path + "/")
                elif stat.S_ISLNK(mode):
                    content = self.fs.readlink(entry.node).decode()
                else:
                    content = self.read(path)
                found[path] = describe(mode, entry.attr.st_nlink, content)
                self.fs.forget(entry.node, 1)

        walk(ROOT_NODE, "")
        return found

    def check_quota(self) -> None:
        """The ledger says what du says; of files that are open without a name, du knows nothing."""
        for node, count in list(self._known.items()):
            if self.fs.getattr(node).st_nlink == 0:
                self.fs.forget(node, count)
                del self._known[node]
        self.fs.settle()
        usage = self.ledger.usage()
        nameless = [
            s
            for fh, d in self._held
            if (s := os.fstat((self.fs._dirs if d else self.fs._files).get(fh).fd)) and (s.st_nlink == 0)
        ]
        unique = {s.st_ino: s.st_blocks * 512 for s in nameless}
        nbytes, inodes = du(self.source)
        assert (usage.used_bytes, usage.used_inodes) == (nbytes + sum(unique.values()), inodes + len(unique))
        assert usage.limit_bytes is None or usage.used_bytes <= usage.limit_bytes
        if self.fs._nodes.handles:
            assert self.fs.stats().descriptors <= 3 + len(unique)

    def close(self) -> None:
        self.drop()
        for node, count in self._known.items():
            self.fs.forget(node, count)
        self.fs.drain()
        assert (self.fs.stats().nodes, self.ledger.reserved()) == (1, (0, 0))
        self.fs.close()
        self.ledger.close()


class Machine(RuleBasedStateMachine):
    """The rules. A subclass says what is under test by :meth:`make`."""

    def make(self, place: Path) -> Subject:
        """The subject, in the empty directory *place*."""
        return Direct(place)

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="m"))
        (self.place / "model").mkdir()
        self.before = os.umask(0)
        self.subject = self.make(self.place)
        self.model = Mounted(self.place / "model")

    def teardown(self) -> None:
        """Leave nothing behind, and find the ledger right at the end."""
        os.umask(self.before)
        self.model.close()
        self.subject.close()
        shutil.rmtree(self.place)

    def both(self, name: str, *arguments: Any) -> None:
        """Do one operation on both, and compare."""
        results = []
        for it in (self.model, self.subject):
            try:
                results.append((getattr(it, name)(*arguments), None))
            except OSError as e:
                results.append((None, errno.errorcode[e.errno or 0]))
        assert results[0] == results[1], (name, results)

    @rule(path=NAMES)
    def mkdir(self, path: str) -> None:
        self.both("mkdir", path)

    @rule(path=NAMES, offset=OFFSETS, size=SIZES)
    def write(self, path: str, offset: int, size: int) -> None:
        self.both("write", path, offset, b"w" * size)

    @rule(path=NAMES, size=SIZES)
    def append(self, path: str, size: int) -> None:
        self.both("append", path, b"p" * size)

    @rule(path=NAMES, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.both("truncate", path, size)

    @rule(path=NAMES)
    def trunc_open(self, path: str) -> None:
        self.both("trunc_open", path)

    @rule(path=NAMES, mode=st.sampled_from([0o600, 0o4755, 0o777]))
    def chmod(self, path: str, mode: int) -> None:
        self.both("chmod", path, mode)

    @rule(path=NAMES, size=st.sampled_from([1, 59, 60, 300, 4000]))
    def symlink(self, path: str, size: int) -> None:
        self.both("symlink", "/" + "n" * min(size, 200) + "/n" * ((size - 200) // 2), path)

    @rule(old=NAMES, new=NAMES)
    def link(self, old: str, new: str) -> None:
        self.both("link", old, new)

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        self.both("rename", old, new)

    @rule(path=NAMES)
    def unlink(self, path: str) -> None:
        self.both("unlink", path)

    @rule(path=NAMES)
    def rmdir(self, path: str) -> None:
        self.both("rmdir", path)

    @rule(path=NAMES, size=st.sampled_from([1, 1000, 3000]))
    def setxattr(self, path: str, size: int) -> None:
        self.both("setxattr", path, "user.x", b"v" * size)

    @rule(path=NAMES)
    def removexattr(self, path: str) -> None:
        self.both("removexattr", path, "user.x")

    @rule(path=NAMES)
    def hold(self, path: str) -> None:
        self.both("hold", path)

    @rule()
    def drop(self) -> None:
        self.both("drop")

    @invariant()
    def trees_agree(self) -> None:
        assert self.subject.tree() == self.model.tree()
        assert self.subject.held() == self.model.held()

    @invariant()
    def quota_is_exact(self) -> None:
        self.subject.check_quota()
