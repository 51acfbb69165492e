"""The drivers of pools by name, and which one fits where. How to add one: docs/pool-drivers.md."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fusevol.errors import InvalidError
from fusevol.pool.drivers.base import NO_LIMITS, Backing, Capabilities, Driver, Limits
from fusevol.pool.drivers.btrfs import Btrfs
from fusevol.pool.drivers.cephfs import CephFS
from fusevol.pool.drivers.plain import Plain
from fusevol.pool.drivers.prjquota import PrjQuota

__all__ = [
    "DRIVERS",
    "NO_LIMITS",
    "Backing",
    "Capabilities",
    "Driver",
    "Limits",
    "by_name",
    "names",
    "probe",
    "that_made",
]

DRIVERS: Final[tuple[type[Driver], ...]] = (Btrfs, PrjQuota, CephFS, Plain)
"""In the order in which they are tried; the last one fits everywhere."""


def names() -> list[str]:
    """What a pool's ``driver`` may be."""
    return sorted(d.name for d in DRIVERS)


def by_name(name: str, pool: Path) -> Driver:
    """The driver *name* for the pool at *pool*. Raises :class:`InvalidError`."""
    for driver in DRIVERS:
        if driver.name == name:
            return driver(pool)
    raise InvalidError(f'There is no pool driver "{name}": choose one of {", ".join(names())}.')


def that_made(name: str, chosen: Driver) -> Driver:
    """The driver *name* in the pool that makes its volumes with *chosen* now. Raises :class:`InvalidError`."""
    return chosen if name == chosen.name else by_name(name, chosen.pool)


def probe(pool: Path) -> Driver:
    """The driver that suits the filesystem of the directory *pool* best. Raises ``OSError``."""
    return next(d for d in DRIVERS if d.fits(pool))(pool)
