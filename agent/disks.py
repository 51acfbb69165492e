"""Filesystems that the agent makes for its pools: on a block device, or in an image file through a loop device.

Synchronous, for worker threads. The programs of util-linux, xfsprogs and btrfs-progs do the work: nothing here is on
the way of a request. Raises children of :class:`FusevolError` only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args

from fusevol import btrfs
from fusevol.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from fusevol.files import sync_directory
from fusevol.quantity import format_bytes
from fusevol.transport import mount

Fs = Literal["xfs", "btrfs"]
_MAKE: Final[dict[str, list[str]]] = {
    # -K: no discard, which would punch holes into an image whose blocks are reserved
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}
_SMALLEST: Final = {"xfs": 300 << 20, "btrfs": 128 << 20}
"""What the mkfs programs accept, in bytes."""
_LOOP_SET_CAPACITY: Final = 0x4C07  # linux/loop.h
_EDGE: Final = 1 << 20
"""Bytes at both ends of a device that must be zeros where blkid recognises nothing."""
_PATIENCE: Final = 600.0
"""Seconds that one of the programs may take."""


def check_fs(fs: str) -> Fs:
    """*fs*, if one can be made. Raises :class:`InvalidError`."""
    for known in get_args(Fs):
        if fs == known:
            return known  # type: ignore[no-any-return]  # get_args is untyped
    raise InvalidError(f'A pool cannot be made with the filesystem "{fs}": choose one of {", ".join(get_args(Fs))}.')


def make_image(image: Path, size: int, fs: Fs, *, force: bool) -> bool:
    """Make the file *image* of *size* bytes, its blocks reserved where the filesystem can; whether it was not there.

    One that is there is taken as it is if it holds nothing, or with *force*.
    """
    if size < _SMALLEST[fs]:
        raise InvalidError(f"{format_bytes(size)} is too small for {fs}: give at least {format_bytes(_SMALLEST[fs])}.")
    try:
        fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        if not stat.S_ISREG(image.lstat().st_mode):
            raise InvalidError(f"{image} is not a regular file: name an image file, or use --device.") from None
        _refuse_data(image, force=force)
        with _failing(f"Making the image {image}"):
            _extend(image, size)
        return False
    except OSError as e:
        raise UnavailableError(f"The image {image} cannot be made: {e.strerror}.") from e
    os.close(fd)
    try:
        with _failing(f"Making the image {image}"):
            _extend(image, size)
            sync_directory(image.parent)
    except BaseException:
        image.unlink(missing_ok=True)
        raise
    return True


def _extend(image: Path, size: int) -> None:
    fd = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as e:
            if e.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            os.ftruncate(fd, max(size, os.fstat(fd).st_size))
        os.fsync(fd)
    finally:
        os.close(fd)


def check_device(device: Path, *, force: bool) -> None:
    """Raise unless *device* is a block device that nobody uses and that holds nothing (or whatever, with *force*)."""
    try:
        mode = device.stat().st_mode
    except OSError as e:
        raise NotFoundError(f"There is no device {device} ({e.strerror}): see `lsblk`.") from e
    if not stat.S_ISBLK(mode):
        raise InvalidError(f"{device} is not a block device: name one, such as /dev/vdb, or use --image or --path.")
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as e:
        raise ConflictError(f"The device {device} is in use ({e.strerror}): unmount it first; see `lsblk`.") from e
    _refuse_data(device, force=force)


def _refuse_data(place: Path, *, force: bool) -> None:
    if force:
        return
    done = _run(["blkid", "-p", "-o", "export", os.fspath(place)])
    remedy = "choose another one, or give --force to destroy what is there."
    if done.returncode != 2:  # blkid(8): 0 recognised, 2 nothing, 8 several
        told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        what = told.get("TYPE") or told.get("PTTYPE") or "something that is not clear"
        raise AlreadyExistsError(f"{place} already holds data ({what}): {remedy}")
    with _failing(f"Reading {place}"), place.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for start in (0, max(0, size - _EDGE)):
            file.seek(start)
            if file.read(_EDGE).strip(b"\0"):
                raise AlreadyExistsError(f"{place} already holds data (of no known kind): {remedy}")


def make_filesystem(place: Path, fs: Fs) -> str:
    """Format *place*, which was checked; returns the new filesystem's UUID."""
    done = _run([*_MAKE[fs], os.fspath(place)])
    if done.returncode != 0:
        raise UnavailableError(f"Making {fs} on {place} failed: {_said(done)}.")
    found = uuid_of(place)
    if found is None:
        raise UnavailableError(f"Making {fs} on {place} failed: no filesystem is found there afterwards.")
    return found


def uuid_of(place: Path) -> str | None:
    """The UUID of the filesystem on a device or in an image; ``None`` if there is none."""
    done = _run(["blkid", "-p", "-s", "UUID", "-o", "value", os.fspath(place)])
    return done.stdout.strip() or None if done.returncode == 0 else None


def mount_at(place: Path, point: Path, fs: Fs, uuid: str) -> bool:
    """Have the filesystem *uuid* of *place* mounted at *point*; whether that had to be done."""
    if mount.root(point) is not None:
        return False
    if not place.exists():
        raise UnavailableError(f"{place} is not there: attach the device, or put the image file back.")
    found = uuid_of(place)
    if found != uuid:
        what = f"the filesystem {found}" if found else "no filesystem that can be recognised"
        raise UnavailableError(f"{place} has {what}, not {uuid} that the pool was made with: put that one back.")
    with _failing(f"Making the mount point {point}"):
        point.mkdir(mode=0o700, parents=True, exist_ok=True)
    # a regular file gets a loop device that goes with the mount
    options = "loop," if place.is_file() else ""
    tries = [options + "prjquota", options + "noquota"] if fs == "xfs" else [options + "rw"]
    for last, chosen in enumerate(tries, 1):
        done = _run(["mount", "-t", fs, "-o", chosen, os.fspath(place), os.fspath(point)])
        if done.returncode == 0:
            break
        if last == len(tries):
            raise UnavailableError(f"{place} cannot be mounted at {point}: {_said(done)}.")
    source = mount.find(point)
    if source is not None and source.source.startswith("/dev/loop"):
        _run(["losetup", "--direct-io=on", source.source])  # cached once, not twice; where that is possible
    return True


def check_whole(image: Path, point: Path) -> None:
    """Raises :class:`UnavailableError` if *image*, whose filesystem is mounted at *point*, has lost its end: writes
    would make it longer again, with nothing in between."""
    found = mount.find(point)
    if found is None or not image.is_file():
        return
    with _failing(f"Looking at {image}"):
        device = os.stat(found.source).st_rdev  # not the mount's, of which btrfs has its own
        needed = int(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size").read_text()) * 512
        size = image.stat().st_size
    if size < needed:
        raise UnavailableError(
            f"The image file {image} was cut off: it has {format_bytes(size)} of {format_bytes(needed)}; put it back."
        )


def enable_quotas(point: Path, fs: Fs, *, simple: bool) -> None:
    """Have the filesystem mounted at *point* keep quotas. XFS does by how it is mounted, if this kernel can."""
    if fs != "btrfs":
        return
    with _failing(f"Switching quotas on at {point}"), _opened(point) as fd:
        btrfs.enable_quota(fd, simple=simple)


def unmount(point: Path) -> None:
    """Unmount a pool. Raises :class:`ConflictError` while it is in use."""
    if mount.is_mounted(point):
        try:
            mount.unmount(point)
        except OSError as e:
            raise ConflictError(f"{point} cannot be unmounted ({e.strerror}): see what uses it (`fuser -vm`).") from e
    with contextlib.suppress(OSError):
        point.rmdir()


def grow(place: Path, point: Path, fs: Fs, size: int | None) -> None:
    """Have the mounted filesystem take all of its device, after its image file was extended to *size* bytes.

    The same again changes nothing, so it can be repeated where it was interrupted.
    """
    found = mount.find(point)
    if found is None:
        raise UnavailableError(f"The pool is not mounted at {point}: see `fusevol pool show` for the reason.")
    if place.is_file():
        _grow_image(place, Path(found.source), size)
    elif size is not None:
        raise InvalidError(f"A pool on a device grows with it: make {place} larger, and leave out --size.")
    if fs == "btrfs":
        with _failing(f"Growing {point}"), _opened(point) as fd:
            btrfs.resize(fd)
        return
    done = _run(["xfs_growfs", os.fspath(point)])
    if done.returncode != 0:
        raise UnavailableError(f"Growing {point} failed: {_said(done)}.")


def _grow_image(image: Path, loop: Path, size: int | None) -> None:
    if size is None:
        raise InvalidError("How large the pool shall be is not said: add --size.")
    now = image.stat().st_size
    if size < now:
        raise InvalidError(
            f"A pool cannot shrink: {image} has {format_bytes(now)}, {format_bytes(size)} were asked for."
        )
    with _failing(f"Growing {image}"):
        _extend(image, size)
        with loop.open("rb") as device:
            fcntl.ioctl(device.fileno(), _LOOP_SET_CAPACITY, 0)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failing(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise NoSpaceError(
                f"{doing} failed: there is not enough space below it; free some, or ask for less."
            ) from e
        raise UnavailableError(f"{doing} failed: {e.strerror or e}.") from e


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as e:
        package = {"mkfs.xfs": "xfsprogs", "xfs_growfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs"}
        raise UnavailableError(
            f"There is no program {command[0]} on this machine: install {package.get(command[0], 'util-linux')}."
        ) from e
    except subprocess.TimeoutExpired as e:
        raise UnavailableError(f"{command[0]} did not end within {_PATIENCE:g} s: see `dmesg`.") from e


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].strip().rstrip(".") if lines else f"exit status {done.returncode}"
