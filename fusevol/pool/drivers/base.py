"""What a pool asks of the filesystem that it is on. One file beside this for each kind.

A volume is one directory, ``data``. A driver makes it, limits it, looks at it and takes it away; all that is beside it
(records, trash, locks) and every decision is the pool's. ``data`` is always made below the pool's ``tmp`` and then
moved with its parent by one rename, so a driver need not care for crashes but in :meth:`Driver.remove`, which must cope
with whatever a killed :meth:`Driver.make` has left.

Drivers are synchronous and thread-safe, block on the disk, raise ``OSError`` for what the filesystem says, and children
of ``FusevolError`` where they know better.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from fusevol.usage import Measured

Backing = dict[str, str]
"""What a driver must know later of a volume and cannot ask its directory: a project id, a subvolume's number."""
Made = tuple[Path, Mapping[str, str]]
"""A volume's directory, and its :data:`Backing`."""
Progress = Callable[[int], None]
"""Told every now and then how many inodes are gone; what it raises ends the work."""


class Limits(NamedTuple):
    """What a volume may use; ``None`` is no limit."""

    nbytes: int | None
    inodes: int | None


NO_LIMITS = Limits(None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver does in one pool now; nothing that its filesystem could do if it were mounted otherwise."""

    quota_bytes: bool
    """Whether the kernel keeps a limit of bytes. Where not, the ledger does."""
    quota_inodes: bool
    snapshot: Literal["instant", "reflink", "copy"]
    """``instant``: one moment in time, whatever is being written. Otherwise file after file, without taking new space
    (``reflink``) or taking it all again (``copy``)."""
    clone: Literal["instant", "reflink", "copy"]
    usage: str
    """Where the numbers of a kernel quota come from; empty without one."""
    shared: bool
    """Whether other nodes may have the same pool."""
    granularity: int
    """By how many bytes a kernel quota may stop a writer too early or too late at most; 0 without one."""
    quota_shared: bool = False
    """Whether the filesystem keeps limits, however late, of what several nodes write at once, which no ledger sees."""
    remark: str = ""
    """What is lacking and could be had, in one sentence; empty if nothing is."""

    def enforces(self, limits: Limits) -> bool:
        """Whether the kernel keeps all of *limits* by itself."""
        return (limits.nbytes is None or self.quota_bytes) and (limits.inodes is None or self.quota_inodes)


class Driver(ABC):
    """One pool's filesystem. ``data`` is a volume's directory, ``backing`` what :meth:`make` has said of it."""

    name: ClassVar[str]
    """As in ``pool.json``, ``volume.json`` and ``fusevol.quota.kernel.MODULES``."""
    needs: ClassVar[str] = "mount the right one"
    """What to do where it does not fit, the middle of a sentence."""

    def __init__(self, pool: Path) -> None:
        """*pool*: its directory, which exists."""
        self.pool = pool

    @classmethod
    @abstractmethod
    def fits(cls, pool: Path) -> bool:
        """Whether a new pool at *pool* should have this driver if nobody says which."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Asks the filesystem, each time: an administrator may have changed it. Cheap."""

    @abstractmethod
    def make(self, data: Path, limits: Limits) -> Backing:
        """Make the empty directory *data*, which does not exist, limited by the kernel to *limits*, durably.

        *limits* are such as :meth:`Capabilities.enforces`; none, where the ledger keeps them. Mode and owner are the
        caller's business.
        """

    @abstractmethod
    def set_limits(self, data: Path, backing: Mapping[str, str], limits: Limits) -> None:
        """Change what the kernel allows, durably, while the volume is in use. Below what is used is allowed."""

    def second_line(  # noqa: B027  # most can do nothing
        self, data: Path, backing: Mapping[str, str], limits: Limits
    ) -> None:
        """A ledger keeps *limits*: have the filesystem stop, far beyond, who writes past it. Where it can, durably."""

    @abstractmethod
    def usage(self, data: Path, backing: Mapping[str, str]) -> Measured:
        """What the kernel counts. Only for volumes that the kernel limits."""

    def usages(self, volumes: Mapping[str, Made]) -> dict[str, Measured]:
        """:meth:`usage` of many, with as few questions as the filesystem needs; what cannot be had is left out."""
        found = {}
        for name, (data, backing) in volumes.items():
            with contextlib.suppress(OSError):
                found[name] = self.usage(data, backing)
        return found

    @abstractmethod
    def remove(self, data: Path, backing: Mapping[str, str], progress: Progress | None = None) -> None:
        """Delete *data* with all that is in it, and its quota. May take long.

        It may have been interrupted before, so *data* may be half gone, or gone. An empty *backing* says that there is
        no record: *data* is a leftover of :meth:`make`. Raises ``ConflictError`` at a mount or another device in it.
        """

    @abstractmethod
    def snapshot(self, data: Path, backing: Mapping[str, str], target: Path) -> Backing:
        """Make *target*, which does not exist, with what *data* has now; :meth:`remove` takes it away.

        Where it is not ``instant``, that nobody writes to *data* meanwhile is the caller's duty.
        """

    @abstractmethod
    def clone(self, source: Path, backing: Mapping[str, str], target: Path, limits: Limits) -> Backing:
        """Make the volume directory *target* as :meth:`make` does, with what *source* has: a volume or a snapshot."""

    @abstractmethod
    def check(self, data: Path, backing: Mapping[str, str], limits: Limits | None) -> list[str]:
        """Which promises do not hold for a volume now, in a sentence with a remedy each.

        *limits*: what the kernel should keep; ``None`` where it is not the one that does.
        """

    def __repr__(self) -> str:
        """Shows kind and place."""
        return f"<{type(self).__name__} at {self.pool}>"
