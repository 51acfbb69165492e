"""What a mount really uses, as opposed to what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class InUse(NamedTuple):
    """How requests and data travel, for a status."""

    transport: str
    """``kernel`` or ``pyfuse3``."""
    io_uring: bool
    """Whether requests come over io_uring rather than /dev/fuse."""
    passthrough: bool
    """Whether the kernel reads and writes the backing files itself."""
    takeover: bool
    """Whether another server can go on, without an error for anybody, where this one is killed."""
    why_not: Mapping[str, str]
    """For each of the three that is not in use: the reason, without a full stop."""
