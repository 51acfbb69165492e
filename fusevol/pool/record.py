"""The record of a volume, ``volume.json``, and the names that a volume may have."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast, get_args

from fusevol.errors import CorruptError, InvalidError
from fusevol.files import write_whole
from fusevol.usage import Enforcer

RECORD: Final = "volume.json"
DATA: Final = "data"
LEDGER: Final = "ledger.json"
SNAPSHOT_OF: Final = "snapshot-of"
"""The label of a snapshot's record: which volume it is of."""
AGENT: Final = "agent"
"""The label of a volume in a pool that several nodes have: the agent that made it and knows its objects."""
_VERSION: Final = 1
_ID: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,127}", re.ASCII)


def check_id(volume: str) -> str:
    """*volume*, which is safe as a path component. Raises :class:`InvalidError`."""
    if not _ID.fullmatch(volume) or ".." in volume:
        raise InvalidError(
            f"{volume!r} is no volume id: use at most 128 lower case letters, digits, '-' and single '.', "
            "beginning with a letter or digit."
        )
    return volume


def now() -> str:
    """The time, UTC, as RFC 3339 has it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRequest:
    """What a volume shall be. Sizes in bytes; ``None`` is no limit."""

    id: str
    capacity_bytes: int | None
    inode_limit: int | None = None
    enforced: bool = True
    """Whether the limits are kept; otherwise they are only what the volume was promised."""
    shared: bool = False
    """Whether several nodes may write to it at once, so that no ledger can know what it has."""
    owner: dict[str, str] = field(default_factory=dict)
    """Whom it is for: claim, namespace, pod; shown to people and kept for adoption."""
    mode: int = 0o777
    """Permission bits of the volume's root directory."""
    labels: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises :class:`InvalidError` for what cannot be made."""
        check_id(self.id)
        check_limits(self.id, self.capacity_bytes, self.inode_limit)
        if not 0 <= self.mode <= 0o7777:
            raise InvalidError(
                f"Volume {self.id} cannot have the mode {self.mode:#o}: use permission bits up to 0o7777."
            )


def check_limits(volume: str, capacity_bytes: int | None, inode_limit: int | None) -> None:
    """Raises :class:`InvalidError` unless both are positive or ``None``."""
    for value, what in ((capacity_bytes, "capacity"), (inode_limit, "inode limit")):
        if value is not None and value < 1:
            raise InvalidError(f"Volume {volume} cannot have the {what} {value}: give at least 1, or none at all.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume as its record describes it. Sizes in bytes; ``None`` is no limit."""

    id: str
    data: Path
    """The directory that is served."""
    ledger: Path
    """The ledger's checkpoint file; may be missing."""
    capacity_bytes: int | None
    inode_limit: int | None
    owner: dict[str, str]
    labels: dict[str, str]
    created: str
    """RFC 3339, UTC."""
    quota: Enforcer
    """Who keeps the limits; ``none`` also where there is no limit and the kernel could not keep one."""
    driver: str
    """What made ``data``, and takes it away (``fusevol.pool.drivers``)."""
    backing: dict[str, str]
    """What that driver wants to know again."""

    @classmethod
    def from_request(
        cls, request: VolumeRequest, directory: Path, *, quota: Enforcer, driver: str, backing: Mapping[str, str]
    ) -> Volume:
        """The volume that *request* makes in *directory*."""
        return cls(
            id=request.id,
            data=directory / DATA,
            ledger=directory / LEDGER,
            capacity_bytes=request.capacity_bytes,
            inode_limit=request.inode_limit,
            owner=dict(request.owner),
            labels=dict(request.labels),
            created=now(),
            quota=quota,
            driver=driver,
            backing=dict(backing),
        )

    def wanted(self) -> VolumeRequest:
        """What makes another one like it, in another pool. Whose objects know it is as in this one."""
        return VolumeRequest(
            id=self.id,
            capacity_bytes=self.capacity_bytes,
            inode_limit=self.inode_limit,
            enforced=self.quota != "none",
            owner=dict(self.owner),
            mode=stat.S_IMODE(self.data.stat().st_mode),
            labels=dict(self.labels),
        )

    def save(self, directory: Path) -> None:
        """Write the record into *directory*, whole and durably. Raises ``OSError``."""
        fields = {
            "version": _VERSION,
            "id": self.id,
            "capacity_bytes": self.capacity_bytes,
            "inode_limit": self.inode_limit,
            "owner": self.owner,
            "labels": self.labels,
            "created": self.created,
            "quota": self.quota,
            "driver": self.driver,
            "backing": self.backing,
        }
        write_whole(directory / RECORD, json.dumps(fields, indent=1) + "\n")

    @property
    def directory(self) -> Path:
        """Where record, data and the rest are."""
        return self.data.parent

    def kept_as(self, snapshot: str, directory: Path, backing: Mapping[str, str], labels: dict[str, str]) -> Volume:
        """The record of a snapshot of this volume in *directory*."""
        return dataclasses.replace(
            self,
            id=snapshot,
            data=directory / DATA,
            ledger=directory / LEDGER,
            labels=labels,
            created=now(),
            quota="none",
            backing=dict(backing),
        )

    def with_limits(self, capacity_bytes: int | None, inode_limit: int | None) -> Volume:
        """The same volume with other limits."""
        return dataclasses.replace(self, capacity_bytes=capacity_bytes, inode_limit=inode_limit)

    @classmethod
    def load(cls, directory: Path, volume: str) -> Volume:
        """Read the record of *volume* from *directory*. Raises :class:`CorruptError`; nothing is changed."""
        file = directory / RECORD
        try:
            fields = json.loads(file.read_bytes())
            return cls._parse(fields, directory, volume)
        except FileNotFoundError as e:
            raise CorruptError(f"The record {file} is missing: {_REMEDY}") from e
        except (OSError, ValueError, TypeError, RecursionError) as e:
            raise CorruptError(f"The record {file} cannot be read ({e}): {_REMEDY}") from e
        except KeyError as e:
            raise CorruptError(f"The record {file} lacks the field {e}: {_REMEDY}") from e

    @classmethod
    def _parse(cls, fields: Any, directory: Path, volume: str) -> Volume:
        if not isinstance(fields, dict):
            raise TypeError("it is no JSON object")
        if fields["version"] != _VERSION:
            raise ValueError(f"version {fields['version']!r} is not known to this release")
        if fields["id"] != volume:
            raise ValueError(f"it is of the volume {fields['id']!r}")
        if fields["quota"] not in get_args(Enforcer):
            raise ValueError(f"the quota {fields['quota']!r} is not known to this release")
        return cls(
            id=volume,
            data=directory / DATA,
            ledger=directory / LEDGER,
            capacity_bytes=_limit(fields, "capacity_bytes"),
            inode_limit=_limit(fields, "inode_limit"),
            owner=_words(fields, "owner"),
            labels=_words(fields, "labels"),
            created=str(fields["created"]),
            quota=cast("Enforcer", fields["quota"]),
            # records without it are of before there was more than one
            driver=str(fields.get("driver", "plain")),
            backing=_words(fields, "backing") if "backing" in fields else {},
        )


_REMEDY: Final = "put it back from a backup, or copy the data beside it elsewhere and delete the volume."


def _limit(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields[name]
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}")
    return value


def _words(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    value = fields[name]
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"{name} is {value!r}")
    return value
