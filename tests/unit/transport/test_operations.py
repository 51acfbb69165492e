"""The kernel transport's operations, fed with what no kernel sends."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusevol.fs import FileSystem
from fusevol.fs.types import CACHE_EXCLUSIVE, CACHE_NONE, ROOT_NODE, Entry
from fusevol.quota.ledger import Ledger
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel.operations import Answer, Operations
from fusevol.transport.kernel.passthrough import Passthrough
from fusevol.transport.kernel.protocol import Op

EXAMPLES: Final = int(os.environ.get("FUSEVOL_EXAMPLES", "150"))
UNANSWERED: Final = {Op.FORGET, Op.BATCH_FORGET}
ENTRY: Final = p.ENTRY_OUT.size + p.ATTR.size
FIXED: Final = {
    Op.LOOKUP: ENTRY, Op.MKNOD: ENTRY, Op.MKDIR: ENTRY, Op.SYMLINK: ENTRY, Op.LINK: ENTRY,
    Op.CREATE: ENTRY + p.OPEN_OUT.size, Op.TMPFILE: ENTRY + p.OPEN_OUT.size,
    Op.OPEN: p.OPEN_OUT.size, Op.OPENDIR: p.OPEN_OUT.size,
    Op.GETATTR: p.ATTR_OUT.size + p.ATTR.size, Op.SETATTR: p.ATTR_OUT.size + p.ATTR.size,
    Op.STATX: p.STATX_OUT.size + 256, Op.STATFS: p.STATFS_OUT.size,
    Op.WRITE: p.WRITE_OUT.size, Op.COPY_FILE_RANGE: p.WRITE_OUT.size, Op.COPY_FILE_RANGE_64: p.COPY_OUT_64.size,
    Op.LSEEK: p.LSEEK_OUT.size,
    **dict.fromkeys((
        Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.SETXATTR, Op.REMOVEXATTR, Op.RELEASE, Op.RELEASEDIR, Op.FSYNC,
        Op.FSYNCDIR, Op.FALLOCATE, Op.SYNCFS, Op.DESTROY,
    ), 0),
}  # fmt: skip
"""Size of an answer without an error, for operations whose answer does not depend on what is asked."""

EDGES: Final = [
    0, 1, 2, 3, 7, 8, 255, 4095, 4096, 4097, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 62) + 1,
    (1 << 63) - 4096, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1,
]  # fmt: skip
LENGTHS: Final = [0, 1, 4095, 4096, 65_536, 1 << 63, (1 << 64) - 1]
"""Of fallocate: what the test's own disk may give, or nobody has."""
NAMES: Final = [b"f", b"d", b"l", b"p", b"new", b"new2", b"user.a", b"user.b"]
HOSTILE: Final = [
    b"system.posix_acl_access", b"security.capability", b"trusted.overlay.opaque", b"", b".", b"..", b"/",
    b"../outside", b"d/../../outside", b"/etc/passwd", b"n" * 255, b"n" * 256, b"n" * 4096, b"\xff\xfe\n",
]  # fmt: skip
LAYOUTS: Final[dict[int, tuple[Struct, int]]] = {
    Op.LOOKUP: (p.EMPTY, 1), Op.FORGET: (p.FORGET_IN, 0), Op.BATCH_FORGET: (p.BATCH_FORGET_IN, 0),
    Op.GETATTR: (p.GETATTR_IN, 0), Op.SETATTR: (p.SETATTR_IN, 0), Op.READLINK: (p.EMPTY, 0),
    Op.SYMLINK: (p.EMPTY, 2), Op.MKNOD: (p.MKNOD_IN, 1), Op.MKDIR: (p.MKDIR_IN, 1), Op.UNLINK: (p.EMPTY, 1),
    Op.RMDIR: (p.EMPTY, 1), Op.RENAME: (p.RENAME_IN, 2), Op.RENAME2: (p.RENAME2_IN, 2), Op.LINK: (p.LINK_IN, 1),
    Op.OPEN: (p.OPEN_IN, 0), Op.READ: (p.READ_IN, 0), Op.WRITE: (p.WRITE_IN, 0), Op.STATFS: (p.EMPTY, 0),
    Op.RELEASE: (p.RELEASE_IN, 0), Op.FSYNC: (p.FSYNC_IN, 0), Op.SETXATTR: (p.SETXATTR_IN, 1),
    Op.GETXATTR: (p.GETXATTR_IN, 1), Op.LISTXATTR: (p.GETXATTR_IN, 0), Op.REMOVEXATTR: (p.EMPTY, 1),
    Op.OPENDIR: (p.OPEN_IN, 0), Op.READDIR: (p.READ_IN, 0), Op.READDIRPLUS: (p.READ_IN, 0),
    Op.RELEASEDIR: (p.RELEASE_IN, 0), Op.FSYNCDIR: (p.FSYNC_IN, 0), Op.CREATE: (p.CREATE_IN, 1),
    Op.TMPFILE: (p.CREATE_IN, 0), Op.FALLOCATE: (p.FALLOCATE_IN, 0), Op.LSEEK: (p.LSEEK_IN, 0),
    Op.COPY_FILE_RANGE: (p.COPY_FILE_RANGE_IN, 0), Op.COPY_FILE_RANGE_64: (p.COPY_FILE_RANGE_IN, 0),
    Op.STATX: (p.STATX_IN, 0), Op.SYNCFS: (p.EMPTY, 0),
}  # fmt: skip
"""The first argument of each operation and how many names follow it. The others are asked with anything."""
SMALL: Final = st.integers(0, 6)
"""Indices of nodes and handles that were given."""


class Request:
    """A request whose node and handles are indices into what was given so far, so that it can mean something."""

    def __init__(self, op: int, node: int, first: bytes, handle: int | None, rest: bytes, ids: tuple[int, int, int]):
        self.op = op
        self.node = node
        self.first = first
        self.handle = handle
        self.rest = rest
        self.ids = ids

    def __repr__(self) -> str:
        return f"Request({self.op}, {self.node}, {self.first!r}, {self.handle}, {self.rest!r}, {self.ids})"


def _field(draw: Any, code: str, op: int, index: int) -> int:
    """A value for a field of struct format *code*."""
    if op == Op.FALLOCATE and index == 2:
        return int(draw(st.sampled_from(LENGTHS)))
    value = draw(st.one_of(st.sampled_from([0, 1, 2, 3, 4]), st.sampled_from(EDGES), st.integers(0, 4096)))
    bits = {"I": 32, "i": 32, "Q": 64, "q": 64}[code]
    value &= (1 << bits) - 1
    return value - (1 << bits) if code in "iq" and value >> (bits - 1) else value


@st.composite
def requests(draw: Any) -> Request:
    """Mostly well-formed requests with hostile values; some are cut, lengthened or changed."""
    op = draw(st.one_of(st.sampled_from([int(op) for op in LAYOUTS]), st.integers(0, 70), st.sampled_from([1 << 31])))
    layout, count = LAYOUTS.get(op, (p.EMPTY, 0))
    values = [_field(draw, code, op, i) for i, code in enumerate(_codes(layout))]
    first = layout.pack(*values)
    rest = b"".join(draw(st.one_of(st.sampled_from(NAMES), st.sampled_from(HOSTILE))) + b"\0" for _ in range(count))
    rest += draw(st.sampled_from([b"", b"x", b"data" * 1024, bytes(16), b"\xff" * 64, bytes(70_000)]))
    if op == Op.BATCH_FORGET:
        rest = b"".join(p.FORGET_ONE.pack(draw(st.integers(0, 20)), draw(st.integers(0, 3))) for _ in range(3)) + rest
    handle = draw(SMALL) if draw(st.integers(0, 3)) else None
    if draw(st.integers(0, 5)) == 0 and op != Op.FALLOCATE:
        first, rest, handle = *_mangled(draw, first, rest), None
    uid, gid = draw(st.sampled_from([(0, 0), (1234, 5678), (p.NOBODY, p.NOBODY)]))
    return Request(op, draw(SMALL), first, handle, rest, (uid, gid, draw(st.sampled_from([0, 1, (1 << 32) - 1]))))


def _codes(layout: Struct) -> list[str]:
    """One letter per field of *layout*, repetitions undone."""
    found: list[str] = []
    number = ""
    for c in layout.format.lstrip("="):
        if c.isdigit():
            number += c
            continue
        found += [c] * int(number or "1") if c != "x" else []
        number = ""
    return found


def _mangled(draw: Any, first: bytes, rest: bytes) -> tuple[bytes, bytes]:
    whole = bytearray(first + rest)
    how = draw(st.integers(0, 2))
    if how == 0:
        del whole[draw(st.integers(0, len(whole))) :]
    elif how == 1:
        whole += draw(st.binary(max_size=40))
    elif whole:
        whole[draw(st.integers(0, min(len(whole), 64) - 1))] = draw(st.integers(0, 255))
    return bytes(whole[: len(first)]), bytes(whole[len(first) :])


class Kernel:
    """Sends requests as the kernel does, and remembers what it was given."""

    def __init__(self, fs: FileSystem, passthrough: Passthrough | None) -> None:
        self.operations = Operations(fs, passthrough=passthrough, setxattr_ext=True)
        self.lookups: Counter[int] = Counter()
        self.nodes = [ROOT_NODE]
        self.files: list[int] = []
        self.directories: list[int] = []

    def ask(self, op: int, node: int, first: bytes, rest: bytes, ids: tuple[int, int, int] = (0, 0, 0)) -> Answer:
        """One request, in a buffer that holds nothing but it."""
        sizes = self.operations.sizes
        buffer = bytearray(40) + first + rest
        # a session reads into a buffer of a fixed size: what is not there reads as zeros or as an older request
        start = 40 + (sizes[op] if op < len(sizes) else 0)
        return self.operations.carry_out(op, node, buffer + bytes(128), 40, memoryview(buffer)[start:], ids)

    def send(self, request: Request) -> tuple[bytes, Answer]:
        """Make *request* mean something, send it, and check the answer."""
        op, first = request.op, request.first
        node = [*self.nodes, 0, 12_345, 1 << 63][min(request.node, len(self.nodes) + 2)]
        if request.handle is not None and op in LAYOUTS:
            first = self._with_handles(op, first, request.handle)
        answer = self.ask(op, node, first, request.rest, request.ids)
        self._check(op, first, answer)
        if isinstance(answer, bytes):
            self._take(op, first, answer)
        if op in UNANSWERED:
            self._forget(op, node, first, request.rest)
        return first, answer

    def _with_handles(self, op: int, first: bytes, index: int) -> bytes:
        layout = LAYOUTS[op][0]
        fields = list(layout.unpack(first))
        opened = self.directories if op in {Op.READDIR, Op.READDIRPLUS, Op.RELEASEDIR, Op.FSYNCDIR} else self.files
        handle = opened[index % len(opened)] if opened else 99
        if layout in {p.READ_IN, p.WRITE_IN, p.FSYNC_IN, p.RELEASE_IN, p.FALLOCATE_IN, p.LSEEK_IN}:
            fields[0] = handle
        elif layout is p.COPY_FILE_RANGE_IN:
            fields[0], fields[3], fields[6] = handle, opened[-1] if opened else 99, 0
        elif layout in {p.GETATTR_IN, p.SETATTR_IN, p.STATX_IN}:
            fields[1] = handle
        elif layout in {p.RENAME_IN, p.RENAME2_IN, p.LINK_IN}:
            fields[0] = self.nodes[index % len(self.nodes)]
        return layout.pack(*fields)

    @staticmethod
    def _check(op: int, first: bytes, answer: Answer) -> None:
        if op in UNANSWERED:
            assert answer is None
        elif isinstance(answer, int):
            assert 0 < answer < 512, f"the kernel takes no errno {answer}"
        else:
            assert answer is not None
            assert len(answer) <= _most(op, first), f"{len(answer)} bytes for operation {op}"

    def _take(self, op: int, first: bytes, answer: bytes) -> None:
        """Count what the answer gives."""
        if op in {Op.LOOKUP, Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.CREATE, Op.TMPFILE}:
            self._known(p.ENTRY_OUT.unpack_from(answer)[0])
        if op in {Op.CREATE, Op.TMPFILE}:
            self.files.append(p.OPEN_OUT.unpack_from(answer, ENTRY)[0])
        elif op == Op.OPEN:
            self.files.append(p.OPEN_OUT.unpack_from(answer)[0])
        elif op == Op.OPENDIR:
            self.directories.append(p.OPEN_OUT.unpack_from(answer)[0])
        elif op == Op.RELEASE:
            self.files.remove(p.RELEASE_IN.unpack_from(first + bytes(64))[0])
        elif op == Op.RELEASEDIR:
            self.directories.remove(p.RELEASE_IN.unpack_from(first + bytes(64))[0])
        elif op == Op.READDIRPLUS:
            for given in _entries(answer):
                self._known(given)

    def _known(self, node: int) -> None:
        if node:
            self.lookups[node] += 1
            if node not in self.nodes:
                self.nodes.append(node)

    def _forget(self, op: int, node: int, first: bytes, rest: bytes) -> None:
        if op == Op.FORGET:
            taken = [(node, p.FORGET_IN.unpack_from(first + bytes(8))[0])]
        else:
            count = p.BATCH_FORGET_IN.unpack_from(first + bytes(8))[0]
            whole = rest[: min(count, len(rest) // 16) * 16]
            taken = list(p.FORGET_ONE.iter_unpack(whole))
        for one, count in taken:
            self.lookups[one] = max(0, self.lookups[one] - count)

    def end(self) -> None:
        """Close everything and forget everything."""
        for fh in list(self.files):
            self.ask(Op.RELEASE, ROOT_NODE, p.RELEASE_IN.pack(fh, 0, 0, 0), b"")
        for fh in list(self.directories):
            self.ask(Op.RELEASEDIR, ROOT_NODE, p.RELEASE_IN.pack(fh, 0, 0, 0), b"")
        for node, count in self.lookups.items():
            self.ask(Op.FORGET, node, p.FORGET_IN.pack(count), b"")
        while self.operations.untidy:
            self.operations.tidy(1)


def _most(op: int, first: bytes) -> int:
    """The largest answer that the kernel has room for."""
    if op in FIXED:
        return FIXED[Op(op)]
    if op in {Op.READ, Op.READDIR, Op.READDIRPLUS}:
        return int(p.READ_IN.unpack_from(first + bytes(64))[2])
    if op in {Op.GETXATTR, Op.LISTXATTR}:
        return int(p.GETXATTR_IN.unpack_from(first + bytes(64))[0]) or p.GETXATTR_OUT.size
    return 4095 if op == Op.READLINK else 0


def _entries(page: bytes) -> Iterator[int]:
    """Node of each entry of a page of READDIRPLUS."""
    at = 0
    while at < len(page):
        yield p.ENTRY_OUT.unpack_from(page, at)[0]
        _ino, _off, length, _kind = p.DIRENT.unpack_from(page, at + ENTRY)
        size = ENTRY + p.DIRENT.size + length
        at += size + -size % 8


def _du(root: Path) -> tuple[int, int]:
    inodes = {st.st_ino: st.st_blocks * 512 for st in (f.lstat() for f in (root, *root.rglob("*")))}
    return sum(inodes.values()), len(inodes)


@pytest.fixture(autouse=True)
def _spare_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file of more than 4 MiB, so that a huge copy ends early (Python ignores SIGXFSZ), and no sync."""
    monkeypatch.setattr("fusevol.fs._libc.syncfs", lambda _fd: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _populate(root: Path) -> None:
    (root / "d").mkdir(parents=True)
    (root / "f").write_bytes(b"content" * 1000)
    (root / "d" / "f").write_bytes(b"below")
    (root / "l").symlink_to("../outside")
    os.mkfifo(root / "p")


def _look(root: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of all files."""
    return {str(f): (f.lstat().st_mode, f.read_bytes()) for f in sorted(root.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("quota", [False, True])
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(asked=st.lists(requests(), min_size=1, max_size=30))
def test_hostile_requests(quota: bool, asked: list[Request]) -> None:
    """Any request gets an answer that the kernel takes; nothing is logged, left open or touched elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        source, outside = Path(directory) / "source", Path(directory) / "outside"
        _populate(source)
        _populate(outside)
        before = _look(outside)
        ledger = (
            Ledger.open(Path(directory) / "ledger", source, limit_bytes=1 << 20, limit_inodes=50) if quota else None
        )
        fs = FileSystem(str(source), quota=ledger, cache=CACHE_NONE if quota else CACHE_EXCLUSIVE, descriptors=16)
        passthrough = None if quota else Passthrough(fs._nodes.mount_fd)  # a directory: every ioctl is refused
        kernel = Kernel(fs, passthrough)
        try:
            for name in (b"f", b"d", b"l"):
                kernel.send(Request(Op.LOOKUP, 0, b"", None, name + b"\0", (0, 0, 0)))
            kernel.send(Request(Op.OPEN, 1, p.OPEN_IN.pack(os.O_RDWR, 0), None, b"", (0, 0, 0)))
            kernel.send(Request(Op.OPENDIR, 0, p.OPEN_IN.pack(0, 0), None, b"", (0, 0, 0)))
            for request in asked:
                kernel.send(request)
            kernel.end()
            fs.drain()
            left, counted = fs.stats(), fs.usage()
        finally:
            fs.close()
            if ledger is not None:
                ledger.close()
        after, true = _look(outside), _du(source)

    assert (left.nodes, left.open_files, left.open_dirs) == (1, 0, 0)
    assert counted is None or (counted.used_bytes, counted.used_inodes) == true
    assert after == before


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree."""
    _populate(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("number", [524, 512, 0, None])
def test_errors_that_the_kernel_takes_from_no_server(tree: Path, number: int | None) -> None:
    """An errno of a backing store's own kernel code, or none at all, becomes EIO: the kernel would drop the answer."""

    class Odd(FileSystem):
        def readlink(self, node: int) -> bytes:  # noqa: ARG002
            raise OSError(number, "odd")

    fs = Odd(str(tree))
    answer = Kernel(fs, None).ask(Op.READLINK, ROOT_NODE, b"", b"")
    fs.close()

    assert answer == errno.EIO


def test_a_listing_with_an_inode_that_cannot_be_read(tree: Path) -> None:
    """The name is listed without attributes, and the others' lookups are counted and forgotten as ever."""

    class Broken(FileSystem):
        def lookup(self, parent: int, name: bytes) -> Entry:
            if name == b"f":
                raise OSError(errno.EUCLEAN, "corrupt")
            return super().lookup(parent, name)

    fs = Broken(str(tree))
    kernel = Kernel(fs, None)
    opened = kernel.send(Request(Op.OPENDIR, 0, p.OPEN_IN.pack(0, 0), None, b"", (0, 0, 0)))
    _, page = kernel.send(Request(Op.READDIRPLUS, 0, p.READ_IN.pack(0, 0, 4096, 0, 0, 0), 0, b"", (0, 0, 0)))
    kernel.end()
    left = fs.stats()
    fs.close()

    assert isinstance(opened[1], bytes)
    assert isinstance(page, bytes)
    assert sorted(map(bool, _entries(page))) == [False] * 3 + [True] * 3  # ".", ".." and "f"; "d", "l" and "p"
    assert left.nodes == 1
