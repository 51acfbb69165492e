"""From a claim and its class to a volume and its PersistentVolume (volume-semantics 4.9). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent import duration
from agent.config import DRIVER
from agent.controllers import matching, schedule
from agent.controllers.view import (
    BACKEND_FINALIZER,
    PROVISIONED_BY,
    VOLUME_PROTECTION,
    annotations_of,
    claim_key,
    class_of,
    reference,
    volume_name,
)
from fusevol import quantity
from fusevol.errors import InvalidError
from fusevol.objects import share
from fusevol.objects.share import Share
from fusevol.pool.trash import RETENTION

Obj = dict[str, Any]

PARAMETERS = {"pool", "mode", "inodes", "quota", "trashRetention"}
HANDLE = "fusevol.io/volume-handle"
"""Annotation of a PersistentVolume whose source has no room for what a ``volumeHandle`` says."""
POOL = "fusevol.io/pool"
"""Annotation with the share that the volume's pool is in (``Share.dump``)."""
_CEPH_PARAMETERS = {word.lower() for word in share.PARAMETERS}
CLASS_LABEL = "class"
"""Label of a volume's record: the StorageClass of the claim that it was made for."""
MODES_LABEL = "access-modes"
"""Label of a volume's record: the claim's access modes, with commas."""
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
    shared: bool = False
    """Whether several nodes may write to it at once."""
    share: Share | None = None
    """Where the pool is, if the class says that itself."""
    labels: dict[str, str] = field(default_factory=dict)
    """For the volume's record: how long it is kept when it is deleted, and what its PersistentVolume says."""


def plan(claim: Obj, storage_class: Obj) -> Plan:
    """What to make. Raises :class:`InvalidError` for what this provisioner cannot do."""
    name = storage_class["metadata"]["name"]
    spec = claim["spec"]
    if spec.get("selector") is not None:
        raise InvalidError("claim Selector is not supported")
    if matching.mode_of(claim) != "Filesystem":
        provisioner = storage_class["provisioner"]
        raise InvalidError(f"{provisioner} does not support block volume provisioning: ask for volumeMode Filesystem.")
    parameters = {str(k): str(v) for k, v in (storage_class.get("parameters") or {}).items()}
    place = share_of(storage_class)
    known_here = PARAMETERS if place is None else {*PARAMETERS - {"pool"}, *share.PARAMETERS}
    unknown = sorted(
        k
        for k in parameters
        if k not in known_here
        and k not in schedule.PARAMETERS
        and not k.startswith(_RESERVED)
        and not (place is not None and k.lower() in _CEPH_PARAMETERS)
    )
    if unknown:
        known = ", ".join(sorted(known_here | schedule.PARAMETERS))
        raise InvalidError(f'StorageClass "{name}" has unknown parameters {", ".join(unknown)}: known are {known}.')
    schedule.Schedule.of(storage_class)
    read = read_parameters(parameters, f'StorageClass "{name}"')
    namespace, claim_name = claim_key(claim)
    return Plan(
        pool=read.pool if place is None else place.pool,
        volume=volume_name(claim),
        capacity=matching.requested(claim),
        inodes=read.inodes,
        mode=read.mode,
        enforced=read.enforced,
        owner={"namespace": namespace, "claim": claim_name, "uid": claim["metadata"]["uid"]},
        shared="ReadWriteMany" in (spec.get("accessModes") or ()),
        share=place,
        labels={
            "kind": "claim",
            CLASS_LABEL: class_of(claim) or "",
            MODES_LABEL: ",".join(spec.get("accessModes") or []),
            **retention_label(read.retention),
        },
    )


def retention_label(retention: int) -> dict[str, str]:
    """The label of a volume that is kept in the trash for so many seconds."""
    return {RETENTION: str(retention)} if retention else {}


class Parameters(NamedTuple):
    """What a StorageClass says of its volumes."""

    pool: str
    inodes: int | None
    mode: int
    enforced: bool
    retention: int
    """Seconds that a deleted one stays in the trash."""


def read_parameters(parameters: Mapping[str, str], whose: str) -> Parameters:
    """Those of :data:`PARAMETERS`, of *whose*, such as ``StorageClass "fast"``. Raises :class:`InvalidError`."""
    mode = parameters.get("mode", "0777")
    if not _MODE.fullmatch(mode):
        raise InvalidError(f'The parameter mode "{mode}" of {whose} is not octal, such as 0770.')
    inodes = parameters.get("inodes")
    if inodes is not None and not (inodes.isdigit() and int(inodes) > 0):
        raise InvalidError(f'The parameter inodes "{inodes}" of {whose} is not a positive number.')
    quota = parameters.get("quota", "hard")
    if quota not in {"hard", "none"}:
        raise InvalidError(
            f'The parameter quota "{quota}" of {whose} is not known: write "hard", which is the default '
            'and lets no write pass the limit, or "none".'
        )
    retention = duration.seconds(parameters.get("trashRetention", "0"), f"The parameter trashRetention of {whose}")
    return Parameters(
        pool=parameters.get("pool", "default"),
        inodes=int(inodes) if inodes else None,
        mode=int(mode, 8),
        enforced=quota == "hard",
        retention=retention,
    )


def share_of(storage_class: Obj) -> Share | None:
    """The CephFS that a class names, if it does. Raises :class:`InvalidError`."""
    parameters = {str(k): str(v) for k, v in (storage_class.get("parameters") or {}).items()}
    if not share.is_share(str(storage_class.get("provisioner")), parameters):
        return None
    return Share.of_class(storage_class["metadata"]["name"], parameters)


def share_of_volume(volume: Obj) -> Share | None:
    """The CephFS that a PersistentVolume made here is on, if it is on one. Raises :class:`InvalidError`."""
    text = annotations_of(volume).get(POOL)
    return None if text is None or not volume["spec"].get("cephfs") else Share.load(text)


def handle(pool: str, volume: str) -> str:
    """The ``volumeHandle`` of a volume."""
    return f"{pool}/{volume}"


def handle_of(volume: Obj) -> str | None:
    """The handle of a PersistentVolume that is in a pool of this node; ``None`` if it is not."""
    spec = volume["spec"]
    if (spec.get("csi") or {}).get("driver") == DRIVER:
        return str(spec["csi"].get("volumeHandle"))
    return annotations_of(volume).get(HANDLE) if spec.get("cephfs") else None


def parse_handle(text: str) -> tuple[str, str]:
    """Pool and volume id of a ``volumeHandle``. Raises :class:`InvalidError`."""
    pool, slash, volume = text.partition("/")
    if not (pool and slash and volume) or "/" in volume:
        raise InvalidError(f'The volumeHandle "{text}" does not name a volume here: write POOL/VOLUME.')
    return pool, volume


def persistent_volume(
    claim: Obj, storage_class: Obj, made: Plan, capacity: int, provisioner: str, user: tuple[str, str] | None = None
) -> Obj:
    """The PersistentVolume of a volume that was made for *claim*; *capacity* in bytes.

    *user*: the Ceph user that may mount it alone, and the Secret with its key; none: as who has made it.
    """
    policy = storage_class.get("reclaimPolicy") or "Delete"
    spec: Obj = {
        "accessModes": list(claim["spec"].get("accessModes") or []),
        "capacity": {"storage": quantity.format_bytes(capacity)},
        "claimRef": reference(claim),
        "persistentVolumeReclaimPolicy": policy,
        "storageClassName": class_of(claim) or "",
        "volumeMode": matching.mode_of(claim),
    }
    annotations = {PROVISIONED_BY: provisioner}
    if made.share is None:
        spec["csi"] = {"driver": DRIVER, "volumeHandle": handle(made.pool, made.volume)}
    else:
        name, secret = user or (made.share.user, made.share.secret)
        spec["cephfs"] = {
            "monitors": list(made.share.monitors),
            "path": made.share.path_of(made.volume),
            "user": name,
            "secretRef": {"name": secret, "namespace": made.share.namespace},
        }
        annotations |= {
            "cephFSProvisionerIdentity": DRIVER,
            "cephShare": made.volume,
            HANDLE: handle(made.pool, made.volume),
            POOL: made.share.dump(),
        }
    if storage_class.get("mountOptions"):
        spec["mountOptions"] = list(storage_class["mountOptions"])
    kept = [VOLUME_PROTECTION, *([BACKEND_FINALIZER] if policy == "Delete" else [])]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": made.volume,
            "annotations": annotations,
            "finalizers": kept,
        },
        "spec": spec,
    }
