"""The quota of the backing filesystem: which one a volume has, for pool drivers and for volume servers.

A :class:`~fusevol.usage.Meter` works on an open directory and knows no pool. A volume server that has one needs no more
to show and change limits; who keeps them is the kernel. A meter's module is imported when a volume needs it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

from fusevol.errors import UnavailableError
from fusevol.usage import Meter

MODULES: Final = {
    "btrfs": "fusevol.quota.qgroup",
    "cephfs": "fusevol.quota.cephquota",
    "prjquota": "fusevol.quota.project",
}
"""By the name of the pool driver; each has ``open_meter(source: Path) -> Meter``, which raises ``OSError``."""


def open_meter(driver: str, source: Path) -> Meter:
    """The quota of the volume whose directory is *source*. Raises :class:`UnavailableError` if it has none now."""
    module = MODULES.get(driver)
    if module is None:
        known = ", ".join(sorted(MODULES))
        raise UnavailableError(f'There are no quotas of a driver "{driver}" in this release: known are {known}.')
    try:
        found: Meter = importlib.import_module(module).open_meter(source)
    except OSError as e:
        raise UnavailableError(
            f"The filesystem of {source} keeps no quota for it ({e.strerror or e}): switch its quotas on again."
        ) from e
    return found
