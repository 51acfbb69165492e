"""What a volume uses and the counter that says no: words that ``fs`` and ``quota`` share without knowing each other."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Enforcer = Literal["ledger", "kernel", "none"]
"""Who says no when a volume would pass its limit: fusevol's own ledger, by which all data must come; the backing
filesystem, in the kernel; nobody."""


class Usage(NamedTuple):
    """What a volume uses and may use. Bytes are allocated space as ``du`` counts it; ``None`` is no limit."""

    used_bytes: int
    used_inodes: int
    limit_bytes: int | None
    limit_inodes: int | None


class Measured(NamedTuple):
    """What the backing filesystem counts of a volume against its limits. ``None``: no limit, or it does not count that.

    Bytes are that filesystem's own measure, which may include its metadata and what is only reserved.
    """

    used_bytes: int
    used_inodes: int | None
    limit_bytes: int | None
    limit_inodes: int | None


class Meter(Protocol):
    """A volume's quota in the backing filesystem, by an open descriptor. Thread-safe."""

    def usage(self) -> Measured:
        """Usage and limits now. Cheap: ``df`` asks. Raises ``OSError``."""

    def set_limits(self, nbytes: int | None, inodes: int | None) -> None:
        """Change the limits, ``None`` for none, durably.

        Raises ``OSError``: EOPNOTSUPP for what cannot be limited there.
        """

    def close(self) -> None:
        """Give back all descriptors."""


class Entry(Protocol):
    """What an operation changes of what was counted, written down where it outlives the process."""

    def commit(self, used_bytes: int, used_inodes: int) -> None:
        """From here on it is counted, and these are the counters. Called with the counters' lock held."""


class Quota(Protocol):
    """A counter that says no. Thread-safe. ``fusevol.quota.ledger.Ledger`` is the one that exists.

    A change is first reserved, then made, then settled with what it really cost, so that used + reserved is never
    over the limit, whatever runs at the same time.
    """

    def reserve(self, nbytes: int, inodes: int) -> None:
        """Set *nbytes* and *inodes* aside. Raises ``OSError(ENOSPC)`` and reserves nothing if that is too much."""

    def reserve_upto(self, nbytes: int, granule: int) -> int:
        """Set aside as much of *nbytes* as there is room for, a multiple of *granule*; returns it, 0 for none."""

    def settle(
        self, reserved_bytes: int, reserved_inodes: int, nbytes: int, inodes: int, entry: Entry | None = None
    ) -> None:
        """Give a reservation back and add what was really used: *nbytes* and *inodes*, negative where freed.

        *entry* is committed with the counters as they are then.
        """

    def usage(self) -> Usage:
        """The counters now, without what is only reserved."""
