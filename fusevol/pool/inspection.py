"""Looks for damage in a pool. Reads only."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from fusevol.errors import CorruptError, InvalidError
from fusevol.pool import place
from fusevol.pool.drivers import Driver, Limits
from fusevol.pool.record import Volume, check_id
from fusevol.pool.trash import read_entry
from fusevol.quota.checkpoint import Checkpoint, Identity
from fusevol.quota.scan import scan


class Finding(NamedTuple):
    """Something that is not as it should be."""

    severity: Literal["error", "warning"]
    """``error``: a volume cannot be used. ``warning``: it heals by itself or is only in the way."""
    subject: str
    """The path in the pool."""
    message: str
    """What is wrong, and what to do, in one sentence."""


DriverOf = Callable[[Volume], Driver]


def inspect(pool: Path, left: Callable[[], Iterable[str]], driver_of: DriverOf) -> list[Finding]:
    """All findings in *pool*; *left* names what was left half-made below ``tmp``. Raises ``OSError``."""
    findings = []
    try:
        place.check_description(pool)
    except CorruptError as e:
        findings.append(Finding("error", place.DESCRIPTION, e.message))
    for name in sorted(os.listdir(pool / place.VOLUMES)):
        findings += _volume(pool / place.VOLUMES / name, driver_of)
    for name in sorted(os.listdir(pool / place.SNAPSHOTS)):
        try:
            Volume.load(pool / place.SNAPSHOTS / check_id(name), name)
        except (CorruptError, InvalidError) as e:
            if os.path.lexists(pool / place.SNAPSHOTS / name):
                findings.append(Finding("error", f"{place.SNAPSHOTS}/{name}", e.message))
    for name in sorted(os.listdir(pool / place.TRASH)):
        path = pool / place.TRASH / name
        if os.path.lexists(path) and read_entry(path) is None:
            findings.append(Finding("warning", f"trash/{name}", f"{path} is not of fusevol: move it elsewhere."))
    findings += [
        Finding(
            "warning", f"tmp/{name}", f"{pool / place.TMP / name} was left half-made: restart the agent to clear it."
        )
        for name in left()
        if os.path.lexists(pool / place.TMP / name)
    ]
    return findings


def _volume(directory: Path, driver_of: DriverOf) -> list[Finding]:
    subject = f"{place.VOLUMES}/{directory.name}"
    try:
        check_id(directory.name)
        mode = directory.lstat().st_mode
    except FileNotFoundError:
        return []
    except InvalidError:
        return [Finding("warning", subject, f"{directory} is not of fusevol: move it elsewhere.")]
    if not stat.S_ISDIR(mode):
        return [Finding("warning", subject, f"{directory} is no directory and not of fusevol: move it elsewhere.")]
    try:
        volume = Volume.load(directory, directory.name)
    except CorruptError as e:
        return [Finding("error", f"{subject}/volume.json", e.message)] if directory.exists() else []
    if volume.data.is_symlink() or not volume.data.is_dir():
        if not directory.exists():
            return []
        message = f"Volume {volume.id} has lost its directory {volume.data}: put it back from a backup, or delete it."
        return [Finding("error", f"{subject}/data", message)]
    limits = Limits(volume.capacity_bytes, volume.inode_limit) if volume.quota == "kernel" else None
    try:
        broken = driver_of(volume).check(volume.data, volume.backing, limits)
    except InvalidError as e:  # a driver that this release does not have
        broken = [e.message]
    except FileNotFoundError:
        return []  # deleted meanwhile
    return [*(Finding("error", subject, sentence) for sentence in broken), *_ledger(volume, subject)]


def _ledger(volume: Volume, subject: str) -> list[Finding]:
    if volume.quota != "ledger":
        return []
    before = Checkpoint.load(volume.ledger)
    if before is None:
        if not volume.ledger.exists():
            return []  # never mounted yet
        message = f"The counters {volume.ledger} cannot be read: nothing to do, the next mount counts the volume again."
        return [Finding("warning", f"{subject}/ledger.json", message)]
    try:
        if not before.clean or before.source != Identity.of(volume.data):
            return []  # being served, or counted at the next mount
        counted = scan(volume.data)
    except FileNotFoundError:
        return []  # deleted meanwhile
    if Checkpoint.load(volume.ledger) != before or counted == (before.used_bytes, before.used_inodes):
        return []
    message = (
        f"Volume {volume.id} has {counted.nbytes} bytes in {counted.inodes} inodes, but its counters {volume.ledger} "
        f"say {before.used_bytes} in {before.used_inodes}: delete that file, and the next mount counts again."
    )
    return [Finding("error", f"{subject}/ledger.json", message)]
