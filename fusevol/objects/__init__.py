"""Kubernetes-shaped objects: read, fill in, check, print. Pure: plain dicts in and out, no I/O.

``claim``, ``volume`` and so on hold the rules of each kind and typed views of admitted objects.
"""

from __future__ import annotations

from fusevol.objects import claim, containers, payload, pod, snapshot, snapshotclass, storageclass, volume
from fusevol.objects.admission import admit, admit_update
from fusevol.objects.dump import dump
from fusevol.objects.kinds import DEFAULT_NAMESPACE, KINDS, Key, Kind, Obj, find_kind, key
from fusevol.objects.load import load
from fusevol.objects.table import age, size, table

__all__ = [
    "DEFAULT_NAMESPACE",
    "KINDS",
    "Key",
    "Kind",
    "Obj",
    "admit",
    "admit_update",
    "age",
    "claim",
    "containers",
    "dump",
    "find_kind",
    "key",
    "load",
    "payload",
    "pod",
    "size",
    "snapshot",
    "snapshotclass",
    "storageclass",
    "table",
    "volume",
]
