"""Where the bytes live: pools, the records of their volumes, and the trash."""

from __future__ import annotations

from fusevol.pool.failure import Failure, failure_at
from fusevol.pool.pool import Finding, Pool, PoolCapacity, Tenancy
from fusevol.pool.record import Volume, VolumeRequest
from fusevol.pool.trash import TrashEntry

__all__ = [
    "Failure",
    "Finding",
    "Pool",
    "PoolCapacity",
    "Tenancy",
    "TrashEntry",
    "Volume",
    "VolumeRequest",
    "failure_at",
]
