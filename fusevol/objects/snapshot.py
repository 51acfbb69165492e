"""VolumeSnapshot and its content: their rules (volume-semantics 4.16)."""

from __future__ import annotations

from fusevol.objects import names
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj

DELETION_POLICIES = ("Delete", "Retain")
_SOURCES = ("persistentVolumeClaimName", "volumeSnapshotContentName")


def validate(obj: Field) -> None:
    """Report what is wrong with a VolumeSnapshot."""
    spec = obj.child("spec")
    spec.mapping()
    exactly_one(spec.child("source"), _SOURCES)
    for word in _SOURCES:
        names.subdomain(spec.at("source", word))
    name = spec.child("volumeSnapshotClassName")
    if name and not name.text():
        name.invalid("volumeSnapshotClassName must not be the empty string when set")
    names.subdomain(name)


def exactly_one(source: Field, words: tuple[str, str]) -> None:
    """Report a source that gives none or both of two *words*."""
    source.mapping()
    given = [word for word in words if source.child(word).text()]
    if not source:
        source.required(f"exactly one of {words[0]} and {words[1]} must be set")
    elif len(given) != 1:
        source.invalid(f"exactly one of {words[0]} and {words[1]} must be set")


def default(obj: Obj) -> None:
    """The class is found when the snapshot is made, not here."""


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes of the source."""
    source = obj.at("spec", "source")
    if source.value != old["spec"]["source"]:
        source.invalid("field is immutable")


# -- views


def claim_name(obj: Obj) -> str:
    """The claim that is, or was, to be taken a snapshot of; empty for one that names its content."""
    return str(obj["spec"]["source"].get("persistentVolumeClaimName") or "")


def content_name(obj: Obj) -> str:
    """The content that the user named; empty for a snapshot that is to be taken."""
    return str(obj["spec"]["source"].get("volumeSnapshotContentName") or "")


def is_ready(obj: Obj) -> bool:
    """Whether a snapshot, or a content, can be restored from."""
    return (obj.get("status") or {}).get("readyToUse") is True
