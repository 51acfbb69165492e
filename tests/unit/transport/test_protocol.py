"""The kernel transport's layouts and tables, beside the kernel's own header."""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from struct import Struct
from typing import Final

import pytest

from fusevol.fs import _libc
from fusevol.fs.listing import entries
from fusevol.transport.kernel import features
from fusevol.transport.kernel import protocol as p

HEADER: Final = Path("/usr/include/linux/fuse.h")

ENTRY_SIZE: Final = p.ENTRY_OUT.size + p.ATTR.size
STRUCTS: Final = {
    "fuse_in_header": (p.IN_HEADER, "len opcode unique nodeid uid gid pid"),
    "fuse_out_header": (p.OUT_HEADER, "len error unique"),
    "fuse_init_out": (
        p.INIT_OUT,
        (
            "major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages "
            "map_alignment flags2"
        ),
    ),
    "fuse_forget_in": (p.FORGET_IN, "nlookup"),
    "fuse_batch_forget_in": (p.BATCH_FORGET_IN, "count"),
    "fuse_forget_one": (p.FORGET_ONE, "nodeid nlookup"),
    "fuse_getattr_in": (p.GETATTR_IN, "getattr_flags fh"),
    "fuse_setattr_in": (
        p.SETATTR_IN,
        "valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode uid gid",
    ),
    "fuse_mknod_in": (p.MKNOD_IN, "mode rdev umask"),
    "fuse_mkdir_in": (p.MKDIR_IN, "mode umask"),
    "fuse_rename_in": (p.RENAME_IN, "newdir"),
    "fuse_rename2_in": (p.RENAME2_IN, "newdir flags"),
    "fuse_link_in": (p.LINK_IN, "oldnodeid"),
    "fuse_open_in": (p.OPEN_IN, "flags open_flags"),
    "fuse_create_in": (p.CREATE_IN, "flags mode umask open_flags"),
    "fuse_release_in": (p.RELEASE_IN, "fh flags release_flags lock_owner"),
    "fuse_read_in": (p.READ_IN, "fh offset size read_flags lock_owner flags"),
    "fuse_write_in": (p.WRITE_IN, "fh offset size write_flags lock_owner flags"),
    "fuse_fsync_in": (p.FSYNC_IN, "fh fsync_flags"),
    "fuse_setxattr_in": (p.SETXATTR_IN, "size flags setxattr_flags"),
    "fuse_getxattr_in": (p.GETXATTR_IN, "size"),
    "fuse_fallocate_in": (p.FALLOCATE_IN, "fh offset length mode"),
    "fuse_lseek_in": (p.LSEEK_IN, "fh offset whence"),
    "fuse_copy_file_range_in": (p.COPY_FILE_RANGE_IN, "fh_in off_in nodeid_out fh_out off_out len flags"),
    "fuse_statx_in": (p.STATX_IN, "getattr_flags fh sx_flags sx_mask"),
    "fuse_attr": (
        p.ATTR,
        "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags",
    ),
    "fuse_open_out": (p.OPEN_OUT, "fh open_flags"),
    "fuse_write_out": (p.WRITE_OUT, "size"),
    "fuse_getxattr_out": (p.GETXATTR_OUT, "size"),
    "fuse_lseek_out": (p.LSEEK_OUT, "offset"),
    "fuse_dirent": (p.DIRENT, "ino off namelen type"),
    "fuse_notify_inval_entry_out": (p.INVAL_ENTRY_OUT, "parent namelen flags"),
    "fuse_notify_inval_inode_out": (p.INVAL_INODE_OUT, "ino off len"),
}
"""Layouts that are a whole struct of the header, and its fields in order; those at the end that Debian 12 lacks are
left out (max_stack_depth, request_timeout, backing_id)."""
OUTER: Final = {
    "fuse_entry_out": (p.ENTRY_OUT, "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec"),
    "fuse_attr_out": (p.ATTR_OUT, "attr_valid attr_valid_nsec"),
    "fuse_statx_out": (p.STATX_OUT, "attr_valid attr_valid_nsec flags"),
}
"""Those that another struct follows within the same one."""
INNER: Final = {"fuse_entry_out": "attr", "fuse_attr_out": "attr", "fuse_statx_out": "stat"}


def _where(layout: Struct, index: int, count: int) -> tuple[int, int]:
    """Offset and size of a field."""
    values = [0] * count
    values[index] = -1 if _letters(layout)[index] in "iq" else (1 << 8 * _SIZE[_letters(layout)[index]]) - 1
    packed = layout.pack(*values)
    return packed.index(b"\xff"), packed.count(b"\xff")


_SIZE: Final = {"H": 2, "I": 4, "i": 4, "Q": 8, "q": 8}


def _letters(layout: Struct) -> str:
    return "".join(
        letter * int(number or "1") for number, letter in re.findall(r"(\d*)([HIiQqx])", layout.format) if letter != "x"
    )


def _ours() -> dict[str, tuple[int, int]]:
    """Offset and size of every field."""
    found = {}
    for name, (layout, fields) in (STRUCTS | OUTER).items():
        letters = _letters(layout)
        for index, field in enumerate(fields.split()):
            found[f"{name}.{field}"] = _where(layout, index, len(letters))
        end = f"{name}.{INNER[name]}" if name in INNER else name
        found[end] = (layout.size, 0) if name in INNER else (0, layout.size)
    return found


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """The same of the C compiler; what the header does not have is not in it."""
    if shutil.which("gcc") is None or not HEADER.exists():
        pytest.skip("needs gcc and linux/fuse.h")
    text = HEADER.read_text()
    lines = []
    for name, (_, fields) in (STRUCTS | OUTER).items():
        body = re.search(rf"struct {name} {{(.*?)}};", text, re.DOTALL)
        if body is None:
            continue
        for field in [*fields.split(), *([INNER[name]] if name in INNER else [])]:
            if re.search(rf"\b{field}\b", body[1]):
                size = "(size_t)0" if INNER.get(name) == field else f"sizeof(((struct {name} *)0)->{field})"
                lines.append(f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}), {size});')
        if name not in INNER:
            lines.append(f'printf("{name} 0 %zu\\n", sizeof(struct {name}));')
    includes = "#include <stdio.h>\n#include <stddef.h>\n#include <linux/fuse.h>\n"
    code = includes + "int main(void) {" + "\n".join(lines) + "}"
    program = tmp_path_factory.mktemp("c") / "layouts"
    subprocess.run(["gcc", "-x", "c", "-", "-o", program], input=code.encode(), check=True, timeout=60)
    output = subprocess.run([program], check=True, capture_output=True, text=True, timeout=10).stdout
    return {name: (int(at), int(size)) for name, at, size in (line.split() for line in output.splitlines())}


def test_layouts_are_those_of_the_header(theirs: dict[str, tuple[int, int]]) -> None:
    """Every field lies where the C compiler puts it, and every struct has its size."""
    ours = {name: where for name, where in _ours().items() if name in theirs}

    assert ours == theirs
    assert len(theirs) > 100


def test_flags_and_operations_are_those_of_the_header() -> None:
    """Numbers of operations, notifications and flags are the header's, as far as it knows them."""
    if not HEADER.exists():
        pytest.skip("needs linux/fuse.h")
    text = HEADER.read_text()
    codes = {name: int(value) for name, value in re.findall(r"^\tFUSE_(\w+)\s*= (\d+),", text, re.MULTILINE)}
    defines: dict[str, int] = {}
    for name, value in re.findall(r"^#define (\w+)\s+\(?([0-9ulLU]+(?: ?<< ?\d+)?)\)?\s*(?:/.*)?$", text, re.MULTILINE):
        base, _, shift = re.sub(r"[ulUL]", "", value).partition("<<")
        defines[name] = int(base) << int(shift or 0)
    ours = {op.name: int(op) for op in p.Op} | {f"NOTIFY_{n.name}": int(n) for n in p.Notify}
    flags = {name: value for name, value in vars(p).items() if re.match(r"(FATTR|FOPEN)_", name)}
    renamed = {"GETATTR_FH", "OPEN_KILL_SUIDGID", "WRITE_KILL_SUIDGID", "FSYNC_FDATASYNC", "SETXATTR_ACL_KILL_SGID"}
    flags |= {f"FUSE_{name}": getattr(p, name) for name in renamed}
    bits = {f"FUSE_{f.name.upper().replace('-', '_')}": 1 << f.bit for f in features.TABLE}
    bits["FUSE_DO_READDIRPLUS"] = bits.pop("FUSE_READDIRPLUS")

    assert {k: v for k, v in ours.items() if k in codes} == {k: codes[k] for k in ours if k in codes}
    assert {k: v for k, v in (flags | bits).items() if k in defines} == {
        k: defines[k] for k in flags | bits if k in defines
    }
    assert len(ours.keys() & codes.keys()) > 45
    assert len((flags | bits).keys() & defines.keys()) > 30


def test_time_before_the_epoch(tmp_path: Path) -> None:
    """A negative time goes out as whole seconds rounded down, and nanoseconds that are positive."""
    file = tmp_path / "f"
    file.touch()
    os.utime(file, ns=(-1, -1_500_000_000))
    fields = p.ATTR.unpack(p.pack_attr(file.stat()))

    assert fields[3:5] == (-1, -2)
    assert fields[6:8] == (999_999_999, 500_000_000)


@pytest.mark.parametrize(("text", "count"), [(b"", 1), (b"name", 1), (b"a\0b", 2)])
def test_names_that_do_not_end(text: bytes, count: int) -> None:
    """A name without its zero is EINVAL."""
    with pytest.raises(OSError, match="does not end") as refused:
        p.names(text, count)

    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("room", [4096, 32768, 131072])
def test_blocks_of_names_fit(tmp_path: Path, room: int) -> None:
    """What is read of a directory for an answer fits into it whole, with and without attributes."""
    made = {b"x" * length for length in range(1, 256)} | {b"%03d" % number for number in range(500)}
    for name in made:
        (tmp_path / name.decode()).touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for share, extra in ((room * 3 // 4, 0), (room * 3 // 20, ENTRY_SIZE)):
            found, offset = [], 0
            while block := _libc.getdents(fd, offset, share):
                page = p.dirents(block)
                listed = list(entries(block))
                assert page == b"".join(p.dirent(name, ino, kind, after) for name, ino, kind, after in listed)
                assert len(page) + len(listed) * extra <= room
                found += [name for name, *_ in listed]
                offset = listed[-1].offset
            assert sorted(found) == sorted({*made, b".", b".."})
    finally:
        os.close(fd)


def test_dirent_is_the_kernels() -> None:
    """Inode, offset, length, type, name and zeros up to the next eight bytes (FUSE_DIRENT_ALIGN in linux/fuse.h)."""
    assert p.dirent(b"abc", 7, 8, 9) == struct.pack("=QQII8s", 7, 9, 3, 8, b"abc")
    assert p.dirent(b"abcdefgh", 7, 8, 9) == struct.pack("=QQII8s", 7, 9, 8, 8, b"abcdefgh")
