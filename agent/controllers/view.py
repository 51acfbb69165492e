"""What a decision may look at, what it may ask for, and Kubernetes' words for both. Pure values."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from agent.config import PROVISIONER
from agent.volumes.node import Node

Obj = dict[str, Any]

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
BETA_STORAGE_PROVISIONER = "volume.beta.kubernetes.io/storage-provisioner"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
BETA_CLASS = "volume.beta.kubernetes.io/storage-class"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
BETA_DEFAULT_CLASS = "storageclass.beta.kubernetes.io/is-default-class"
CLAIM_PROTECTION = "kubernetes.io/pvc-protection"
VOLUME_PROTECTION = "kubernetes.io/pv-protection"
BACKEND_FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
NO_PROVISIONER = "kubernetes.io/no-provisioner"


@dataclass(frozen=True, slots=True)
class Put:
    """Store *object*, a changed copy of the version that the decision saw."""

    object: Obj


@dataclass(frozen=True, slots=True)
class Create:
    """Store a new *object*, unless it is there already."""

    object: Obj


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete *object* (which finalizers may delay)."""

    object: Obj


@dataclass(frozen=True, slots=True)
class Event:
    """Tell what happened to *regarding*."""

    regarding: Obj
    reason: str
    message: str
    warning: bool = False


class Source(NamedTuple):
    """What a volume is filled from."""

    kind: Literal["volume", "snapshot"]
    handle: str
    """``POOL/ID``."""


@dataclass(frozen=True, slots=True)
class Provision:
    """Make a volume and its PersistentVolume for *claim*, filled from *source* if there is one."""

    claim: Obj
    storage_class: Obj
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Move the data of a released *volume* to the trash, then delete the object."""

    volume: Obj


@dataclass(frozen=True, slots=True)
class Discard:
    """Move a volume that was made for *claim*, but never got its PersistentVolume, to the trash."""

    claim: Obj


@dataclass(frozen=True, slots=True)
class Expand:
    """Raise the limit of a bound *volume* to what *claim* asks for now."""

    claim: Obj
    volume: Obj


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Take the snapshot that *content* is to be, or find the one that it names, and tell its status."""

    content: Obj


@dataclass(frozen=True, slots=True)
class DropSnapshot:
    """Delete the snapshot that *content* is, then let the object go."""

    content: Obj


Action = Put | Create | Delete | Event | Provision | Reclaim | Discard | Expand | TakeSnapshot | DropSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The objects at one moment. Nothing in it may be changed."""

    volumes: Mapping[str, Obj] = field(default_factory=dict)
    claims: Mapping[tuple[str, str], Obj] = field(default_factory=dict)
    """By namespace and name."""
    candidates: Collection[Obj] = ()
    """Volumes that belong to no claim, or to the one that is decided on."""
    classes: Mapping[str, Obj] = field(default_factory=dict)
    snapshots: Mapping[tuple[str, str], Obj] = field(default_factory=dict)
    """By namespace and name."""
    contents: Mapping[str, Obj] = field(default_factory=dict)
    """Of snapshots."""
    snapshot_classes: Mapping[str, Obj] = field(default_factory=dict)
    users: Mapping[tuple[str, str], list[str]] = field(default_factory=dict)
    """Names of the Pods that name a claim, by the claim's namespace and name; of the claim that is decided on."""
    attached: Container[str] = frozenset()
    """Uids of the claims that are mounted somewhere."""
    provisioners: tuple[str, ...] = (PROVISIONER,)
    node: Node = field(default_factory=Node)
    now: str = "1970-01-01T00:00:00Z"


def annotations_of(obj: Obj) -> Mapping[str, str]:
    """The annotations of *obj*, maybe none."""
    return obj["metadata"].get("annotations") or {}


def annotate(obj: Obj) -> dict[str, str]:
    """The annotations of *obj* for changing; *obj* must be a copy."""
    found: dict[str, str] | None = obj["metadata"].get("annotations")
    if found is None:
        found = obj["metadata"]["annotations"] = {}
    return found


def finalizers(obj: Obj) -> list[str]:
    """The finalizers of *obj*, maybe none."""
    return obj["metadata"].get("finalizers") or []


def being_deleted(obj: Obj) -> bool:
    """Whether *obj* only waits for its finalizers."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def phase(obj: Obj) -> str:
    """``status.phase``, empty when there is none."""
    return str((obj.get("status") or {}).get("phase") or "")


def volume_name(claim: Obj) -> str:
    """Name and id of the volume that is provisioned for a claim; always the same one, so trying again is harmless."""
    return f"pvc-{claim['metadata']['uid']}"


def class_of(obj: Obj) -> str | None:
    """The class that a claim or volume names: the beta annotation, else the field (4.5); None when neither is there."""
    legacy = annotations_of(obj).get(BETA_CLASS)
    if legacy is not None:
        return legacy
    value = obj["spec"].get("storageClassName")
    return None if value is None else str(value)


def default_class(classes: Mapping[str, Obj]) -> str | None:
    """The default class: the newest of those marked so, on a tie the first by name (4.5)."""
    marked = [
        c
        for c in classes.values()
        if "true" in {annotations_of(c).get(DEFAULT_CLASS), annotations_of(c).get(BETA_DEFAULT_CLASS)}
    ]
    marked.sort(key=lambda c: str(c["metadata"]["name"]))
    marked.sort(key=lambda c: str(c["metadata"].get("creationTimestamp") or ""), reverse=True)
    return str(marked[0]["metadata"]["name"]) if marked else None


def claim_key(claim: Obj) -> tuple[str, str]:
    """Namespace and name of a claim."""
    return str(claim["metadata"].get("namespace") or "default"), str(claim["metadata"]["name"])


def reference(claim: Obj) -> Obj:
    """The full ``claimRef`` of a claim."""
    namespace, name = claim_key(claim)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": namespace,
        "name": name,
        "uid": claim["metadata"]["uid"],
        "resourceVersion": claim["metadata"].get("resourceVersion", ""),
    }


def refers_to(ref: Obj | None, claim: Obj) -> bool:
    """Whether a ``claimRef`` is for this claim: same namespace and name, uid equal or not given."""
    if not ref:
        return False
    namespace, name = claim_key(claim)
    return (ref.get("namespace"), ref.get("name")) == (namespace, name) and ref.get("uid") in {
        None,
        "",
        claim["metadata"]["uid"],
    }


def is_bound_to(ref: Obj | None, claim: Obj) -> bool:
    """Whether a ``claimRef`` names this very claim, uid and all."""
    return refers_to(ref, claim) and bool(ref and ref.get("uid"))
