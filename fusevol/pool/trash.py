"""What was deleted and is not gone yet: one directory ``trash/<volume id>.<n>`` each, with ``trash.json`` in it.

A purge begins by renaming ``data`` to ``purging``. That is the point of no return, it needs no space, and a later start
sees by it where to go on.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fusevol.errors import CorruptError
from fusevol.files import write_whole
from fusevol.pool.record import Volume, now

NOTE: Final = "trash.json"
PURGING: Final = "purging"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashEntry:
    """One deleted volume."""

    name: str
    """Names it in the trash: ``<volume id>.<n>``."""
    volume: str
    path: Path
    trashed: str
    """When: RFC 3339, UTC."""
    reason: str
    owner: dict[str, str]
    purging: bool
    """Whether its deletion has begun, so that it cannot be restored any more."""


def write_note(directory: Path, reason: str, owner: dict[str, str]) -> None:
    """Note in the volume's *directory* why it goes to the trash. Raises ``OSError``."""
    note = {"version": 1, "trashed": now(), "reason": reason, "owner": owner}
    write_whole(directory / NOTE, json.dumps(note, indent=1) + "\n")


def owner_of(directory: Path, volume: str) -> dict[str, str]:
    """Whose volume it is, as far as its record tells: a damaged one can be deleted, too."""
    try:
        return Volume.load(directory, volume).owner
    except CorruptError:
        return {}


def read_entry(directory: Path) -> TrashEntry | None:
    """The entry at *directory*; ``None`` if it is not one by its name, or gone.

    A note that is missing (the pool was full) or damaged takes nothing away but the reason.
    """
    volume, dot, number = directory.name.rpartition(".")
    if not dot or not number.isdecimal():
        return None
    try:
        changed = directory.stat().st_ctime
        purging = not (directory / "data").is_dir()
    except OSError:
        return None
    trashed = dt.datetime.fromtimestamp(changed, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    reason = "unknown"
    owner: dict[str, str] = {}
    try:
        note = json.loads((directory / NOTE).read_bytes())
        trashed, reason, owner = str(note["trashed"]), str(note["reason"]), dict(note["owner"])
    except (OSError, ValueError, TypeError, KeyError):
        owner = owner_of(directory, volume)
    return TrashEntry(
        name=directory.name,
        volume=volume,
        path=directory,
        trashed=trashed,
        reason=reason,
        owner=owner,
        purging=purging,
    )
