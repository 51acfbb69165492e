"""What a volume server is told when it starts: one JSON file per mount, written by whoever supervises it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from fusevol.errors import CorruptError
from fusevol.usage import Enforcer

CacheMode = Literal["exclusive", "shared", "none"]
TransportChoice = Literal["auto", "kernel", "pyfuse3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """One mount of one volume. Paths are absolute. Sizes in bytes; a limit of ``None`` is no limit."""

    mount_id: str
    """Names the mount on this node; letters, digits, ``-``, ``_`` and ``.``."""
    source: str
    """The directory that is served (``volumes/<id>/data`` of a pool)."""
    mountpoint: str
    control: str
    """Unix socket that the server listens on (see ``fusevol.server.control``)."""
    log: str
    """File that takes the server's log."""
    fsname: str = "fusevol"
    """Shown as the device in /proc/mounts."""
    read_only: bool = False
    quota: Enforcer = "none"
    """Who keeps the volume's limits. Data comes by the server only where it is the ledger."""
    meter: str | None = None
    """Whose quota it is (``fusevol.quota.kernel``); required with ``quota="kernel"``."""
    ledger: str | None = None
    """Checkpoint file of the ledger; required with ``quota="ledger"``."""
    limit_bytes: int | None = None
    """What the ledger keeps, as ``limit_inodes``; the kernel has its own."""
    limit_inodes: int | None = None
    lease: str | None = None
    """The volume's directory in its pool, if several nodes have that (``fusevol.lease``)."""
    lease_share: str | None = None
    """Whose share of the lease it is; ``None``: one node at a time may serve the volume."""
    lease_epoch: int | None = None
    """Required with ``lease``, as the next."""
    lease_s: float | None = None
    """For how many seconds a renewal holds."""
    cache: CacheMode = "exclusive"
    allow_other: bool = True
    devices: bool = False
    """Whether device nodes may be created and opened."""
    descriptors: int = 8192
    """How many inodes keep a descriptor open (size of the LRU)."""
    transport: TransportChoice = "auto"
    """How requests reach the server (``fusevol.server.transports``)."""
    passthrough: bool = True
    """Whether file data goes past the server where the kernel can do that and no ledger has to see it."""
    io_uring: bool = True
    """Whether requests may come over io_uring where the kernel offers that (transport ``kernel``)."""
    spin_us: int = 50
    """Microseconds in which the server looks for the next request before it sleeps (``fusevol.transport.crew``)."""
    stuck_after_s: float = 30.0
    """Seconds after which a request that has no answer is logged, and told in the status."""
    abort_after_s: float | None = None
    """Seconds after which such a request ends the connection, so that the programs that use the volume get errors
    (ECONNABORTED, then ENOTCONN) instead of waiting. ``None``: they wait for the backing store for as long as it takes.
    """
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """Free for the supervisor: volume id, claim, pod. Echoed in the status."""

    def save(self, path: Path) -> None:
        """Write the spec to *path* (rename, so that a reader sees all of it or nothing)."""
        temporary = path.with_name(f".{path.name}.tmp")
        # without what is not set, so that the code of an earlier release can go on with it for as long as it can
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        temporary.write_text(json.dumps(fields, indent=1, sort_keys=True))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a spec. Raises :class:`CorruptError` if it cannot be understood."""
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            return cls(**fields)
        except (OSError, ValueError, TypeError) as e:
            raise CorruptError(f"The mount file {path} cannot be read ({e}): remove it and mount again.") from e
