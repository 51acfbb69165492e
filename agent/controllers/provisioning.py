"""From a claim and its class to a volume and its PersistentVolume (volume-semantics 4.9). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from agent.config import DRIVER
from agent.controllers import matching
from agent.controllers.binding import volume_name
from agent.controllers.view import (
    BACKEND_FINALIZER,
    PROVISIONED_BY,
    VOLUME_PROTECTION,
    claim_key,
    class_of,
    reference,
)
from fusevol import quantity
from fusevol.errors import InvalidError

Obj = dict[str, Any]

_PARAMETERS = {"pool", "mode", "inodes", "quota"}
_RESERVED = "csi.storage.k8s.io/"
_MODE = re.compile(r"0?[0-7]{3,4}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The volume that a claim asks for."""

    pool: str
    volume: str
    capacity: int
    """Bytes."""
    inodes: int | None
    mode: int
    """Permission bits of the volume's root directory."""
    enforced: bool
    """Whether a write past capacity or inodes shall fail."""
    owner: dict[str, str]


def plan(claim: Obj, storage_class: Obj) -> Plan:
    """What to make. Raises :class:`InvalidError` for what this provisioner cannot do."""
    name = storage_class["metadata"]["name"]
    spec = claim["spec"]
    if spec.get("selector"):
        raise InvalidError("claim Selector is not supported")
    if matching.mode_of(claim) != "Filesystem":
        raise InvalidError("volumeMode Block is not supported: ask for volumeMode Filesystem.")
    if spec.get("dataSource") or spec.get("dataSourceRef"):
        raise InvalidError("dataSource is not supported: ask for an empty volume and copy the data into it.")
    parameters = {str(k): str(v) for k, v in (storage_class.get("parameters") or {}).items()}
    unknown = sorted(k for k in parameters if k not in _PARAMETERS and not k.startswith(_RESERVED))
    if unknown:
        known = ", ".join(sorted(_PARAMETERS))
        raise InvalidError(f'StorageClass "{name}" has unknown parameters {", ".join(unknown)}: known are {known}.')
    mode = parameters.get("mode", "0777")
    if not _MODE.fullmatch(mode):
        raise InvalidError(f'The parameter mode "{mode}" of StorageClass "{name}" is not octal, such as 0770.')
    inodes = parameters.get("inodes")
    if inodes is not None and not (inodes.isdigit() and int(inodes) > 0):
        raise InvalidError(f'The parameter inodes "{inodes}" of StorageClass "{name}" is not a positive number.')
    quota = parameters.get("quota", "hard")
    if quota not in {"hard", "none"}:
        raise InvalidError(
            f'The parameter quota "{quota}" of StorageClass "{name}" is not known: write "hard", which is the default '
            'and lets no write pass the limit, or "none".'
        )
    namespace, claim_name = claim_key(claim)
    return Plan(
        pool=parameters.get("pool", "default"),
        volume=volume_name(claim),
        capacity=matching.requested(claim),
        inodes=int(inodes) if inodes else None,
        mode=int(mode, 8),
        enforced=quota == "hard",
        owner={"namespace": namespace, "claim": claim_name, "uid": claim["metadata"]["uid"]},
    )


def handle(pool: str, volume: str) -> str:
    """The ``volumeHandle`` of a volume."""
    return f"{pool}/{volume}"


def parse_handle(text: str) -> tuple[str, str]:
    """Pool and volume id of a ``volumeHandle``. Raises :class:`InvalidError`."""
    pool, slash, volume = text.partition("/")
    if not (pool and slash and volume) or "/" in volume:
        raise InvalidError(f'The volumeHandle "{text}" does not name a volume here: write POOL/VOLUME.')
    return pool, volume


def persistent_volume(claim: Obj, storage_class: Obj, made: Plan, capacity: int, provisioner: str) -> Obj:
    """The PersistentVolume of a volume that was made for *claim*; *capacity* in bytes."""
    policy = storage_class.get("reclaimPolicy") or "Delete"
    spec: Obj = {
        "accessModes": list(claim["spec"].get("accessModes") or []),
        "capacity": {"storage": quantity.format_bytes(capacity)},
        "claimRef": reference(claim),
        "csi": {"driver": DRIVER, "volumeHandle": handle(made.pool, made.volume)},
        "persistentVolumeReclaimPolicy": policy,
        "storageClassName": class_of(claim) or "",
        "volumeMode": matching.mode_of(claim),
    }
    if storage_class.get("mountOptions"):
        spec["mountOptions"] = list(storage_class["mountOptions"])
    kept = [VOLUME_PROTECTION, *([BACKEND_FINALIZER] if policy == "Delete" else [])]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": made.volume,
            "annotations": {PROVISIONED_BY: provisioner},
            "finalizers": kept,
        },
        "spec": spec,
    }
