"""PersistentVolumeClaim: its rules (volume-semantics 4.1, 4.2) and what it says."""

from __future__ import annotations

from typing import Any

from fusevol import quantity
from fusevol.objects import meta, names
from fusevol.objects.fields import Field, Problems
from fusevol.objects.kinds import Obj
from fusevol.objects.volume import CLASS_ANNOTATION, VOLUME_MODES, access_mode_rules, canonical, positive

_IMMUTABLE = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"

_CLAIM = "PersistentVolumeClaim"
_SOURCES = {("", _CLAIM), ("snapshot.storage.k8s.io", "VolumeSnapshot")}


def validate(obj: Field) -> None:
    """Report what is wrong with a claim."""
    spec = obj.child("spec")
    validate_spec(spec)
    annotation = obj.at("metadata", "annotations").entry(CLASS_ANNOTATION)
    if annotation:
        names.subdomain(annotation)


def validate_spec(spec: Field) -> None:
    """Report what is wrong with the spec of a claim, or of a claim's template in a Pod."""
    spec.mapping()
    access_mode_rules(spec.child("accessModes"), "at least 1 access mode is required")
    meta.selector(spec.child("selector"))
    resources = spec.child("resources")
    resources.mapping()
    requests, limits = resources.child("requests"), resources.child("limits")
    requests.mapping()
    limits.mapping()
    # Kubernetes writes the path as spec.resources[storage]; the real one is easier to find.
    positive(requests.child("storage"))
    if limits.child("storage"):
        positive(limits.child("storage"))
    names.subdomain(spec.child("storageClassName"))
    spec.child("volumeName").text()
    spec.child("volumeMode").one_of(VOLUME_MODES)
    names.subdomain(spec.child("volumeAttributesClassName"))
    _data_sources(spec)


def _data_sources(spec: Field) -> None:
    """What the volume is filled from (4.11)."""
    for word in ("dataSource", "dataSourceRef"):
        source = spec.child(word)
        if source:
            source.mapping()
            source.child("name").needed()
            source.child("kind").needed()
            source.child("apiGroup").text()
    reference, source = spec.child("dataSourceRef"), spec.child("dataSource")
    kind = reference.child("kind")
    if kind.value and not reference.child("apiGroup").value and kind.value != _CLAIM:
        kind.invalid("must be 'PersistentVolumeClaim' when referencing the default apiGroup")
    if reference.child("namespace").text():
        reference.child("namespace").forbidden("sources in other namespaces are not served here")
    if reference and source and _named(reference.mapping()) != _named(source.mapping()):
        source.invalid("must match dataSourceRef")


def _named(source: Obj) -> tuple[Any, ...]:
    return (source.get("apiGroup") or "", source.get("kind"), source.get("name"))


def default(obj: Obj) -> None:
    """Fill in what is left out, and write quantities in their canonical form."""
    default_spec(obj["spec"])


def default_spec(spec: Obj) -> None:
    """The same for the spec alone."""
    spec.setdefault("volumeMode", "Filesystem")
    source, reference = spec.get("dataSource"), spec.get("dataSourceRef")
    if source and not reference:
        if (source.get("apiGroup") or "", source["kind"]) in _SOURCES:
            spec["dataSourceRef"] = dict(source)
        else:
            del spec["dataSource"]  # as Kubernetes drops what no provisioner of its own knows
    elif reference and not source:
        spec["dataSource"] = dict(reference)
    for part in ("requests", "limits"):
        canonical(spec["resources"].get(part) or {}, "storage")


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes that may not be made (4.2). Both sides are defaulted."""
    spec, before = obj.child("spec"), old["spec"]
    after = spec.mapping()
    changed = [
        word
        for word in sorted({*after, *before} - {"resources", "volumeAttributesClassName"})
        if after.get(word) != before.get(word) and not _set_once(word, before)
    ]
    if _limits(after) != _limits(before):
        changed.append("resources.limits")
    if changed:
        spec.forbidden(f"{_IMMUTABLE} (changed: {', '.join(changed)})")
    _size(spec.at("resources", "requests", "storage"), old)


def _set_once(word: str, before: Obj) -> bool:
    return (word == "volumeName" and not before.get(word)) or (word == "storageClassName" and before.get(word) is None)


def _limits(spec: Obj) -> Any:
    return (spec.get("resources") or {}).get("limits") or None


def _size(field: Field, old: Obj) -> None:
    status = old.get("status") or {}
    new = field.quantity()
    was = Field("", (old["spec"]["resources"].get("requests") or {}).get("storage", 0), Problems()).quantity()
    if new is None or was is None or new == was:
        return
    if status.get("phase") != "Bound":
        field.forbidden("Only bound persistent volume claims can be expanded")
    elif new < was:
        granted = (status.get("capacity") or {}).get("storage")
        if granted is None:
            field.forbidden("field can not be less than previous value")
        elif new <= quantity.Quantity.parse(granted):
            field.forbidden("field can not be less than status.capacity")


# -- views


def request_bytes(obj: Obj) -> int:
    """Bytes that the claim asks for."""
    return quantity.parse(obj["spec"]["resources"]["requests"]["storage"])


def capacity_bytes(obj: Obj) -> int | None:
    """Bytes that the claim was given; None while it is not bound."""
    granted = ((obj.get("status") or {}).get("capacity") or {}).get("storage")
    return None if granted is None else quantity.parse(granted)


def access_modes(obj: Obj) -> tuple[str, ...]:
    """Access modes that are asked for, in the order of the object."""
    return tuple(obj["spec"].get("accessModes") or ())


def storage_class(obj: Obj) -> str | None:
    """The class that is asked for: None for whatever is the default, ``""`` for none (4.5)."""
    annotations = obj["metadata"].get("annotations") or {}
    name = annotations.get(CLASS_ANNOTATION, obj["spec"].get("storageClassName"))
    return None if name is None else str(name)


def volume_name(obj: Obj) -> str:
    """The volume it is bound to, or wants; ``""`` for none."""
    return str(obj["spec"].get("volumeName") or "")
