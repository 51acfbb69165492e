"""What Linux's filesystems have beyond POSIX, as cases of the table: allocation, holes, copies, unnamed files, …"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import struct
import threading

from tests.fs.posix_cases import Refused, case, fails, get, put, rename2, root_case
from tests.support import eventually

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
"""linux/falloc.h"""
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
BLOCK = 65_536
"""A multiple of every block size."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.opendir.restype = _libc.readdir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.msync.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
for _name in ("telldir", "rewinddir", "closedir", "readdir"):
    getattr(_libc, _name).argtypes = (ctypes.c_void_p,)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), without the emulation of posix_fallocate(3)."""
    _check(_libc.fallocate(fd, mode, offset, length), "fallocate")


def utimens(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with seconds and nanoseconds, or the special values of the latter."""
    times = (ctypes.c_int64 * 4)(*atime, *mtime)
    _check(_libc.utimensat(-100, path.encode(), times, 0), "utimensat")


def birth(path: str) -> tuple[int, int]:
    """The time of birth, by statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(-100, path.encode(), 0, 0xFFF, buffer), "statx")
    mask = struct.unpack_from("=I", buffer, 0)[0]
    assert mask & 0x800, "no time of birth"
    seconds, nano = struct.unpack_from("=qI", buffer, 80)
    return seconds, nano


def link_fd(fd: int, path: str) -> None:
    """Give the file that is open as *fd* a name."""
    # os.link(follow_symlinks=True) does not follow on Linux
    _check(_libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, path.encode(), 0x400), "linkat")


# -- allocation -------------------------------------------------------------------------------------------------------


@case
def fallocate_lengthens(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.write(b"data")
        f.flush()
        fallocate(f.fileno(), 0, 0, 3 * BLOCK)
        st = os.fstat(f.fileno())
        assert (st.st_size, st.st_blocks * 512 >= 3 * BLOCK) == (3 * BLOCK, True)
    assert get(f"{d}/f") == b"data" + bytes(3 * BLOCK - 4)


@case
def fallocate_keeps_the_size(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.write(b"data")
        f.flush()
        fallocate(f.fileno(), KEEP_SIZE, 0, 3 * BLOCK)
        st = os.fstat(f.fileno())
        assert (st.st_size, st.st_blocks * 512 >= 3 * BLOCK) == (4, True)
    assert get(f"{d}/f") == b"data"


@case
def fallocate_punches_holes(d: str) -> None:
    data = b"x" * 4 * BLOCK
    with open(f"{d}/f", "w+b") as f:
        f.write(data)
        f.flush()
        assert os.pread(f.fileno(), 4 * BLOCK, 0) == data
        before = os.fstat(f.fileno()).st_blocks
        fallocate(f.fileno(), PUNCH_HOLE | KEEP_SIZE, BLOCK - 100, 2 * BLOCK + 200)
        st = os.fstat(f.fileno())
        assert st.st_size == 4 * BLOCK
        assert st.st_blocks <= before - 2 * BLOCK // 512
        hole = bytes(2 * BLOCK + 200)
        assert os.pread(f.fileno(), 4 * BLOCK, 0) == data[: BLOCK - 100] + hole + data[: BLOCK - 100]
        with fails(errno.EOPNOTSUPP):
            fallocate(f.fileno(), PUNCH_HOLE, 0, BLOCK)


@case
def fallocate_zeroes_ranges(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.write(b"x" * 2 * BLOCK)
        f.flush()
        assert os.pread(f.fileno(), 10, 0) == b"x" * 10
        fallocate(f.fileno(), ZERO_RANGE, 10, BLOCK)
        fallocate(f.fileno(), ZERO_RANGE | KEEP_SIZE, BLOCK + 10, 4 * BLOCK)
        assert os.fstat(f.fileno()).st_size == 2 * BLOCK
        fallocate(f.fileno(), ZERO_RANGE, BLOCK, 2 * BLOCK)
    assert get(f"{d}/f") == b"x" * 10 + bytes(3 * BLOCK - 10)


@case
def fallocate_collapses_and_inserts(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.writelines(bytes([letter]) * BLOCK for letter in b"abc")
        f.flush()
        fallocate(f.fileno(), COLLAPSE_RANGE, BLOCK, BLOCK)
        assert os.pread(f.fileno(), 3 * BLOCK, 0) == b"a" * BLOCK + b"c" * BLOCK
        fallocate(f.fileno(), INSERT_RANGE, BLOCK, BLOCK)
    assert get(f"{d}/f") == b"a" * BLOCK + bytes(BLOCK) + b"c" * BLOCK


@case
def fallocate_refusals(d: str) -> None:
    put(f"{d}/f", b"x")
    fd = os.open(f"{d}/f", os.O_RDONLY)
    try:
        with fails(errno.EBADF):
            fallocate(fd, 0, 0, BLOCK)
    finally:
        os.close(fd)
    with open(f"{d}/f", "r+b") as f:
        for offset, length in ((0, 0), (-1, 1), (0, -1)):
            with fails(errno.EINVAL):
                fallocate(f.fileno(), 0, offset, length)
        with fails(errno.EFBIG):
            fallocate(f.fileno(), 0, (1 << 63) - 1, 1)


@case
def holes_and_data_are_found(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        os.pwrite(f.fileno(), b"a" * BLOCK, 0)
        os.pwrite(f.fileno(), b"b" * BLOCK, 16 * BLOCK)
        os.ftruncate(f.fileno(), 32 * BLOCK)

        def seek(offset: int, whence: int) -> int:
            return os.lseek(f.fileno(), offset, whence)

        assert seek(0, os.SEEK_DATA) == 0
        assert seek(0, os.SEEK_HOLE) == BLOCK
        assert seek(BLOCK, os.SEEK_DATA) == 16 * BLOCK
        assert seek(16 * BLOCK + 5, os.SEEK_HOLE) == 17 * BLOCK
        assert seek(20 * BLOCK, os.SEEK_HOLE) == 20 * BLOCK
        for offset, whence in ((17 * BLOCK, os.SEEK_DATA), (32 * BLOCK, os.SEEK_HOLE)):
            with fails(errno.ENXIO):
                seek(offset, whence)
        assert seek(0, os.SEEK_CUR) == 20 * BLOCK


@case
def copies_within_the_filesystem(d: str) -> None:
    data = os.urandom(3 * BLOCK + 77)
    put(f"{d}/a", data)
    put(f"{d}/b", b"old content")
    with open(f"{d}/a", "rb") as a, open(f"{d}/b", "r+b") as b:
        assert os.pread(b.fileno(), 3, 0) == b"old"
        done = 0
        while done < len(data):
            done += os.copy_file_range(a.fileno(), b.fileno(), len(data) - done, done, done)
        assert os.copy_file_range(a.fileno(), b.fileno(), 10, len(data), 0) == 0
        assert os.fstat(b.fileno()).st_size == len(data)
        assert os.pread(b.fileno(), 2 * len(data), 0) == data
    assert get(f"{d}/b") == data


@case
def copies_ranges(d: str) -> None:
    data = os.urandom(2 * BLOCK)
    put(f"{d}/a", data)
    with open(f"{d}/a", "r+b") as a, open(f"{d}/b", "w+b") as b:
        assert os.copy_file_range(a.fileno(), b.fileno(), 1000, 5000, 3 * BLOCK) == 1000
        assert os.pread(b.fileno(), 4 * BLOCK, 0) == bytes(3 * BLOCK) + data[5000:6000]
        # to itself
        assert os.copy_file_range(a.fileno(), a.fileno(), 4096, 0, BLOCK) == 4096
        assert os.pread(a.fileno(), 4096, BLOCK) == data[:4096]
        with fails(errno.EINVAL):
            os.copy_file_range(a.fileno(), a.fileno(), 4096, 0, 100)
        with fails(errno.EBADF):
            os.copy_file_range(b.fileno(), os.open(f"{d}/a", os.O_RDONLY), 10)


@case
def offsets_beyond_4_gib(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        os.pwrite(f.fileno(), b"far", 5 << 30)
        assert os.fstat(f.fileno()).st_size == (5 << 30) + 3
        assert os.pread(f.fileno(), 10, 5 << 30) == b"far"
        assert os.pread(f.fileno(), 10, 1 << 30) == bytes(10)
        with fails(errno.EINVAL):
            os.ftruncate(f.fileno(), -1)


@case
def direct_io(d: str) -> None:
    fd = os.open(f"{d}/f", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        with mmap.mmap(-1, 2 * BLOCK) as buffer:
            buffer[:] = b"d" * 2 * BLOCK
            assert os.pwritev(fd, [buffer], 0) == 2 * BLOCK
            buffer[:] = bytes(2 * BLOCK)
            assert os.preadv(fd, [buffer], 0) == 2 * BLOCK
            assert buffer[:] == b"d" * 2 * BLOCK
            with open(f"{d}/f", "r+b") as cached:  # beside the page cache, both ways
                os.pwrite(cached.fileno(), b"cached", 0)
                os.preadv(fd, [buffer], 0)
                assert buffer[:7] == b"cachedd"
                buffer[:] = b"e" * 2 * BLOCK
                os.pwritev(fd, [buffer], 0)
                assert os.pread(cached.fileno(), 7, 0) == b"e" * 7
    finally:
        os.close(fd)


@case
def append_ignores_the_offset(d: str) -> None:
    put(f"{d}/f", b"one")
    fd = os.open(f"{d}/f", os.O_WRONLY | os.O_APPEND)
    try:
        os.pwrite(fd, b"two", 0)
    finally:
        os.close(fd)
    assert get(f"{d}/f") == b"onetwo"


@case
def concurrent_appends_lose_nothing(d: str) -> None:
    def work(letter: str) -> None:
        fd = os.open(f"{d}/f", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for _ in range(100):
            os.write(fd, letter.encode() * 100)
        os.close(fd)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    data = get(f"{d}/f")
    assert len(data) == 40_000
    assert all(len(set(data[i : i + 100])) == 1 for i in range(0, 40_000, 100))


# -- unnamed files ----------------------------------------------------------------------------------------------------


@case
def unnamed_files_can_be_linked(d: str) -> None:
    fd = os.open(d, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"unnamed")
        st = os.fstat(fd)
        assert (st.st_nlink, st.st_mode & 0o7777, os.listdir(d)) == (0, 0o640, [])
        link_fd(fd, f"{d}/named")
        assert os.fstat(fd).st_nlink == 1
        os.write(fd, b" no more")
    finally:
        os.close(fd)
    assert get(f"{d}/named") == b"unnamed no more"
    assert os.stat(f"{d}/named").st_ino == st.st_ino


@case
def unnamed_files_that_stay_so(d: str) -> None:
    fd = os.open(d, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    try:
        with fails(errno.ENOENT):
            link_fd(fd, f"{d}/named")
        os.ftruncate(fd, 100)
        assert os.pread(fd, 200, 0) == bytes(100)
    finally:
        os.close(fd)
    assert os.listdir(d) == []


@case
def unlinked_file_can_be_changed(d: str) -> None:
    put(f"{d}/f", b"content")
    fd = os.open(f"{d}/f", os.O_RDWR)
    try:
        os.unlink(f"{d}/f")
        os.ftruncate(fd, 3)
        os.fchmod(fd, 0o604)
        os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
        os.setxattr(fd, "user.gone", b"still")
        st = os.fstat(fd)
        assert (st.st_size, st.st_mode & 0o7777, st.st_nlink, st.st_mtime_ns) == (3, 0o604, 0, 2_000_000_002)
        assert os.getxattr(fd, "user.gone") == b"still"
        assert get(f"/proc/self/fd/{fd}") == b"con"
        with fails(errno.ENOENT):
            link_fd(fd, f"{d}/again")
    finally:
        os.close(fd)


# -- names ------------------------------------------------------------------------------------------------------------


@case
def rename_flags_are_checked(d: str) -> None:
    put(f"{d}/a", b"a")
    with fails(errno.ENOENT):
        rename2(f"{d}/a", f"{d}/none", 2)
    with fails(errno.ENOENT):
        rename2(f"{d}/none", f"{d}/a", 2)
    for flags in (3, 6, 64):
        with fails(errno.EINVAL):
            rename2(f"{d}/a", f"{d}/b", flags)
    assert os.listdir(d) == ["a"]


@case
def rename_exchange_of_directories(d: str) -> None:
    os.makedirs(f"{d}/a/x")
    os.makedirs(f"{d}/b/y")
    put(f"{d}/b/y/f", b"moved")
    rename2(f"{d}/a/x", f"{d}/b/y", 2)
    assert get(f"{d}/a/x/f") == b"moved"
    assert os.stat(f"{d}/a/x/..").st_ino == os.stat(f"{d}/a").st_ino
    assert os.listdir(f"{d}/b/y") == []
    with fails(errno.EINVAL):
        rename2(f"{d}/a", f"{d}/a/x", 2)


@root_case
def rename_leaves_a_whiteout(d: str) -> None:
    put(f"{d}/a", b"a")
    put(f"{d}/b", b"b")
    try:
        rename2(f"{d}/a", f"{d}/b", 4)
    except OSError as e:
        raise Refused(f"no whiteouts on this filesystem: {e.strerror}") from e
    st = os.lstat(f"{d}/a")
    assert (stat.S_IFMT(st.st_mode), st.st_rdev) == (stat.S_IFCHR, 0)
    assert get(f"{d}/b") == b"a"
    os.unlink(f"{d}/a")
    assert os.listdir(d) == ["b"]


@root_case
def overlayfs_takes_it_as_upper(d: str) -> None:
    """As podman and containerd use it: whiteouts, opaque directories, copies upwards."""
    for name in ("lower/sub", "upper", "work", "merged"):
        os.makedirs(f"{d}/{name}")
    for name in ("deleted", "moved", "sub/x"):
        put(f"{d}/lower/{name}", b"low")
    options = f"lowerdir={d}/lower,upperdir={d}/upper,workdir={d}/work".encode()
    if _libc.mount(b"overlay", f"{d}/merged".encode(), b"overlay", ctypes.c_ulong(0), options) != 0:
        raise Refused(f"no overlayfs over this filesystem: {os.strerror(ctypes.get_errno())}")
    try:
        os.unlink(f"{d}/merged/deleted")
        os.rename(f"{d}/merged/moved", f"{d}/merged/there")
        put(f"{d}/merged/there", b"new")
        os.unlink(f"{d}/merged/sub/x")
        os.rmdir(f"{d}/merged/sub")
        os.mkdir(f"{d}/merged/sub")
        assert sorted(os.listdir(f"{d}/merged")) == ["sub", "there"]
        assert os.listdir(f"{d}/merged/sub") == []
        assert get(f"{d}/merged/there") == b"new"
    finally:
        _libc.umount2(f"{d}/merged".encode(), 0)
    assert stat.S_ISCHR(os.lstat(f"{d}/upper/deleted").st_mode)
    assert os.getxattr(f"{d}/upper/sub", "trusted.overlay.opaque") == b"y"


@case
def names_on_other_filesystems(d: str) -> None:
    put(f"{d}/f")
    with fails(errno.EXDEV):
        os.rename(f"{d}/f", "/dev/f")
    with fails(errno.EXDEV):
        os.link(f"{d}/f", "/dev/f")


@case
def paths_that_are_too_long(d: str) -> None:
    os.mkdir(f"{d}/{'n' * 255}")
    os.rename(f"{d}/{'n' * 255}", f"{d}/{'m' * 255}")
    assert os.listdir(d) == ["m" * 255]
    with fails(errno.ENAMETOOLONG):
        os.stat(f"{d}/{'x/' * 2048}")
    for call in (os.stat, os.unlink, os.rmdir, os.mkdir, os.mkfifo, lambda p: os.symlink("x", p)):
        with fails(errno.ENAMETOOLONG):
            call(f"{d}/{'n' * 256}")
    with fails(errno.ENAMETOOLONG):
        os.rename(f"{d}/{'m' * 255}", f"{d}/{'m' * 256}")
    with fails(errno.ENAMETOOLONG):
        os.symlink("t" * 4096, f"{d}/l")


@case
def symlinks_in_a_row(d: str) -> None:
    put(f"{d}/0", b"end")
    for i in range(41):
        os.symlink(f"{i}", f"{d}/{i + 1}")
    assert get(f"{d}/40") == b"end"
    for call in (os.stat, os.listdir, lambda p: os.chmod(p, 0o600), lambda p: os.truncate(p, 0)):
        with fails(errno.ELOOP):
            call(f"{d}/41")
    with fails(errno.ELOOP):
        os.open(f"{d}/1", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.ENOTDIR):
        os.open(f"{d}/0", os.O_RDONLY | os.O_DIRECTORY)


@case
def listing_from_a_remembered_place(d: str) -> None:
    for i in range(300):
        put(f"{d}/name-{i:03}-{'x' * (i % 40)}")

    def rest() -> list[bytes]:
        found = []
        while entry := _libc.readdir(stream):
            found.append(ctypes.string_at(entry + 19))  # struct dirent: ino, off, reclen, type, name
        return found

    stream = _libc.opendir(d.encode())
    try:
        first = [ctypes.string_at(_libc.readdir(stream) + 19) for _ in range(100)]
        place = _libc.telldir(stream)
        after = rest()
        _libc.seekdir(stream, place)
        again = rest()
        put(f"{d}/late")
        _libc.rewinddir(stream)
        anew = rest()
    finally:
        _libc.closedir(stream)
    assert again == after
    assert len({*first, *after}) == 302
    assert set(anew) == {*first, *after, b"late"}


# -- times ------------------------------------------------------------------------------------------------------------


@case
def time_of_birth_stays(d: str) -> None:
    put(f"{d}/f", b"x")
    born = birth(f"{d}/f")
    put(f"{d}/f", b"yy")
    os.chmod(f"{d}/f", 0o600)
    os.utime(f"{d}/f", (1, 1))
    os.rename(f"{d}/f", f"{d}/g")
    assert birth(f"{d}/g") == born
    assert born[0] > 1_000_000_000


@case
def special_times(d: str) -> None:
    put(f"{d}/f")
    os.utime(f"{d}/f", ns=(1_000_000_001, 2_000_000_002))
    utimens(f"{d}/f", (0, UTIME_OMIT), (5, 6))
    st = os.stat(f"{d}/f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (1_000_000_001, 5_000_000_006)
    utimens(f"{d}/f", (0, UTIME_NOW), (0, UTIME_OMIT))
    st = os.stat(f"{d}/f")
    assert (st.st_atime > 1e9, st.st_mtime_ns) == (True, 5_000_000_006)
    utimens(f"{d}/f", (7, 8), (0, UTIME_NOW))
    st = os.stat(f"{d}/f")
    assert (st.st_atime_ns, st.st_mtime > 1e9) == (7_000_000_008, True)
    utimens(f"{d}/f", (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert os.stat(f"{d}/f").st_atime_ns == 7_000_000_008


@case
def times_before_the_epoch(d: str) -> None:
    put(f"{d}/f")
    os.utime(f"{d}/f", ns=(-1, -1_500_000_000))
    st = os.stat(f"{d}/f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (-1, -1_500_000_000)


@case
def now_is_the_filesystems_now(d: str) -> None:
    for i in range(20):
        os.close(os.open(f"{d}/a{i}", os.O_CREAT | os.O_WRONLY))
        os.utime(f"{d}/a{i}")
        os.close(os.open(f"{d}/b{i}", os.O_CREAT | os.O_WRONLY))
        assert os.stat(f"{d}/a{i}").st_mtime_ns <= os.stat(f"{d}/b{i}").st_mtime_ns


@case
def mapped_writes_change_times(d: str) -> None:
    """Within a second or two: a mount that passes mappings by may not know at once."""
    put(f"{d}/f", bytes(2 * BLOCK))

    def noticed() -> bool:
        return os.stat(f"{d}/f").st_mtime > 1e9

    with open(f"{d}/f", "r+b") as f, mmap.mmap(f.fileno(), 2 * BLOCK) as m:
        for _ in range(2):
            os.utime(f"{d}/f", (1, 1))
            assert not noticed()
            m[:4] = b"mmap"
            m.flush()
            eventually(noticed, 5)
            assert os.pread(f.fileno(), 5, 0) == b"mmap\0"
        os.utime(f"{d}/f", (1, 1))
        m[:4] = b"last"
    eventually(noticed, 5)
    assert get(f"{d}/f")[:5] == b"last\0"


@case
def mapped_writes_after_the_close_change_times(d: str) -> None:
    put(f"{d}/f", bytes(BLOCK))
    fd = os.open(f"{d}/f", os.O_RDWR)
    address = _libc.mmap(None, BLOCK, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    try:
        os.utime(f"{d}/f", (1, 1))
        ctypes.memmove(address, b"late", 4)
        _check(_libc.msync(address, BLOCK, 4), "msync")
        eventually(lambda: os.stat(f"{d}/f").st_mtime > 1e9, 5)
    finally:
        _libc.munmap(address, BLOCK)
    assert get(f"{d}/f")[:5] == b"late\0"


@case
def mappings_see_writes(d: str) -> None:
    put(f"{d}/f", bytes(BLOCK))
    with open(f"{d}/f", "r+b") as f, mmap.mmap(f.fileno(), BLOCK, prot=mmap.PROT_READ) as m:
        assert m[:4] == bytes(4)
        os.pwrite(f.fileno(), b"seen", 0)
        assert m[:4] == b"seen"
        with open(f"{d}/f", "r+b") as other:
            os.pwrite(other.fileno(), b"also", 0)
        assert m[:4] == b"also"


@case
def changes_of_an_inode_change_its_ctime(d: str) -> None:
    put(f"{d}/f", b"x")
    os.mkdir(f"{d}/sub")
    changes = {
        "chmod": lambda: os.chmod(f"{d}/f", 0o640),
        "chown": lambda: os.chown(f"{d}/f", -1, os.getegid()),
        "link": lambda: os.link(f"{d}/f", f"{d}/g"),
        "unlink": lambda: os.unlink(f"{d}/g"),
        "rename": lambda: os.rename(f"{d}/f", f"{d}/sub/f") or os.rename(f"{d}/sub/f", f"{d}/f"),
        "setxattr": lambda: os.setxattr(f"{d}/f", "user.a", b"1"),
        "removexattr": lambda: os.removexattr(f"{d}/f", "user.a"),
        "truncate": lambda: os.truncate(f"{d}/f", 5),
        "write": lambda: put(f"{d}/f", b"y"),
        "utime": lambda: os.utime(f"{d}/f", (1, 1)),
    }
    for name, change in changes.items():
        before = os.stat(f"{d}/f").st_ctime_ns
        tries = 0
        while os.stat(f"{d}/f").st_ctime_ns == before and tries < 20:  # the clock of timestamps ticks in milliseconds
            if tries and name in {"link", "unlink", "removexattr"}:
                changes[{"link": "unlink", "unlink": "link", "removexattr": "setxattr"}[name]]()
            threading.Event().wait(0.002)
            change()
            tries += 1
        assert os.stat(f"{d}/f").st_ctime_ns > before, name


# -- extended attributes ----------------------------------------------------------------------------------------------


@case
def xattrs_are_created_or_replaced(d: str) -> None:
    put(f"{d}/f")
    with fails(errno.ENODATA):
        os.setxattr(f"{d}/f", "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(f"{d}/f", "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(f"{d}/f", "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(f"{d}/f", "user.a", b"\0three\0", os.XATTR_REPLACE)
    assert os.getxattr(f"{d}/f", "user.a") == b"\0three\0"


@case
def xattr_sizes(d: str) -> None:
    put(f"{d}/f")
    os.setxattr(f"{d}/f", "user.a", b"x" * 1000)
    path, room = f"{d}/f".encode(), ctypes.create_string_buffer(70_000)
    assert _libc.getxattr(path, b"user.a", None, 0) == 1000
    assert _libc.getxattr(path, b"user.a", room, 1000) == 1000
    assert _libc.getxattr(path, b"user.a", room, 70_000) == 1000
    with fails(errno.ERANGE):
        _check(_libc.getxattr(path, b"user.a", room, 999), "getxattr")
    names = _libc.listxattr(path, None, 0)
    assert _libc.listxattr(path, room, names) == names
    with fails(errno.ERANGE):
        _check(_libc.listxattr(path, room, names - 1), "listxattr")
    with fails(errno.E2BIG):
        os.setxattr(f"{d}/f", "user.a", bytes(65_537))
    with fails(errno.ERANGE):
        os.setxattr(f"{d}/f", "user." + "n" * 251, b"")
    os.setxattr(f"{d}/f", "user." + "n" * 250, b"long")
    assert os.getxattr(f"{d}/f", "user." + "n" * 250) == b"long"


@case
def xattrs_that_cannot_be(d: str) -> None:
    put(f"{d}/f")
    os.symlink("f", f"{d}/l")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(f"{d}/f", "nospace.a", b"1")
    with fails(errno.EPERM):
        os.setxattr(f"{d}/l", "user.a", b"1", follow_symlinks=False)
    with fails(errno.ENOENT):
        os.getxattr(f"{d}/none", "user.a")
    os.mkdir(f"{d}/d")
    os.setxattr(f"{d}/d", "user.a", b"1")
    assert "user.a" in os.listxattr(f"{d}/d")


# -- many -------------------------------------------------------------------------------------------------------------


@root_case
def everything_stays_reachable(d: str) -> None:
    """More inodes than a server has descriptors for, open, deleted and moved, while the kernel forgets what it may."""
    held: dict[int, int] = {}
    for i in range(300):
        os.makedirs(f"{d}/{i % 7}", exist_ok=True)
        put(f"{d}/{i % 7}/{i}", b"%d" % i)
        if i % 3 == 0:
            held[i] = os.open(f"{d}/{i % 7}/{i}", os.O_RDWR)
            if i % 2:
                os.unlink(f"{d}/{i % 7}/{i}")
    try:
        for turn in range(3):
            for k in range(7):
                os.rename(f"{d}/{k}" if turn == 0 else f"{d}/moved{turn - 1}-{k}", f"{d}/moved{turn}-{k}")
            with open("/proc/sys/vm/drop_caches", "w") as f:
                f.write("2")
            for i in range(300):
                if i in held:
                    assert os.pread(held[i], 10, 0) == b"%d" % i
                    assert os.fstat(held[i]).st_nlink == (0 if i % 2 else 1)
                    os.fchmod(held[i], 0o600 + turn)
                if i not in held or not i % 2:
                    assert get(f"{d}/moved{turn}-{i % 7}/{i}") == b"%d" % i
    finally:
        for fd in held.values():
            os.close(fd)
