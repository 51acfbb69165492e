"""VolumeSnapshotClass: its rules (volume-semantics 4.16)."""

from __future__ import annotations

from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj
from fusevol.objects.snapshot import DELETION_POLICIES

DEFAULT_ANNOTATION = "snapshot.storage.kubernetes.io/is-default-class"


def validate(obj: Field) -> None:
    """Report what is wrong with a VolumeSnapshotClass."""
    obj.child("driver").needed()
    policy = obj.child("deletionPolicy")
    if policy.needed():
        policy.one_of(DELETION_POLICIES)
    parameters = obj.child("parameters")
    for key in parameters.mapping():
        parameters.entry(key).text()


def default(obj: Obj) -> None:
    """Nothing is left out."""


def validate_update(obj: Field, old: Obj) -> None:
    """Everything but the driver may change."""
    driver = obj.child("driver")
    if driver.value != old["driver"]:
        driver.invalid("field is immutable")


def is_default(obj: Obj) -> bool:
    """Whether snapshots of this driver's volumes that name no class get this one."""
    return (obj["metadata"].get("annotations") or {}).get(DEFAULT_ANNOTATION) == "true"
