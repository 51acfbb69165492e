"""VolumeSnapshotContent: its rules (volume-semantics 4.16)."""

from __future__ import annotations

from fusevol.objects import names
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj
from fusevol.objects.snapshot import DELETION_POLICIES, exactly_one
from fusevol.objects.volume import VOLUME_MODES


def validate(obj: Field) -> None:
    """Report what is wrong with a VolumeSnapshotContent."""
    spec = obj.child("spec")
    spec.mapping()
    spec.child("driver").needed()
    policy = spec.child("deletionPolicy")
    if policy.needed():
        policy.one_of(DELETION_POLICIES)
    exactly_one(spec.child("source"), ("volumeHandle", "snapshotHandle"))
    reference = spec.child("volumeSnapshotRef")
    reference.mapping()
    for word in ("name", "namespace"):
        reference.child(word).needed()
        names.subdomain(reference.child(word))
    names.subdomain(spec.child("volumeSnapshotClassName"))
    spec.child("sourceVolumeMode").one_of(VOLUME_MODES)


def default(obj: Obj) -> None:
    """Nothing is left out."""


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes of what stays as it was made."""
    for word in ("driver", "source", "sourceVolumeMode"):
        field = obj.at("spec", word)
        if (field.value or None) != (old["spec"].get(word) or None):
            field.invalid("field is immutable")
