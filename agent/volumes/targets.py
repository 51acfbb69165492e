"""Where no volume is mounted, whoever asks: over the system's own filesystems, and over what the agent lives on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

from fusevol.errors import InvalidError

_SYSTEM: Final = ("/dev", "/proc", "/sys")


def check(target: str, own: Iterable[PurePath]) -> None:
    """Raise :class:`InvalidError` for a target in one of the system's filesystems, or in or around an *own* directory,
    which would be hidden by it. Absolute paths without symbolic links."""
    path = PurePath(target)
    for place in map(PurePath, _SYSTEM):
        if path.is_relative_to(place):
            raise InvalidError(f"{target} is in {place}, which is the system's: choose another directory to mount at.")
    for place in own:
        if path.is_relative_to(place):
            raise InvalidError(f"{target} is in {place}, which is fusevol's own: choose another directory to mount at.")
        if place.is_relative_to(path):
            raise InvalidError(f"{target} has {place} in it, which a mount would hide: choose another directory.")
