"""A pool's place on disk: what may be a pool, who holds it, and what its filesystem's errors mean to a user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from fusevol.errors import (
    ConflictError,
    CorruptError,
    ForbiddenError,
    FusevolError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from fusevol.files import is_still, left_by_the_dying, sync_directory, temporary_name, write_whole
from fusevol.pool import drivers
from fusevol.pool.drivers import Driver
from fusevol.pool.record import now

DESCRIPTION: Final = "pool.json"
LOCK: Final = "lock"
VOLUMES: Final = "volumes"
TRASH: Final = "trash"
TMP: Final = "tmp"
SNAPSHOTS: Final = "snapshots"
_ROOMS: Final = (VOLUMES, TRASH, TMP, SNAPSHOTS)
_VERSION: Final = 1
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_LOCK_PATIENCE: Final = 2.0
"""Seconds. An agent that was killed while it started a program leaves the lock to that child until its exec."""


@contextlib.contextmanager
def explained(pool: Path, doing: str) -> Iterator[None]:
    """Turn an ``OSError`` of the pool's filesystem into an error with a sentence."""
    try:
        yield
    except OSError as e:
        raise explain(pool, doing, e) from e


def explain(pool: Path, doing: str, error: OSError) -> FusevolError:
    """The error for the user when *doing* something in *pool* failed with *error*."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError(
            f"There is no space left in the pool {pool} for {doing}: delete volumes or make its filesystem larger."
        )
    if error.errno == errno.EROFS:
        return UnavailableError(
            f"The pool {pool} is on a read-only filesystem, which forbids {doing}: "
            "mount it read-write, or use another pool."
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return ForbiddenError(
            f"The operating system forbids {doing} in the pool {pool} ({error.strerror}): "
            "run as the owner of the directory, or change its owner."
        )
    return UnavailableError(
        f"The pool {pool} failed at {doing} ({error.strerror or error}): check its filesystem, then try again."
    )


def check_name(name: str) -> str:
    """*name*, if a pool can have it. Raises :class:`InvalidError`."""
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name!r} is no name for a pool: use at most 63 lower case letters, digits and '-', not at the ends."
        )
    return name


def resolve(path: Path) -> Path:
    """*path* without symbolic links, if a pool can be there. Raises :class:`InvalidError`."""
    if not path.is_absolute():
        raise InvalidError(f"The pool path {str(path)!r} is relative: give the whole path, beginning with '/'.")
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as e:
        raise InvalidError(f"The pool path {path} cannot be resolved ({e}): choose another directory.") from e
    if real == Path("/"):
        raise InvalidError("The root directory cannot be a pool: choose a directory below it.")
    return real


def prepare(path: Path, *, create: bool) -> None:
    """See to it that there can be a pool at *path*. Raises a :class:`FusevolError`; what is refused is not touched."""
    try:
        st = path.stat()
    except (FileNotFoundError, NotADirectoryError) as e:
        if not create:
            raise NotFoundError(f"There is no pool at {path}: create it first, or correct the path.") from e
        with explained(path, "making the directory"):
            path.mkdir(mode=0o700, parents=True)
            sync_directory(path.parent)
    except OSError as e:
        raise explain(path, "looking at it", e) from e
    else:
        if not stat.S_ISDIR(st.st_mode):
            raise InvalidError(f"The pool path {path} is not a directory: choose a directory.")
    with explained(path, "reading the directory"):
        if (path / DESCRIPTION).exists():
            return
        foreign = _foreign(path)
    if foreign is not None:
        raise InvalidError(
            f"The directory {path} is no pool and not empty (it has {foreign!r} and no {DESCRIPTION}): "
            "choose an empty directory, or put the pool's files back."
        )
    if not create:
        raise NotFoundError(
            f"There is no pool at {path} (it has no {DESCRIPTION}): create it first, or correct the path."
        )


def _foreign(path: Path) -> str | None:
    """A name in *path* that was not left there by a creation of a pool that did not end (or by mkfs)."""
    own = {LOCK, "lost+found", temporary_name(path / DESCRIPTION).name}
    for entry in sorted(os.scandir(path), key=lambda e: e.name):
        if entry.name in own or entry.name.startswith(f"{LOCK}."):
            continue
        if entry.name in _ROOMS and entry.is_dir(follow_symlinks=False) and not os.listdir(entry.path):
            continue
        return entry.name
    return None


def furnish(path: Path, name: str, driver: str | None) -> Driver:
    """Make what a pool consists of, where it is missing, its description last; returns its driver.

    *driver* is the one that volumes are made with from now on; ``None``: the one it has, for a new pool the one that
    fits. Only for who holds the lock. Raises :class:`InvalidError` for a driver that does not work there, and
    :class:`CorruptError`.
    """
    with explained(path, "making a pool"):
        for room in _ROOMS:
            (path / room).mkdir(mode=0o700, exist_ok=True)
        if not (path / DESCRIPTION).exists():
            chosen = drivers.probe(path) if driver is None else _suited(driver, path)
            _describe(path, {"name": name, "id": str(uuid.uuid4()), "created": now()}, chosen)
        else:
            fields = _description(path)
            chosen = _suited(driver or str(fields["driver"]), path)
            if chosen.name != fields["driver"]:
                _describe(path, fields, chosen)
        sync_directory(path)
    return chosen


def _describe(path: Path, fields: Mapping[str, object], driver: Driver) -> None:
    fields = {"version": _VERSION, **fields, "driver": driver.name}
    write_whole(path / DESCRIPTION, json.dumps(fields, indent=1) + "\n", 0o644)


def _suited(name: str, path: Path) -> Driver:
    driver = drivers.by_name(name, path)
    if not driver.fits(path):
        fitting = drivers.probe(path).name
        raise InvalidError(
            f"The pool {path} cannot have the driver {name} on the filesystem that it is on now: "
            f"{driver.needs}, or set its driver to {fitting}."
        )
    return driver


def check_description(path: Path) -> None:
    """Raises :class:`CorruptError` unless ``pool.json`` can be read and is one that this release understands."""
    _description(path)


def _description(path: Path) -> dict[str, object]:
    file = path / DESCRIPTION
    try:
        fields: dict[str, object] = json.loads(file.read_bytes())
        version, driver = fields["version"], fields["driver"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
        raise CorruptError(
            f"The pool's description {file} cannot be read ({type(e).__name__}: {e}): put it back from a backup; "
            "the volumes beside it are untouched."
        ) from e
    if version != _VERSION or driver not in drivers.names():
        raise CorruptError(
            f"The pool's description {file} is of version {version!r} with driver {driver!r}, unknown to this release: "
            "use the release that made it, or a newer one."
        )
    return fields


def hold(path: Path, agent: str = "") -> int:
    """Take the pool for this process until the descriptor that is returned is closed; with *agent*, in a pool that
    several nodes have, only for what that one does in it.

    Raises :class:`ConflictError` when another agent has it (flock(2): it goes with the process, whatever it dies of).
    """
    lock = path / (f"{LOCK}.{agent}" if agent else LOCK)
    while True:
        with explained(path, "locking it"):
            # held by a descriptor that cannot write: one that can would keep the filesystem from a read-only remount
            os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            fd = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _flock(fd, path, lock)
            if is_still(lock, fd):
                with contextlib.suppress(OSError):  # the number only serves the message; a full pool must open, too
                    lock.write_text(f"{os.getpid()}\n")
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _flock(fd: int, path: Path, lock: Path) -> None:
    end = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            if left_by_the_dying(lock, fd):
                return
            if time.monotonic() > end:
                holder = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
                raise ConflictError(
                    f"The pool {path} is held by another agent (process {holder}): stop that one, or use another pool."
                ) from e
        except OSError as e:
            raise explain(path, "locking it", e) from e
        else:
            return
        time.sleep(0.05)


def mounted_below(path: Path) -> list[str]:
    """Mount points at *path* and below, from the mount table, which asks no filesystem (it may hang)."""
    top = os.fsencode(path)
    end = top.rpartition(b"/")[2]
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        if end not in line and b"\\" not in line:
            continue  # as most, on a node with many volumes
        # proc_pid_mountinfo(5): field 5, with space, tab, newline and backslash as octal escapes
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split(b" ")[4])
        if point == top or point.startswith(top + b"/"):
            found.append(os.fsdecode(point))
    return found


def refuse_mounts(directory: Path) -> None:
    """Raise :class:`ConflictError` while something is mounted in *directory*, which shall be deleted."""
    points = mounted_below(directory)
    if points:
        raise ConflictError(f"Something is mounted at {points[0]}: unmount it before {directory.name} is deleted.")
