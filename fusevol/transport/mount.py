"""The mount table, and the few things done to it: bind, unmount, abort, and asking whether a mount still lives.

Nothing here looks *into* a mount except :func:`probe`, which does it in a child process: a task that waits for a FUSE
server that hangs cannot be killed, so no process that matters may ever be that task. Everything else is read from
``/proc/self/mountinfo`` (proc_pid_mountinfo(5)), which never asks the filesystem.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from struct import Struct
from typing import Final, Literal, NamedTuple

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_PER_MOUNT_FLAGS: Final = {
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
"""Options that belong to the mount and that a bind remount clears unless they are given again (mount(2))."""

FSTYPE: Final = "fuse.fusevol"
"""What the mount table calls a mount of ours."""
_AT_FDCWD: Final = -100
_STATX_FLAGS: Final = 0x100 | 0x800 | 0x4000
"""AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC"""
_STATX: Final = Struct("=8xQ40xQ72xII112x")  # of struct statx: stx_attributes stx_attributes_mask stx_dev_major _minor
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000

_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")

Liveness = Literal["alive", "dead", "hung", "absent"]

_libc = ctypes.CDLL(None, use_errno=True)
_stuck: list[subprocess.Popen[bytes]] = []
"""Probes that did not come back; collected when a later probe finds that they have."""


class MountInfo(NamedTuple):
    """One line of ``/proc/self/mountinfo``, escapes undone."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    """Which directory of the filesystem is mounted; not ``/`` for a bind mount of a part."""
    mountpoint: str
    options: tuple[str, ...]
    """Options of this mount (``ro``, ``nosuid``)."""
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def is_fuse(self) -> bool:
        """Whether a FUSE server is behind it."""
        return self.fstype in {"fuse", "fuseblk"} or self.fstype.startswith("fuse.")

    @property
    def read_only(self) -> bool:
        """Whether writing is refused here."""
        return "ro" in self.options or "ro" in self.super_options


class Root(NamedTuple):
    """The device of what is mounted somewhere; for FUSE, its minor number names the connection."""

    major: int
    minor: int


def mounts() -> list[MountInfo]:
    """All mounts of this mount namespace, in the order in which they were made."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def parse_mountinfo(text: bytes) -> list[MountInfo]:
    """What :func:`mounts` makes of the file's *text*. Raises ``ValueError`` for a line that is not one."""
    return [_parse(line) for line in text.splitlines()]


def _parse(line: bytes) -> MountInfo:
    fields = line.split(b" ")
    # a variable number of optional fields (propagation) ends with a single "-"
    fstype, source, super_options = fields[fields.index(b"-", 6) + 1 :][:3]
    major, minor = fields[2].split(b":")
    return MountInfo(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        major=int(major),
        minor=int(minor),
        root=_unescape(fields[3]),
        mountpoint=_unescape(fields[4]),
        options=tuple(os.fsdecode(fields[5]).split(",")),
        fstype=os.fsdecode(fstype),
        source=_unescape(source),
        super_options=tuple(os.fsdecode(super_options).split(",")),
    )


def _unescape(field: bytes) -> str:
    r"""Undo the kernel's ``\040`` for space, tab, newline, backslash and hash (``mangle`` in fs/proc_namespace.c)."""
    first, *rest = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest))


def root(path: str | Path) -> Root | None:
    """What is mounted at exactly *path*, if anything. As quick with a thousand mounts as with one, unlike the table.

    Symbolic links of the parent are followed, the last component is not. No filesystem is asked (AT_STATX_DONT_SYNC).
    """
    told = ctypes.create_string_buffer(_STATX.size)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _STATX_FLAGS, 0, told) != 0:
        if ctypes.get_errno() in {errno.ENOENT, errno.ENOTDIR}:
            return None
    else:
        attributes, known, major, minor = _STATX.unpack(told)
        if known & _STATX_ATTR_MOUNT_ROOT:
            return Root(major, minor) if attributes & _STATX_ATTR_MOUNT_ROOT else None
    # a kernel before 5.8, or an inode that cannot be looked at: the table knows
    found = _listed(path)
    return Root(found.major, found.minor) if found is not None else None


def find(path: str | Path) -> MountInfo | None:
    """The topmost mount at exactly *path* (made absolute, symbolic links of its parent resolved), if any.

    Reads the mount table when there is one: :func:`root` says less and takes less.
    """
    return _listed(path) if root(path) is not None else None


def _listed(path: str | Path) -> MountInfo | None:
    wanted = _where(path)
    return next((m for m in reversed(_about(wanted)) if m.mountpoint == wanted), None)


def _about(path: str) -> list[MountInfo]:
    """The mounts in whose line of the table the last component of *path* is, with all others at *path* and below it.

    Line by line, and only those are parsed: the table is long on a node with many volumes, and what each server takes
    from its heap to look into it stays that server's own memory.
    """
    end = os.fsencode(path).rpartition(b"/")[2]
    with open("/proc/self/mountinfo", "rb") as table:
        return [_parse(line.rstrip(b"\n")) for line in table if end in line or b"\\" in line]


def _where(path: str | Path) -> str:
    """How the mount table spells *path*. The last component is not looked at: it may be a mount that hangs."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name) if name else parent


def is_mounted(path: str | Path) -> bool:
    """Whether something is mounted at exactly *path*."""
    return root(path) is not None


def below(path: str | Path) -> list[MountInfo]:
    """Mounts at *path* and under it, the last made first: the order in which they can be unmounted."""
    top = _where(path)
    inside = top.rstrip("/") + "/"
    return [m for m in reversed(_about(top)) if m.mountpoint == top or m.mountpoint.startswith(inside)]


def bind(source: str | Path, target: str | Path, *, read_only: bool = False, recursive: bool = False) -> None:
    """Make *source* appear at *target* as well. Needs CAP_SYS_ADMIN. Raises ``OSError``; nothing is mounted then.

    *recursive* takes the mounts under *source* along. ``read_only`` is a property of the new mount only.
    """
    _mount(str(source), str(target), _MS_BIND | (_MS_REC if recursive else 0))
    if not read_only:
        return
    try:
        for mount in below(target) if recursive else [m for m in [find(target)] if m]:
            # MS_RDONLY is ignored by the bind itself: it takes a second call (mount(2))
            keep = sum(flag for name, flag in _PER_MOUNT_FLAGS.items() if name in mount.options)
            _mount(None, mount.mountpoint, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | keep)
    except OSError:
        unmount(target, lazy=True)
        raise


def fuse(
    device: int, target: str, *, fsname: str, read_only: bool = False, allow_other: bool = True, devices: bool = False
) -> None:
    """Mount the FUSE connection of *device*, an open /dev/fuse, at *target*. Needs CAP_SYS_ADMIN. Raises ``OSError``.

    The kernel checks permissions. setuid bits have no effect on the mount: a volume is written by containers.
    """
    flags = _MS_NOSUID | (0 if devices else _MS_NODEV) | (_MS_RDONLY if read_only else 0)
    data = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    data += ",allow_other" if allow_other else ""
    source = os.fsencode(fsname)
    if _libc.mount(source, os.fsencode(target), FSTYPE.encode(), ctypes.c_ulong(flags), data.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def unmount(path: str | Path, *, lazy: bool = False) -> None:
    """Remove the topmost mount at *path*. Raises ``OSError``: EBUSY if it is in use, EINVAL if nothing is mounted.

    *lazy* takes it out of the tree now and ends it when its last user has gone. Without CAP_SYS_ADMIN,
    ``fusermount3`` does it for mounts of the same user.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(path), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM and _fusermount(path, lazy=lazy):
        return
    raise OSError(code, os.strerror(code), str(path))


def _fusermount(path: str | Path, *, lazy: bool) -> bool:
    mount = find(path)
    if mount is None or not mount.is_fuse:
        return False
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if b"busy" in done.stderr.lower():
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
    return done.returncode == 0


def abort(where: str | Path | int) -> bool:
    """End a FUSE connection: every request in it and all later ones fail. *where* is a mount point or a minor number.

    This is what frees tasks that hang in a mount. Returns whether there was a connection. Needs root.
    """
    if isinstance(where, int):
        minor, mountpoint = where, next((m.mountpoint for m in mounts() if m.is_fuse and m.minor == where), None)
    else:
        mount = find(where)
        if mount is None or not mount.is_fuse:
            return False
        minor, mountpoint = mount.minor, mount.mountpoint
    with contextlib.suppress(FileNotFoundError):
        _control(minor, "abort").write_text("1")
        return True
    # Not permitted, in a container: a forced unmount aborts the connection first, and may well fail after that because
    # the mount is in use.
    return mountpoint is not None and (
        _libc.umount2(os.fsencode(mountpoint), _MNT_FORCE | _UMOUNT_NOFOLLOW) == 0 or ctypes.get_errno() == errno.EBUSY
    )


def waiting(minor: int) -> int | None:
    """How many requests of a FUSE connection have no answer yet; ``None`` if the kernel does not tell. Needs root."""
    try:
        return int(_control(minor, "waiting").read_text())
    except (OSError, ValueError):
        return None


def _control(minor: int, name: str) -> Path:
    """A file of the kernel's that controls a FUSE connection."""
    control = _CONNECTIONS / str(minor) / name
    if not control.exists() and not any(_CONNECTIONS.iterdir()):
        # every init mounts fusectl there, but not every machine has an init
        _libc.mount(b"fusectl", os.fsencode(_CONNECTIONS), b"fusectl", ctypes.c_ulong(0), None)
    return control


def probe(path: str | Path, timeout: float = 2.0) -> Liveness:
    """Ask the mount at *path* for its statistics; never takes much longer than *timeout* seconds.

    ``dead``: its server is gone (ENOTCONN). ``hung``: no answer in time. ``absent``: nothing is mounted there.
    """
    _stuck[:] = [child for child in _stuck if child.poll() is None]
    if not is_mounted(path):
        return "absent"
    # statvfs, because stat would be answered from the kernel's cache by a mount without a server
    code = "import os,sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as e: sys.exit(e.errno)"
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, str(path)], stderr=subprocess.DEVNULL)
    try:
        status = child.wait(timeout)
    except subprocess.TimeoutExpired:
        child.kill()  # it may not die of this before the connection ends
        _stuck.append(child)
        return "hung"
    return "dead" if status in {errno.ENOTCONN, errno.ECONNABORTED} else "alive"


def is_dead(path: str | Path, timeout: float = 2.0) -> bool:
    """Whether the mount at *path* has lost its server for good. Bounded by *timeout*; a hanging one is not dead."""
    return probe(path, timeout) == "dead"


def _mount(source: str | None, target: str, flags: int) -> None:
    encoded = None if source is None else os.fsencode(source)
    if _libc.mount(encoded, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)
