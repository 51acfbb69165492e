"""Who may do what, and what a change takes away: set-id bits, file capabilities, ACLs, idmapped mounts."""

# ruff: noqa: S103  # permissive modes are what the cases are about
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fs.linux_cases import BLOCK, UTIME_NOW, UTIME_OMIT, fallocate, link_fd, utimens
from tests.fs.posix_cases import Refused, case, fails, get, put, root_case, run_as
from tests.support import eventually

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
"""Tags of linux/posix_acl_xattr.h."""
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""security.capability of a file: cap_net_bind_service, effective."""
_NO_ID = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL attribute of *entries*: tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def minimal(user: int, group: int, other: int, *more: tuple[int, int, int]) -> bytes:
    """An ACL attribute with the three entries that all have, and *more*."""
    entries = [(USER_OBJ, user, _NO_ID), (GROUP_OBJ, group, _NO_ID), (OTHER, other, _NO_ID), *more]
    return acl(*sorted(entries, key=lambda e: (e[0], e[2])))


def entries(path: str, name: str = ACCESS) -> set[tuple[int, int, int]]:
    """The entries of an ACL attribute."""
    value = os.getxattr(path, name)
    return set(struct.iter_unpack("<HHI", value[4:]))


def _mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@contextlib.contextmanager
def _umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


# -- set-id bits and capabilities -------------------------------------------------------------------------------------


def _changes(path: str) -> dict[str, Callable[[int], object]]:
    """Changes of a file's content, given a descriptor."""
    source = f"{path}.source"
    return {
        "write": lambda fd: os.pwrite(fd, b"y", 1),
        "ftruncate": lambda fd: os.ftruncate(fd, 2),
        "truncate": lambda _fd: os.truncate(path, 2),
        "open": lambda _fd: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        "copy": lambda fd: os.copy_file_range(os.open(source, os.O_RDONLY), fd, 3, 0, 0),
        "sendfile": lambda fd: os.sendfile(fd, os.open(source, os.O_RDONLY), 0, 3),
    }


def _changed(d: str, user: int, *, before: bool) -> dict[str, int]:
    """Modes after *user* changed files of mode 06777, which they had *before* they were opened or got afterwards."""
    path = f"{d}/f"
    os.chmod(d, 0o777)
    put(f"{path}.source", b"abc")
    found = {}
    for name, change in _changes(path).items():
        put(path, b"xxxx")
        os.chown(path, user, user)
        os.chmod(path, 0o6777 if before else 0o777)

        def work(change: Callable[[int], object] = change) -> None:
            fd = os.open(path, os.O_RDWR)
            if not before:
                os.pwrite(fd, b"w", 0)
                os.chmod(path, 0o6777)
                assert _mode(path) == 0o6777
            change(fd)
            os.close(fd)

        run_as(user, user, work)
        found[name] = _mode(path)
        os.unlink(path)
    return found


@root_case
def changes_by_others_clear_set_id_bits(d: str) -> None:
    found = _changed(d, 1234, before=True)
    assert found == dict.fromkeys(found, 0o777), found


@root_case
def changes_by_root_keep_set_id_bits(d: str) -> None:
    found = _changed(d, 0, before=True)
    assert found == dict.fromkeys(found, 0o6777), found


@root_case
def changes_by_others_clear_set_id_bits_that_come_later(d: str) -> None:
    found = _changed(d, 1234, before=False)
    assert found == dict.fromkeys(found, 0o777), found


@root_case
def changes_by_root_keep_set_id_bits_that_come_later(d: str) -> None:
    found = _changed(d, 0, before=False)
    assert found == dict.fromkeys(found, 0o6777), found


@root_case
def allocation_by_others_clears_set_id_bits(d: str) -> None:
    os.chmod(d, 0o755)
    for user, mode in ((1234, 0o777), (0, 0o6777)):
        put(f"{d}/f", b"x")
        os.chown(f"{d}/f", user, user)
        os.chmod(f"{d}/f", 0o6777)

        def work() -> None:
            fd = os.open(f"{d}/f", os.O_RDWR)
            fallocate(fd, 0, 0, BLOCK)
            os.close(fd)

        run_as(user, user, work)
        assert _mode(f"{d}/f") == mode, user


@root_case
def setgid_without_execution_goes_with_a_strangers_write(d: str) -> None:
    os.chmod(d, 0o755)
    put(f"{d}/f", b"x")
    os.chmod(f"{d}/f", 0o2766)
    run_as(1234, 5678, lambda: put(f"{d}/f", b"y"))
    assert _mode(f"{d}/f") == 0o766


@root_case
def capabilities_end_with_a_change(d: str) -> None:
    put(f"{d}/f.source", b"abc")
    for name, change in _changes(f"{d}/f").items():
        put(f"{d}/f", b"xxxx")
        fd = os.open(f"{d}/f", os.O_RDWR)
        os.pwrite(fd, b"w", 0)
        os.setxattr(f"{d}/f", "security.capability", CAPABILITY)
        assert os.getxattr(f"{d}/f", "security.capability") == CAPABILITY
        change(fd)
        with fails(errno.ENODATA):
            os.getxattr(f"{d}/f", "security.capability")
        os.close(fd)
        assert get(f"{d}/f") != b"xxxx", name
        os.unlink(f"{d}/f")


@root_case
def change_of_owner_takes_privileges(d: str) -> None:
    put(f"{d}/f")
    os.mkdir(f"{d}/sub")
    for path in ("f", "sub"):
        os.chmod(f"{d}/{path}", 0o6755)
    os.setxattr(f"{d}/f", "security.capability", CAPABILITY)
    for path in ("f", "sub"):
        os.chown(f"{d}/{path}", 1234, 5678)
    assert (_mode(f"{d}/f"), _mode(f"{d}/sub")) == (0o755, 0o6755)
    with fails(errno.ENODATA):
        os.getxattr(f"{d}/f", "security.capability")


@root_case
def change_of_owner_to_the_same_takes_privileges(d: str) -> None:
    os.chmod(d, 0o755)
    found = {}
    for uid, gid in ((1234, 5678), (1234, -1), (-1, 5678), (-1, -1)):
        put(f"{d}/f")
        os.chown(f"{d}/f", 1234, 5678)
        os.chmod(f"{d}/f", 0o6755)
        run_as(1234, 5678, lambda uid=uid, gid=gid: os.chown(f"{d}/f", uid, gid))
        found[uid, gid] = _mode(f"{d}/f")
        os.unlink(f"{d}/f")
    assert found == dict.fromkeys(found, 0o755), found


@root_case
def change_of_owner_to_the_same_is_a_change(d: str) -> None:
    os.chmod(d, 0o6755)
    before = os.stat(d).st_ctime_ns

    def changed() -> bool:
        os.chown(d, -1, -1)
        return os.stat(d).st_ctime_ns > before

    eventually(changed, 5)
    assert _mode(d) == 0o6755


@root_case
def change_of_owner_is_for_root(d: str) -> None:
    put(f"{d}/f")
    os.chmod(d, 0o755)
    os.chown(f"{d}/f", 1234, 5678)

    def work() -> None:
        os.chown(f"{d}/f", -1, 4321)
        os.chown(f"{d}/f", 1234, -1)
        for uid, gid in ((1235, -1), (-1, 9999)):
            with fails(errno.EPERM):
                os.chown(f"{d}/f", uid, gid)

    run_as(1234, 5678, work, [4321])
    assert os.stat(f"{d}/f").st_gid == 4321


@root_case
def setgid_of_a_foreign_group_is_not_given(d: str) -> None:
    put(f"{d}/f")
    os.chmod(d, 0o755)
    os.chown(f"{d}/f", 1234, 4321)
    run_as(1234, 5678, lambda: os.chmod(f"{d}/f", 0o2755))
    assert _mode(f"{d}/f") == 0o755
    run_as(1234, 5678, lambda: os.chmod(f"{d}/f", 0o2755), [4321])
    assert _mode(f"{d}/f") == 0o2755


@root_case
def times_are_set_by_the_owner(d: str) -> None:
    put(f"{d}/f")
    os.chmod(f"{d}/f", 0o666)
    os.chmod(d, 0o755)

    def work() -> None:
        utimens(f"{d}/f", (0, UTIME_NOW), (0, UTIME_NOW))
        with fails(errno.EPERM):
            utimens(f"{d}/f", (1, 1), (1, 1))
        with fails(errno.EPERM):
            utimens(f"{d}/f", (0, UTIME_OMIT), (0, UTIME_NOW))

    run_as(1234, 5678, work)


# -- access control lists ---------------------------------------------------------------------------------------------


@case
def default_acl_takes_the_place_of_the_umask(d: str) -> None:
    os.setxattr(d, DEFAULT, minimal(7, 7, 5))
    with _umask(0o077):
        os.close(os.open(f"{d}/f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(f"{d}/sub", 0o777)
        os.mkfifo(f"{d}/p", 0o666)
    assert (_mode(f"{d}/f"), _mode(f"{d}/sub"), _mode(f"{d}/p")) == (0o664, 0o775, 0o664)
    os.removexattr(d, DEFAULT)
    with _umask(0o077):
        os.mkdir(f"{d}/later", 0o777)
    assert _mode(f"{d}/later") == 0o700


@case
def acls_are_inherited(d: str) -> None:
    given = minimal(7, 5, 0, (USER, 7, 1234), (GROUP, 4, 5678), (MASK, 7, _NO_ID))
    os.setxattr(d, DEFAULT, given)
    with _umask(0):
        os.mkdir(f"{d}/sub", 0o770)
        os.close(os.open(f"{d}/f", os.O_CREAT | os.O_WRONLY, 0o640))
    assert os.getxattr(f"{d}/sub", DEFAULT) == given
    assert entries(f"{d}/sub") >= {(USER, 7, 1234), (GROUP, 4, 5678), (MASK, 7, _NO_ID)}
    assert entries(f"{d}/f") >= {(USER, 7, 1234), (GROUP_OBJ, 5, _NO_ID), (MASK, 4, _NO_ID)}
    assert _mode(f"{d}/f") == 0o640
    with fails(errno.ENODATA):
        os.getxattr(f"{d}/f", DEFAULT)


@case
def chmod_changes_the_mask(d: str) -> None:
    put(f"{d}/f")
    os.setxattr(f"{d}/f", ACCESS, minimal(6, 4, 0, (USER, 6, 1234), (MASK, 6, _NO_ID)))
    assert _mode(f"{d}/f") == 0o660
    os.chmod(f"{d}/f", 0o604)
    assert entries(f"{d}/f") == {
        (USER_OBJ, 6, _NO_ID),
        (USER, 6, 1234),
        (GROUP_OBJ, 4, _NO_ID),
        (MASK, 0, _NO_ID),
        (OTHER, 4, _NO_ID),
    }
    os.removexattr(f"{d}/f", ACCESS)
    with fails(errno.ENODATA):
        os.getxattr(f"{d}/f", ACCESS)


@case
def acl_that_is_a_mode(d: str) -> None:
    put(f"{d}/f")
    os.setxattr(f"{d}/f", ACCESS, minimal(6, 0, 4))
    assert _mode(f"{d}/f") == 0o604
    with fails(errno.ENODATA):
        os.getxattr(f"{d}/f", ACCESS)
    with fails(errno.EACCES):
        os.setxattr(f"{d}/f", DEFAULT, minimal(7, 7, 7))  # of directories only
    for wrong in (minimal(6, 4, 0, (USER, 6, 1234)), acl((USER_OBJ, 6, _NO_ID)), b"nonsense"):
        with fails(errno.EOPNOTSUPP if wrong == b"nonsense" else errno.EINVAL):
            os.setxattr(f"{d}/f", ACCESS, wrong)


@root_case
def acls_are_enforced(d: str) -> None:
    os.chmod(d, 0o755)
    put(f"{d}/f", b"secret")
    os.chmod(f"{d}/f", 0o600)
    os.setxattr(f"{d}/f", ACCESS, minimal(6, 0, 0, (USER, 4, 1234), (GROUP, 6, 5678), (MASK, 6, _NO_ID)))

    def reads() -> None:
        assert get(f"{d}/f") == b"secret"
        with fails(errno.EACCES):
            os.open(f"{d}/f", os.O_WRONLY)

    def nothing() -> None:
        with fails(errno.EACCES):
            get(f"{d}/f")

    run_as(1234, 1, reads)
    run_as(1235, 1, lambda: os.close(os.open(f"{d}/f", os.O_RDWR)), [5678])
    run_as(1235, 1, nothing)
    os.chmod(f"{d}/f", 0o600)
    run_as(1234, 1, nothing)


@root_case
def acl_by_a_stranger_to_the_group_clears_setgid(d: str) -> None:
    os.chmod(d, 0o755)
    given = minimal(7, 5, 5, (USER, 7, 1111), (MASK, 7, _NO_ID))
    found = {}
    for who, groups in ((1234, []), (1234, [4321]), (0, [])):
        put(f"{d}/f")
        os.chown(f"{d}/f", who, 4321)
        os.chmod(f"{d}/f", 0o2755)
        run_as(who, who, lambda: os.setxattr(f"{d}/f", ACCESS, given), groups)
        found[who, bool(groups)] = _mode(f"{d}/f")
        os.unlink(f"{d}/f")
    assert found == {(1234, False): 0o775, (1234, True): 0o2775, (0, False): 0o2775}


# -- idmapped mounts --------------------------------------------------------------------------------------------------

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_BASE = 100_000


@contextlib.contextmanager
def _user_namespace() -> Iterator[int]:
    """A descriptor of a user namespace whose ids 0 to 65535 are 100000 and so on here."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        ok = _libc.unshare(0x10000000) == 0  # CLONE_NEWUSER
        os.write(ready[1], b"y" if ok else b"n")
        os.read(go[0], 1)
        os._exit(0)
    try:
        if os.read(ready[0], 1) != b"y":
            raise Refused("no user namespaces here")
        for kind in ("uid", "gid"):
            Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {_BASE} 65536")
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (*ready, *go):
            os.close(end)


@contextlib.contextmanager
def _idmapped(d: str) -> Iterator[str]:
    """*d* mounted once more, where disk's id 0 is 100000."""
    with _user_namespace() as namespace, tempfile.TemporaryDirectory() as where:
        os.chmod(where, 0o755)
        tree = _libc.syscall(_OPEN_TREE, -100, d.encode(), 0x80000 | 1)  # OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE
        if tree < 0:
            raise OSError(ctypes.get_errno(), "open_tree")
        try:
            attributes = struct.pack("=QQQQ", 0x100000, 0, 0, namespace)  # MOUNT_ATTR_IDMAP
            if _libc.syscall(_MOUNT_SETATTR, tree, b"", 0x1000, attributes, ctypes.c_size_t(32)) != 0:
                raise Refused(f"no idmapped mounts of this filesystem: {os.strerror(ctypes.get_errno())}")
            if _libc.syscall(_MOVE_MOUNT, tree, b"", -100, where.encode(), 4) != 0:  # MOVE_MOUNT_F_EMPTY_PATH
                raise OSError(ctypes.get_errno(), "move_mount")
        finally:
            os.close(tree)
        try:
            yield where
        finally:
            _libc.umount2(where.encode(), 0)


@root_case
def idmapped_mounts(d: str) -> None:
    put(f"{d}/old", b"old")
    os.chown(f"{d}/old", 1000, 2000)
    os.chmod(d, 0o777)
    user, group = _BASE + 1000, _BASE + 2000
    with _idmapped(d) as mapped:
        st = os.stat(f"{mapped}/old")
        assert (st.st_uid, st.st_gid) == (user, group)

        def work() -> None:
            put(f"{mapped}/old", b"changed")
            put(f"{mapped}/f", b"new")
            os.mkdir(f"{mapped}/sub")
            os.symlink("f", f"{mapped}/l")
            os.mkfifo(f"{mapped}/p")
            os.link(f"{mapped}/f", f"{mapped}/g")
            os.rename(f"{mapped}/p", f"{mapped}/sub/p")
            os.chmod(f"{mapped}/old", 0o6711)
            os.utime(f"{mapped}/old", (1, 1))
            os.setxattr(f"{mapped}/f", "user.a", b"1")
            os.setxattr(f"{mapped}/f", ACCESS, minimal(6, 0, 0, (USER, 4, _BASE + 3000), (MASK, 6, _NO_ID)))
            fd = os.open(f"{mapped}/old", os.O_WRONLY)
            os.write(fd, b"w")
            os.close(fd)
            os.truncate(f"{mapped}/f", 2)
            os.unlink(f"{mapped}/g")
            assert get(f"{mapped}/f") == b"ne"
            assert sorted(os.listdir(mapped)) == ["f", "l", "old", "sub"]

        run_as(user, group, work)
        os.chown(f"{mapped}/l", _BASE + 7, _BASE + 8, follow_symlinks=False)
        assert (USER, 4, _BASE + 3000) in entries(f"{mapped}/f")
        with fails(errno.EOVERFLOW):
            put(f"{mapped}/by-nobody")
    for name in ("f", "sub", "sub/p"):
        st = os.lstat(f"{d}/{name}")
        assert (st.st_uid, st.st_gid) == (1000, 2000), name
    assert _mode(f"{d}/old") == 0o711
    assert (USER, 4, 3000) in entries(f"{d}/f")
    assert os.lstat(f"{d}/l").st_uid == 7


@root_case
def unnamed_files_on_idmapped_mounts(d: str) -> None:
    os.chmod(d, 0o777)
    with _idmapped(d) as mapped:

        def work() -> None:
            fd = os.open(mapped, os.O_TMPFILE | os.O_RDWR, 0o600)
            link_fd(fd, f"{mapped}/t")
            os.close(fd)

        run_as(_BASE + 1000, _BASE + 2000, work)
    st = os.stat(f"{d}/t")
    assert (st.st_uid, st.st_gid) == (1000, 2000)
