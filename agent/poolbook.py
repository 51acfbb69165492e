"""The pools that `fusevol pool create` has made: one file each in the state directory, and what brings them about.

A record is written before anything is made, and says so (``made: false``) until that is done. So a creation that was
interrupted is neither forgotten nor taken for a pool: it is shown as failed, and can be deleted.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from agent import disks
from agent.config import PoolSettings, check_pool_name
from fusevol import quantity
from fusevol.errors import AlreadyExistsError, CorruptError, InvalidError, UnavailableError, UsageError
from fusevol.files import sync_directory, write_whole
from fusevol.pool import drivers
from fusevol.pool.promises import check_ratio

_VERSION: Final = 1
_KEYS: Final = {
    "name", "path", "device", "image", "size", "fs", "driver", "overcommit", "force", "simpleQuotas",
}  # fmt: skip
Kind = Literal["path", "device", "image"]
_LONGEST: Final = 4095
"""Bytes of a path (limits.h, without the final zero)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecord:
    """One pool that was created, as it is kept on disk."""

    name: str
    kind: Kind
    place: str
    """The directory, device or image file."""
    fs: str = ""
    """``xfs`` or ``btrfs``; empty for a directory."""
    uuid: str = ""
    driver: str | None = None
    overcommit: float | None = None
    own_image: bool = False
    """Whether the image file was made with the pool, and goes with it."""
    made: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What `fusevol pool create` asks for."""

    record: PoolRecord
    size: int | None
    force: bool
    simple: bool

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> Self:
        """Raises :class:`UsageError` or :class:`InvalidError` for what is no order."""
        if unknown := sorted(set(request) - _KEYS):
            raise UsageError(f"The request has unknown fields: {', '.join(unknown)}.")
        name = str(request.get("name") or "")
        check_pool_name(name)
        given = [(kind, str(request[kind])) for kind in ("path", "device", "image") if request.get(kind)]
        if len(given) != 1:
            raise UsageError("Say where the pool shall be: one of --path, --device and --image.")
        kind, place = given[0]
        if not place.startswith("/") or place.rstrip("/") == "" or ".." in place.split("/"):
            raise UsageError(f'"{place}" must be an absolute path without "..".')
        if "\0" in place or len(place.encode()) > _LONGEST:
            raise UsageError(f"The place of a pool must have at most {_LONGEST} bytes, and no zero among them.")
        size = None if request.get("size") is None else quantity.parse(str(request["size"]))
        if (kind == "image") != (size is not None):
            raise UsageError("--size goes with --image, which needs it: how large the file shall be.")
        if kind == "path" and any(request.get(k) for k in ("fs", "force", "simpleQuotas")):
            raise UsageError("A pool in a directory is not formatted: leave out --fs, --force and --simple-quotas.")
        fs = "" if kind == "path" else disks.check_fs(str(request.get("fs") or "btrfs"))
        if request.get("simpleQuotas") and fs != "btrfs":
            raise UsageError("--simple-quotas is for btrfs.")
        driver = request.get("driver") or None
        if driver is not None and driver not in drivers.names():
            raise InvalidError(f'There is no pool driver "{driver}": choose one of {", ".join(drivers.names())}.')
        ratio = request.get("overcommit")
        if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int | float)):
            raise UsageError("overcommit must be a number, such as 1.0.")
        return cls(
            record=PoolRecord(
                name=name,
                kind=kind,  # type: ignore[arg-type]  # one of the three
                place=place,
                fs=fs,
                driver=driver,
                overcommit=None if ratio is None else check_ratio(float(ratio)),
            ),
            size=size,
            force=bool(request.get("force")),
            simple=bool(request.get("simpleQuotas")),
        )


class MadePool:
    """A pool of the book, to be mounted when something is done with it. Implements ``agent.pools.Mounted``."""

    def __init__(self, record: PoolRecord, settings: PoolSettings) -> None:
        self._record = record
        self.settings = settings

    @property
    def pool(self) -> Path:
        """The pool's directory."""
        return self.settings.path

    @property
    def renewable(self) -> bool:
        """Whether a filesystem that has failed is mounted anew."""
        return self._record.kind != "path"

    def renew(self) -> bool:
        """See to it that it is mounted; whether it had to be mounted now. Raises :class:`UnavailableError`."""
        record = self._record
        if not record.made:
            raise UnavailableError(
                f"The pool {record.name} was not made to the end: `fusevol pool delete` it, then create it again."
            )
        if record.kind == "path":
            return False
        place = Path(record.place)
        renewed = disks.mount_at(place, self.pool, disks.check_fs(record.fs), record.uuid)
        if record.kind == "image":
            disks.check_whole(place, self.pool)
        return renewed

    def unmount(self) -> None:
        """Have it mounted anew next time. Raises :class:`ConflictError` while it is in use."""
        if self.renewable:
            disks.unmount(self.pool)

    def __repr__(self) -> str:
        """Shows what is where."""
        return f"<MadePool {self._record.name} on {self._record.place} at {self.pool}>"


class PoolBook:
    """The records below a directory, and the filesystems that they are of. Synchronous; one call at a time per pool."""

    def __init__(self, state_dir: Path) -> None:
        self._records = state_dir / "pools.d"
        self._points = state_dir / "disks"

    def read(self) -> list[PoolRecord]:
        """All records. Raises :class:`CorruptError`."""
        if not self._records.is_dir():
            return []
        return [self._read(file) for file in sorted(self._records.glob("*.json"))]

    def find(self, name: str) -> PoolRecord | None:
        """The record of a pool; ``None`` for one of the configuration."""
        file = self._file(name)
        return self._read(file) if file.exists() else None

    @staticmethod
    def _read(file: Path) -> PoolRecord:
        try:
            fields = json.loads(file.read_bytes())
            if fields.pop("version") != _VERSION:
                raise ValueError("it is of another version")  # noqa: TRY301  # one sentence for all
            return PoolRecord(**fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
            raise CorruptError(
                f"The pool's record {file} cannot be read ({e}): put it back from a backup, or move it away."
            ) from e

    def _file(self, name: str) -> Path:
        if not re.fullmatch(r"[a-z0-9-]+", name):
            raise InvalidError(f'"{name}" is no name of a pool.')
        return self._records / f"{name}.json"

    def _save(self, record: PoolRecord) -> None:
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._file(record.name), json.dumps({"version": _VERSION, **dataclasses.asdict(record)}, indent=1))

    def settings(self, record: PoolRecord) -> PoolSettings:
        """Where the pool is once it is mounted."""
        path = Path(record.place) if record.kind == "path" else self._points / record.name
        return PoolSettings(path=path, driver=record.driver, overcommit=record.overcommit)

    def make(self, order: Order) -> PoolRecord:
        """Bring a pool's filesystem about. What fails before anything was formatted leaves nothing."""
        record = order.record
        place = Path(record.place)
        if record.kind == "device":
            disks.check_device(place, force=order.force)
        record = dataclasses.replace(record, own_image=record.kind == "image" and not place.exists())
        self._save(record)
        try:
            if record.kind == "image":
                own = disks.make_image(place, order.size or 0, disks.check_fs(record.fs), force=order.force)
                record = dataclasses.replace(record, own_image=own)
                self._save(record)
            if record.kind != "path":
                fs = disks.check_fs(record.fs)
                record = dataclasses.replace(record, uuid=disks.make_filesystem(place, fs))
                point = self.settings(record).path
                disks.mount_at(place, point, fs, record.uuid)
                disks.enable_quotas(point, fs, simple=order.simple)
            record = dataclasses.replace(record, made=True)
            self._save(record)
        except AlreadyExistsError:  # what is there is somebody's
            self.remove(dataclasses.replace(record, own_image=False))
            raise
        except BaseException:
            self.remove(record)
            raise
        return record

    def pool(self, record: PoolRecord) -> MadePool:
        """What opens the pool."""
        return MadePool(record, self.settings(record))

    def grow(self, record: PoolRecord, size: int | None) -> None:
        """Make the pool larger while it is in use."""
        if record.kind == "path":
            raise InvalidError(f"The pool {record.name} is a directory: make its filesystem larger by its own means.")
        disks.grow(Path(record.place), self.settings(record).path, disks.check_fs(record.fs), size)

    def remove(self, record: PoolRecord) -> None:
        """Forget a pool: unmount it, and remove its image file if it was made with it."""
        if record.kind != "path":
            disks.unmount(self.settings(record).path)
        if record.own_image:
            Path(record.place).unlink(missing_ok=True)
        self._file(record.name).unlink(missing_ok=True)
        sync_directory(self._records)
