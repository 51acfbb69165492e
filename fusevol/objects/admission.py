"""The way of an object into the store: defaults filled in, all of its rules checked, all errors told at once."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fusevol.errors import InvalidError
from fusevol.objects import (
    claim,
    configmap,
    meta,
    pod,
    secret,
    snapshot,
    snapshotclass,
    snapshotcontent,
    storageclass,
    volume,
)
from fusevol.objects.fields import Field, Problems, quoted
from fusevol.objects.kinds import BY_NAME, KINDS, MAX_DEPTH, Kind, Obj

_RULES: dict[str, ModuleType] = {
    "StorageClass": storageclass,
    "PersistentVolume": volume,
    "PersistentVolumeClaim": claim,
    "Pod": pod,
    "Secret": secret,
    "ConfigMap": configmap,
    "VolumeSnapshot": snapshot,
    "VolumeSnapshotClass": snapshotclass,
    "VolumeSnapshotContent": snapshotcontent,
}
"""Each with ``validate``, ``default`` and ``validate_update``."""


def admit(obj: Obj) -> Obj:
    """A copy of *obj* with defaults, as a new object is stored.

    What only the server sets (uid, resourceVersion, status ...) is dropped, so that the output of ``kubectl get -o
    yaml`` can be given; null is the same as absent; fields that are not known are kept. Raises :class:`InvalidError`
    with all errors in Kubernetes' form: ``PersistentVolumeClaim "data" is invalid: spec.accessModes: Required value``.
    """
    new: Obj = _decoded(obj)
    kind = _kind_of(new)
    problems = Problems()
    root = Field("", new, problems)
    meta.validate(root.child("metadata"), kind)
    _RULES[kind.name].validate(root)
    problems.refuse(kind.name, root.at("metadata", "name").value)
    new.pop("status", None)
    meta.default(new, kind)
    _RULES[kind.name].default(new)
    return new


def admit_update(old: Obj, new: Obj) -> Obj:
    """What is stored when the stored object *old* is replaced by *new*.

    The rules of :func:`admit` and those of what may change (volume-semantics 4.2); what only the server sets is
    carried over from *old*. Raises :class:`InvalidError`.
    """
    made = admit(new)
    kind = BY_NAME[made["kind"]]
    if kind.name != old["kind"]:
        raise InvalidError(f"The object is a {old['kind']} and cannot become a {kind.name}: give it another name.")
    problems = Problems()
    root = Field("", made, problems)
    meta.validate_update(root.child("metadata"), old, kind)
    _RULES[kind.name].validate_update(root, old)
    problems.refuse(kind.name, made["metadata"]["name"])
    meta.carry_over(old, made)
    return made


def _decoded(value: Any, depth: int = 0) -> Any:
    """A deep copy without nulls in mappings: to Kubernetes they are absent."""
    if depth > MAX_DEPTH:
        raise InvalidError(f"The object is nested too deeply: write at most {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        return {k: _decoded(v, depth + 1) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_decoded(v, depth + 1) for v in value]
    return value


def _kind_of(obj: Any) -> Kind:
    if not isinstance(obj, dict):
        raise InvalidError("An object must be a mapping with apiVersion, kind, metadata and spec.")
    word, version = obj.get("kind"), obj.get("apiVersion")
    known = ", ".join(k.name for k in KINDS)
    if not isinstance(word, str) or not word:
        raise InvalidError(f"The object has no kind: write one of {known}.")
    if not isinstance(version, str) or not version:
        wanted = f": write {BY_NAME[word].api_version}" if word in BY_NAME else ""
        raise InvalidError(f"The {quoted(word)} object has no apiVersion{wanted}.")
    kind = BY_NAME.get(word)
    if kind is None:
        raise InvalidError(f"no matches for kind {quoted(word)} in version {quoted(version)}: the kinds are {known}.")
    if version != kind.api_version:
        raise InvalidError(
            f"no matches for kind {quoted(word)} in version {quoted(version)}: write apiVersion: {kind.api_version}."
        )
    return kind
