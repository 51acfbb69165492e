"""PersistentVolume: its rules (volume-semantics 2.4, 4.1, 4.2) and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusevol import quantity
from fusevol.objects import meta, names, sources
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj

ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
VOLUME_MODES = ("Block", "Filesystem")
RECLAIM_POLICIES = ("Delete", "Recycle", "Retain")
CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"

SOURCES: dict[str, Callable[[Field], object]] = {
    "hostPath": sources.host_path,
    "local": sources.local,
    "csi": sources.csi_volume,
    "flexVolume": sources.flex_volume,
    "cephfs": sources.cephfs,
    "nfs": sources.nfs,
    "iscsi": sources.iscsi,
    **dict.fromkeys(sources.UNCHECKED, Field.mapping),
}
"""Where a volume's bytes may be, and the rules of each."""


def validate(obj: Field) -> None:
    """Report what is wrong with a PersistentVolume."""
    spec = obj.child("spec")
    spec.mapping()
    access_mode_rules(spec.child("accessModes"))
    capacity = spec.child("capacity")
    if not capacity.mapping():
        capacity.required()
    elif set(capacity.mapping()) != {"storage"}:
        Field(capacity.path, sorted(capacity.mapping()), obj.problems).unsupported(["storage"])
    else:
        positive(capacity.entry("storage"))
    policy = spec.child("persistentVolumeReclaimPolicy").one_of(RECLAIM_POLICIES)
    spec.child("volumeMode").one_of(VOLUME_MODES)
    names.subdomain(spec.child("storageClassName"))
    spec.child("mountOptions").texts()
    claim_ref = spec.child("claimRef")
    claim_ref.mapping()
    for word in ("name", "namespace", "uid", "kind", "apiVersion", "resourceVersion"):
        claim_ref.child(word).text()
    meta.node_affinity(spec.child("nodeAffinity"))
    kind = sources.exactly_one(spec, SOURCES)
    if kind == "hostPath" and policy == "Recycle" and spec.at("hostPath", "path").text() == "/":
        spec.child("persistentVolumeReclaimPolicy").forbidden("may not be 'recycle' for a hostPath mount of '/'")
    if kind == "local" and not spec.child("nodeAffinity"):
        spec.child("nodeAffinity").required("Local volume requires node affinity")


def access_mode_rules(field: Field, detail: str = "") -> None:
    """Report access modes that are missing, unknown or do not go together."""
    modes = field.items()
    if not modes and (field.value is None or isinstance(field.value, list)):
        field.required(detail)
    found = {mode.one_of(ACCESS_MODES) for mode in modes if mode.present()}
    if "ReadWriteOncePod" in found and len(modes) > 1:
        field.forbidden("may not use ReadWriteOncePod with other access modes")


def positive(field: Field) -> None:
    """Report a size that is missing, no quantity, or not above zero."""
    if not field:
        field.required()
        return
    size = field.quantity()
    if size is not None and size.amount <= 0:
        field.invalid("must be greater than zero")


def default(obj: Obj) -> None:
    """Fill in what is left out, and write quantities in their canonical form."""
    spec = obj["spec"]
    spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
    spec.setdefault("volumeMode", "Filesystem")
    canonical(spec["capacity"], "storage")
    if "hostPath" in spec:
        spec["hostPath"].setdefault("type", "")
    reference = spec.get("claimRef")
    if reference:
        reference.setdefault("kind", "PersistentVolumeClaim")
        reference.setdefault("apiVersion", "v1")


def canonical(mapping: dict[str, Any], key: str) -> None:
    """Write the quantity at *key*, if there is one, as Kubernetes prints it."""
    if key in mapping:
        mapping[key] = str(quantity.Quantity.parse(mapping[key]))


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes of what stays as it was made."""
    spec, before = obj.child("spec"), old["spec"]
    if {k: _fixed(v) for k, v in spec.mapping().items() if k in SOURCES} != {
        k: _fixed(v) for k, v in before.items() if k in SOURCES
    }:
        Field("spec.persistentvolumesource", None, obj.problems).forbidden(
            "spec.persistentvolumesource is immutable after creation"
        )
    mode = spec.child("volumeMode")
    if mode.value != before.get("volumeMode", "Filesystem"):
        mode.invalid("field is immutable")
    affinity = spec.child("nodeAffinity")
    if before.get("nodeAffinity") and affinity.value != before["nodeAffinity"]:
        affinity.invalid("field is immutable")


def _fixed(source: Any) -> Any:
    """A source without what may be added to it later: the secret for expansion (4.2)."""
    if not isinstance(source, dict):
        return source
    return {k: v for k, v in source.items() if k not in {"controllerExpandSecretRef", "nodeExpandSecretRef"}}


# -- views


def source(obj: Obj) -> tuple[str, Obj]:
    """Where the bytes are: the kind of source, such as ``csi``, and its fields."""
    spec = obj["spec"]
    return next((k, spec[k] or {}) for k in SOURCES if k in spec)


def capacity_bytes(obj: Obj) -> int:
    """Bytes of the volume."""
    return quantity.parse(obj["spec"]["capacity"]["storage"])


def storage_class(obj: Obj) -> str:
    """The class; ``""`` for none. The old annotation wins over the field."""
    annotations = obj["metadata"].get("annotations") or {}
    return str(annotations.get(CLASS_ANNOTATION) or obj["spec"].get("storageClassName") or "")


def access_modes(obj: Obj) -> tuple[str, ...]:
    """Access modes in the order of the object."""
    return tuple(obj["spec"].get("accessModes") or ())
