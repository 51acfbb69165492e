"""What was deleted and is not gone yet: one directory ``trash/<volume id>.<n>`` each, with ``trash.json`` in it.

A volume whose record has the label :data:`RETENTION` is to be kept for that long; whoever purges looks at
:attr:`TrashEntry.until` first. A purge begins by renaming ``data`` to ``purging``. That is the point of no return, it
needs no space, and a later start sees by it where to go on.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fusevol.errors import CorruptError
from fusevol.files import write_whole
from fusevol.pool.record import Volume, now

NOTE: Final = "trash.json"
PURGING: Final = "purging"
RETENTION: Final = "trash-retention"
"""The label of a volume's record with the seconds that it is kept in the trash; none: not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashEntry:
    """One deleted volume."""

    name: str
    """Names it in the trash: ``<volume id>.<n>``."""
    volume: str
    path: Path
    trashed: str
    """When: RFC 3339, UTC."""
    retention: int
    """Seconds that it is kept from then on, unless it is purged by hand."""
    reason: str
    owner: dict[str, str]
    purging: bool
    """Whether its deletion has begun, so that it cannot be restored any more."""

    @property
    def until(self) -> dt.datetime:
        """When its time is over, UTC."""
        return dt.datetime.fromisoformat(self.trashed) + dt.timedelta(seconds=self.retention)


def write_note(directory: Path, reason: str, owner: dict[str, str], retention: int) -> None:
    """Note in the volume's *directory* why it goes to the trash, and for how long. Raises ``OSError``."""
    note = {"version": 1, "trashed": now(), "reason": reason, "owner": owner, "retention": retention}
    write_whole(directory / NOTE, json.dumps(note, indent=1) + "\n")


def owner_of(directory: Path, volume: str) -> dict[str, str]:
    """Whose volume it is, as far as its record tells: a damaged one can be deleted, too."""
    try:
        return Volume.load(directory, volume).owner
    except CorruptError:
        return {}


def retention_of(directory: Path, volume: str) -> int:
    """Seconds that its record says it shall be kept; a damaged one says nothing."""
    try:
        return retention_in(Volume.load(directory, volume).labels)
    except CorruptError:
        return 0


def retention_in(labels: Mapping[str, str]) -> int:
    """Seconds that a record's *labels* say; what is no number is none."""
    text = labels.get(RETENTION, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def read_entry(directory: Path) -> TrashEntry | None:
    """The entry at *directory*; ``None`` if it is not one by its name, or gone.

    A note that is missing (the pool was full) or damaged takes nothing away but the reason: when it was deleted tells
    the directory, and for how long it is kept its record.
    """
    volume, dot, number = directory.name.rpartition(".")
    if not dot or not number.isdecimal():
        return None
    try:
        changed = directory.stat().st_ctime
        purging = not (directory / "data").is_dir()
    except OSError:
        return None
    try:
        note = json.loads((directory / NOTE).read_bytes())
        when = dt.datetime.fromisoformat(note["trashed"]).astimezone(dt.UTC)
        reason, owner = str(note["reason"]), dict(note["owner"])
        retention = int(note.get("retention", 0))  # notes without it are of before anything was kept
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        when, reason, owner = dt.datetime.fromtimestamp(changed, dt.UTC), "unknown", owner_of(directory, volume)
        retention = retention_of(directory, volume)
    return TrashEntry(
        name=directory.name,
        volume=volume,
        path=directory,
        trashed=when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        retention=retention,
        reason=reason,
        owner=owner,
        purging=purging,
    )
