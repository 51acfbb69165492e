"""What stands in a pool by its id, with a record each: its volumes, and its snapshots."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fusevol.errors import CorruptError, InvalidError, NotFoundError
from fusevol.files import sync_directory
from fusevol.pool import place
from fusevol.pool.record import Volume, check_id


class Shelf:
    """One directory of the pool. Reads; thread-safe."""

    def __init__(self, room: Path, pool: str, what: str) -> None:
        """*room*: the directory; *pool*: the name of its pool; *what*: what one of them is called."""
        self._room = room
        self._pool = pool
        self._what = what

    def at(self, name: str) -> Path:
        """Where *name* is, or would be. Raises :class:`InvalidError` for what is no id."""
        return self._room / check_id(name)

    def directory(self, name: str) -> Path:
        """Where *name* is. Raises :class:`NotFoundError`, :class:`InvalidError`."""
        directory = self.at(name)
        try:
            directory.lstat()
        except FileNotFoundError as e:
            raise NotFoundError(
                f"There is no {self._what} {name} in pool {self._pool}: see `fusevol pool show`."
            ) from e
        except OSError as e:
            raise place.explain(self._room.parent, f"{self._what} {name}", e) from e
        return directory

    def find(self, name: str) -> Volume:
        """The record of *name*. Raises :class:`NotFoundError`, :class:`CorruptError`."""
        return Volume.load(self.directory(name), name)

    def all(self) -> list[Volume]:
        """Those whose record can be read, by id."""
        found = []
        with place.explained(self._room.parent, f"listing its {self._room.name}"):
            names = sorted(os.listdir(self._room))
        for name in names:
            with contextlib.suppress(CorruptError, InvalidError):
                found.append(Volume.load(self.at(name), name))
        return found

    def sync(self) -> None:
        """Make the names durable. Raises ``OSError``."""
        sync_directory(self._room)

    def __repr__(self) -> str:
        """Shows the directory."""
        return f"<Shelf {self._room}>"
