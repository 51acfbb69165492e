"""What a POSIX filesystem must do, as a table of named functions that take an empty directory.

Run on a bare directory, to prove the case, and on mounts. ``CASES`` maps names to functions; ``ROOT_CASES`` need root.
Modelled on go-fuse's posixtest. A case leaves its directory as it likes; the caller removes it.
"""

# ruff: noqa: S103  # permissive modes are what the cases are about
from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator

Case = Callable[[str], None]
CASES: dict[str, Case] = {}
ROOT_CASES: dict[str, Case] = {}

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):  # noqa: N818  # not an error: the case cannot be told
    """What the case needs is not to be had here."""


def case(function: Case) -> Case:
    """Enter *function* in the table."""
    CASES[function.__name__] = function
    return function


def root_case(function: Case) -> Case:
    """Enter *function* in the table of cases for root."""
    ROOT_CASES[function.__name__] = function
    return function


@contextlib.contextmanager
def fails(number: int) -> Iterator[None]:
    """What is in it must raise ``OSError`` of errno *number*."""
    found: int | None = 0
    try:
        yield
    except OSError as e:
        found = e.errno
    assert found == number, f"{errno.errorcode.get(found or 0, 'no error')}, not {errno.errorcode[number]}"


def put(path: str, data: bytes = b"") -> str:
    """Write a file."""
    with open(path, "wb") as f:
        f.write(data)
    return path


def get(path: str) -> bytes:
    """Read a file."""
    with open(path, "rb") as f:
        return f.read()


def rename2(old: str, new: str, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(-100, old.encode(), -100, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@case
def write_then_read(d: str) -> None:
    data = os.urandom(300_000)
    put(f"{d}/f", data)
    assert get(f"{d}/f") == data
    assert os.stat(f"{d}/f").st_size == len(data)


@case
def append_goes_to_the_end(d: str) -> None:
    put(f"{d}/f", b"one")
    with open(f"{d}/f", "ab") as a, open(f"{d}/f", "ab") as b:
        for f in (a, b, a):
            f.write(b"-two")
            f.flush()
    assert get(f"{d}/f") == b"one-two-two-two"


@case
def truncate_both_ways(d: str) -> None:
    put(f"{d}/f", b"x" * 10_000)
    os.truncate(f"{d}/f", 5)
    os.truncate(f"{d}/f", 9000)
    assert get(f"{d}/f") == b"x" * 5 + bytes(8995)


@case
def truncate_of_an_open_file(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.write(b"hello world")
        f.flush()
        os.ftruncate(f.fileno(), 5)
        assert os.fstat(f.fileno()).st_size == 5
    assert get(f"{d}/f") == b"hello"


@case
def truncate_on_open(d: str) -> None:
    put(f"{d}/f", b"long content")
    put(f"{d}/f", b"new")
    assert get(f"{d}/f") == b"new"


@case
def sparse_file_reads_zeros(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.seek(1 << 24)
        f.write(b"end")
        f.flush()
        assert os.pread(f.fileno(), 16, 1 << 20) == bytes(16)
    assert os.stat(f"{d}/f").st_blocks * 512 < 1 << 20


@case
def exclusive_create(d: str) -> None:
    put(f"{d}/f")
    with fails(errno.EEXIST):
        os.open(f"{d}/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


@case
def missing_name(d: str) -> None:
    with fails(errno.ENOENT):
        os.stat(f"{d}/none")
    put(f"{d}/none")
    assert os.stat(f"{d}/none").st_size == 0


@case
def names_of_255_bytes(d: str) -> None:
    put(f"{d}/{'n' * 255}")
    assert os.listdir(d) == ["n" * 255]
    with fails(errno.ENAMETOOLONG):
        put(f"{d}/{'n' * 256}")


@case
def names_are_bytes(d: str) -> None:
    name = os.fsencode(d) + b"/\xff\xfe \n'\""
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    assert os.listdir(os.fsencode(d)) == [b"\xff\xfe \n'\""]


@case
def directories_nest(d: str) -> None:
    os.makedirs(f"{d}/a/b/c")
    put(f"{d}/a/b/c/f", b"deep")
    assert get(f"{d}/a/b/c/f") == b"deep"
    assert os.stat(f"{d}/a/b/c/../../..").st_ino == os.stat(d).st_ino


@case
def rmdir_wants_an_empty_directory(d: str) -> None:
    os.mkdir(f"{d}/a")
    put(f"{d}/a/f")
    with fails(errno.ENOTEMPTY):
        os.rmdir(f"{d}/a")
    os.unlink(f"{d}/a/f")
    os.rmdir(f"{d}/a")
    with fails(errno.ENOENT):
        os.stat(f"{d}/a")


@case
def rmdir_of_a_file_and_unlink_of_a_directory(d: str) -> None:
    put(f"{d}/f")
    os.mkdir(f"{d}/a")
    with fails(errno.ENOTDIR):
        os.rmdir(f"{d}/f")
    with fails(errno.EISDIR):
        os.unlink(f"{d}/a")


@case
def file_as_a_directory(d: str) -> None:
    put(f"{d}/f")
    with fails(errno.ENOTDIR):
        os.stat(f"{d}/f/x")
    with fails(errno.ENOTDIR):
        put(f"{d}/f/x")


@case
def symlinks_keep_their_target(d: str) -> None:
    for n in (1, 59, 60, 500, 4095):
        os.symlink("t" * n, f"{d}/l{n}")
        assert os.readlink(f"{d}/l{n}") == "t" * n
        assert os.lstat(f"{d}/l{n}").st_size == n


@case
def symlinks_are_followed(d: str) -> None:
    put(f"{d}/f", b"data")
    os.symlink("f", f"{d}/l")
    assert get(f"{d}/l") == b"data"
    os.symlink("m", f"{d}/m")
    with fails(errno.ELOOP):
        os.stat(f"{d}/m")
    with fails(errno.EINVAL):
        os.readlink(f"{d}/f")


@case
def times_of_a_symlink(d: str) -> None:
    os.symlink("nowhere", f"{d}/l")
    os.utime(f"{d}/l", ns=(5, 1_000_000_007), follow_symlinks=False)
    assert os.lstat(f"{d}/l").st_mtime_ns == 1_000_000_007


@case
def hard_links_are_one_inode(d: str) -> None:
    put(f"{d}/f", b"one")
    os.link(f"{d}/f", f"{d}/g")
    put(f"{d}/g", b"two!")
    a, b = os.stat(f"{d}/f"), os.stat(f"{d}/g")
    assert (a.st_ino, a.st_nlink, a.st_size) == (b.st_ino, 2, 4)
    os.unlink(f"{d}/f")
    assert os.stat(f"{d}/g").st_nlink == 1
    assert get(f"{d}/g") == b"two!"


@case
def hard_link_over_a_name(d: str) -> None:
    put(f"{d}/f")
    put(f"{d}/g")
    with fails(errno.EEXIST):
        os.link(f"{d}/f", f"{d}/g")


@case
def hard_link_of_a_symlink(d: str) -> None:
    os.symlink("f", f"{d}/l")
    os.link(f"{d}/l", f"{d}/m", follow_symlinks=False)
    assert os.readlink(f"{d}/m") == "f"


@case
def rename_replaces(d: str) -> None:
    put(f"{d}/a", b"a")
    put(f"{d}/b", b"b")
    inode = os.stat(f"{d}/a").st_ino
    os.rename(f"{d}/a", f"{d}/b")
    assert os.listdir(d) == ["b"]
    assert get(f"{d}/b") == b"a"
    assert os.stat(f"{d}/b").st_ino == inode


@case
def rename_of_directories(d: str) -> None:
    os.makedirs(f"{d}/a/sub")
    os.mkdir(f"{d}/b")
    put(f"{d}/a/sub/f", b"x")
    os.rename(f"{d}/a", f"{d}/b")
    assert get(f"{d}/b/sub/f") == b"x"
    os.mkdir(f"{d}/c")
    with fails(errno.ENOTEMPTY):
        os.rename(f"{d}/c", f"{d}/b")
    with fails(errno.EINVAL):
        os.rename(f"{d}/b", f"{d}/b/sub/in")
    put(f"{d}/f")
    with fails(errno.EISDIR):
        os.rename(f"{d}/f", f"{d}/c")
    with fails(errno.ENOTDIR):
        os.rename(f"{d}/c", f"{d}/f")


@case
def rename_to_another_directory(d: str) -> None:
    os.makedirs(f"{d}/a")
    os.makedirs(f"{d}/b")
    put(f"{d}/a/f", b"x")
    os.rename(f"{d}/a/f", f"{d}/b/g")
    assert os.listdir(f"{d}/a") == []
    assert get(f"{d}/b/g") == b"x"


@case
def rename_of_two_names_of_one_inode(d: str) -> None:
    put(f"{d}/a", b"x")
    os.link(f"{d}/a", f"{d}/b")
    os.rename(f"{d}/a", f"{d}/b")
    assert sorted(os.listdir(d)) == ["a", "b"]


@case
def rename_noreplace(d: str) -> None:
    put(f"{d}/a", b"a")
    put(f"{d}/b", b"b")
    with fails(errno.EEXIST):
        rename2(f"{d}/a", f"{d}/b", 1)
    rename2(f"{d}/a", f"{d}/c", 1)
    assert get(f"{d}/c") == b"a"


@case
def rename_exchange(d: str) -> None:
    put(f"{d}/a", b"a")
    os.mkdir(f"{d}/b")
    put(f"{d}/b/f", b"f")
    rename2(f"{d}/a", f"{d}/b", 2)
    assert get(f"{d}/b") == b"a"
    assert get(f"{d}/a/f") == b"f"


@case
def rename_of_an_open_file(d: str) -> None:
    with open(f"{d}/a", "w+b") as f:
        os.rename(f"{d}/a", f"{d}/b")
        f.write(b"after")
    assert get(f"{d}/b") == b"after"


@case
def unlinked_file_stays_usable(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.write(b"before ")
        f.flush()
        os.unlink(f"{d}/f")
        f.write(b"after")
        f.flush()
        assert os.pread(f.fileno(), 100, 0) == b"before after"
        assert os.fstat(f.fileno()).st_nlink == 0
        os.fchmod(f.fileno(), 0o600)
        assert stat.S_IMODE(os.fstat(f.fileno()).st_mode) == 0o600
    assert os.listdir(d) == []


@case
def replaced_file_stays_usable(d: str) -> None:
    put(f"{d}/new", b"new")
    with open(put(f"{d}/f", b"old"), "rb") as f:
        os.rename(f"{d}/new", f"{d}/f")
        assert f.read() == b"old"
    assert get(f"{d}/f") == b"new"


@case
def removed_directory_is_empty(d: str) -> None:
    os.mkdir(f"{d}/a")
    fd = os.open(f"{d}/a", os.O_RDONLY)
    try:
        os.rmdir(f"{d}/a")
        assert os.listdir(fd) == []
        with fails(errno.ENOENT):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)


@case
def listing_of_many(d: str) -> None:
    names = {f"file-{i:04}-{'x' * (i % 50)}" for i in range(1500)}
    for name in names:
        put(f"{d}/{name}")
    found = os.listdir(d)
    assert len(found) == len(names)
    assert set(found) == names


@case
def listing_while_deleting(d: str) -> None:
    for i in range(500):
        put(f"{d}/{i}")
    with os.scandir(d) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(d) == []


@case
def listing_has_types_and_inodes(d: str) -> None:
    put(f"{d}/f")
    os.mkdir(f"{d}/d")
    os.symlink("x", f"{d}/l")
    os.mkfifo(f"{d}/p")
    with os.scandir(d) as entries:
        for e in entries:
            st = os.lstat(e.path)
            assert e.inode() == st.st_ino
            assert e.is_dir(follow_symlinks=False) == stat.S_ISDIR(st.st_mode)
            assert e.is_file(follow_symlinks=False) == stat.S_ISREG(st.st_mode)
            assert e.is_symlink() == stat.S_ISLNK(st.st_mode)


@case
def modes(d: str) -> None:
    put(f"{d}/f")
    for mode in (0, 0o777, 0o1644, 0o4755, 0o6711):
        os.chmod(f"{d}/f", mode)
        assert stat.S_IMODE(os.stat(f"{d}/f").st_mode) == mode


@case
def umask_is_applied(d: str) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(f"{d}/f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(f"{d}/d", 0o777)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(f"{d}/f").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(f"{d}/d").st_mode) == 0o750


@case
def times_in_nanoseconds(d: str) -> None:
    put(f"{d}/f")
    os.utime(f"{d}/f", ns=(1_234_567_891, 9_876_543_210_123_456_789 // 10))
    st = os.stat(f"{d}/f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (1_234_567_891, 987_654_321_012_345_678)


@case
def write_changes_mtime(d: str) -> None:
    put(f"{d}/f", b"x")
    os.utime(f"{d}/f", (1, 1))
    put(f"{d}/f", b"yy")
    assert os.stat(f"{d}/f").st_mtime > 1e9


@case
def names_change_directory_times(d: str) -> None:
    os.mkdir(f"{d}/a")
    os.utime(f"{d}/a", (1, 1))
    put(f"{d}/a/f")
    assert os.stat(f"{d}/a").st_mtime > 1e9


@case
def link_counts_of_directories_change_together(d: str) -> None:
    before = os.stat(d).st_nlink
    os.mkdir(f"{d}/a")
    now = os.stat(d).st_nlink
    os.rmdir(f"{d}/a")
    assert now >= before
    assert os.stat(d).st_nlink == before


@case
def fifos_carry_data(d: str) -> None:
    os.mkfifo(f"{d}/p", 0o600)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(get(f"{d}/p")))
    reader.start()
    put(f"{d}/p", b"through")
    reader.join(10)
    assert got == [b"through"]


@case
def sockets_can_be_bound(d: str) -> None:
    fd = os.open(d, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.bind(f"/proc/self/fd/{fd}/s")
        finally:
            os.close(fd)
        assert stat.S_ISSOCK(os.stat(f"{d}/s").st_mode)


@case
def user_xattrs(d: str) -> None:
    put(f"{d}/f")
    os.setxattr(f"{d}/f", "user.a", b"1")
    os.setxattr(f"{d}/f", "user.b", b"")
    assert set(os.listxattr(f"{d}/f")) >= {"user.a", "user.b"}
    assert os.getxattr(f"{d}/f", "user.a") == b"1"
    os.removexattr(f"{d}/f", "user.a")
    with fails(errno.ENODATA):
        os.getxattr(f"{d}/f", "user.a")
    with fails(errno.ENODATA):
        os.removexattr(f"{d}/f", "user.a")


@case
def shared_mapping_is_written(d: str) -> None:
    with open(f"{d}/f", "w+b") as f:
        f.truncate(8192)
        with mmap.mmap(f.fileno(), 8192) as m:
            m[4096:4101] = b"mmap!"
            m.flush()
    assert get(f"{d}/f")[4096:4101] == b"mmap!"


@case
def locks_between_descriptions(d: str) -> None:
    with open(f"{d}/f", "w") as a, open(f"{d}/f", "w") as b:
        fcntl.flock(a, fcntl.LOCK_EX)
        with fails(errno.EAGAIN):
            fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)


@case
def sync_of_files_and_directories(d: str) -> None:
    with open(f"{d}/f", "wb") as f:
        f.write(b"x")
        f.flush()
        os.fsync(f.fileno())
        os.fdatasync(f.fileno())
    fd = os.open(d, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


@case
def read_only_descriptor_refuses_writes(d: str) -> None:
    put(f"{d}/f")
    fd = os.open(f"{d}/f", os.O_RDONLY)
    try:
        with fails(errno.EBADF):
            os.write(fd, b"x")
        with fails(errno.EINVAL):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


@case
def concurrent_creates_are_all_there(d: str) -> None:
    def work(n: int) -> None:
        for i in range(50):
            put(f"{d}/{n}-{i}", b"x")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(os.listdir(d)) == 400


@case
def concurrent_exclusive_creates_have_one_winner(d: str) -> None:
    won: list[int] = []

    def work(n: int) -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(f"{d}/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            won.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(won) == 1


def run_as(uid: int, gid: int, work: Callable[[], None], groups: list[int] | None = None) -> None:
    """Run *work* in a child as somebody else; its failure is ours."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups(groups or [])
            os.setgid(gid)
            os.setuid(uid)
            work()
            code = 0
        except BaseException as e:  # noqa: BLE001  # told by the status and standard error
            os.write(2, f"child: {e!r}\n".encode())
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@root_case
def owner_is_the_creator(d: str) -> None:
    os.chmod(d, 0o777)

    def make() -> None:
        put(f"{d}/f")
        os.mkdir(f"{d}/d")
        os.symlink("x", f"{d}/l")
        os.mkfifo(f"{d}/p")

    run_as(1234, 5678, make)
    for name in "fdlp":
        st = os.lstat(f"{d}/{name}")
        assert (st.st_uid, st.st_gid) == (1234, 5678)


@root_case
def setgid_directory_gives_its_group(d: str) -> None:
    os.chown(d, 0, 4321)
    os.chmod(d, 0o2777)

    def make() -> None:
        put(f"{d}/f")
        os.mkdir(f"{d}/d")

    run_as(1234, 5678, make)
    assert os.stat(f"{d}/f").st_gid == 4321
    assert os.stat(f"{d}/d").st_gid == 4321
    assert os.stat(f"{d}/d").st_mode & stat.S_ISGID


@root_case
def setgid_bit_wants_membership(d: str) -> None:
    os.chown(d, 0, 4321)
    os.chmod(d, 0o2777)

    def make(name: str) -> Callable[[], None]:
        return lambda: os.close(os.open(f"{d}/{name}", os.O_CREAT | os.O_WRONLY, 0o2755))

    run_as(1234, 5678, make("other"))
    run_as(1234, 5678, make("member"), [4321])
    assert not os.stat(f"{d}/other").st_mode & stat.S_ISGID
    assert os.stat(f"{d}/member").st_mode & stat.S_ISGID


@root_case
def permissions_are_checked(d: str) -> None:
    put(f"{d}/f", b"secret")
    os.chmod(f"{d}/f", 0o600)

    def work() -> None:
        for act in (
            lambda: get(f"{d}/f"),
            lambda: put(f"{d}/new"),
            lambda: os.unlink(f"{d}/f"),
        ):
            with fails(errno.EACCES):
                act()
        with fails(errno.EPERM):
            os.chmod(f"{d}/f", 0o777)

    os.chmod(d, 0o755)
    run_as(1234, 5678, work)


@root_case
def sticky_directory(d: str) -> None:
    os.chmod(d, 0o1777)
    put(f"{d}/f")

    def work() -> None:
        with fails(errno.EPERM):
            os.unlink(f"{d}/f")

    run_as(1234, 5678, work)


@root_case
def write_by_another_clears_setuid(d: str) -> None:
    os.chmod(d, 0o755)
    for name in ("write", "truncate", "open"):
        put(f"{d}/{name}", b"x")
        os.chmod(f"{d}/{name}", 0o6777)

    def work() -> None:
        fd = os.open(f"{d}/write", os.O_WRONLY)
        os.write(fd, b"y")
        os.close(fd)
        os.truncate(f"{d}/truncate", 0)
        put(f"{d}/open")

    run_as(1234, 5678, work)
    for name in ("write", "truncate", "open"):
        assert stat.S_IMODE(os.stat(f"{d}/{name}").st_mode) == 0o777, name


@root_case
def chown_clears_setuid(d: str) -> None:
    put(f"{d}/f")
    os.chown(f"{d}/f", 1234, 5678)
    os.chmod(f"{d}/f", 0o6755)
    os.chmod(d, 0o755)
    run_as(1234, 5678, lambda: os.chown(f"{d}/f", 1234, 5678))
    assert stat.S_IMODE(os.stat(f"{d}/f").st_mode) == 0o755


@root_case
def chown_of_a_symlink(d: str) -> None:
    put(f"{d}/f")
    os.symlink("f", f"{d}/l")
    os.lchown(f"{d}/l", 7, 8)
    assert os.lstat(f"{d}/l").st_uid == 7
    assert os.stat(f"{d}/f").st_uid == os.getuid()


@root_case
def trusted_xattrs(d: str) -> None:
    put(f"{d}/f")
    os.symlink("f", f"{d}/l")
    os.setxattr(f"{d}/f", "trusted.t", b"file")
    os.setxattr(f"{d}/l", "trusted.t", b"link", follow_symlinks=False)
    assert os.getxattr(f"{d}/f", "trusted.t") == b"file"
    assert os.getxattr(f"{d}/l", "trusted.t", follow_symlinks=False) == b"link"
