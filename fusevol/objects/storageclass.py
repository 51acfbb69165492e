"""StorageClass: its rules (volume-semantics 4.1, 4.2) and what it says."""

from __future__ import annotations

from fusevol.objects import names
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj

BINDING_MODES = ("Immediate", "WaitForFirstConsumer")
RECLAIM_POLICIES = ("Delete", "Retain")
DEFAULT_ANNOTATIONS = (
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
)

_PARAMETERS = 512
_PARAMETERS_LENGTH = 256 * 1024


def validate(obj: Field) -> None:
    """Report what is wrong with a StorageClass."""
    provisioner = obj.child("provisioner")
    if text := provisioner.needed():
        for wrong in names.qualified(text.lower()):
            provisioner.invalid(wrong)
    _parameters(obj.child("parameters"))
    obj.child("reclaimPolicy").one_of(RECLAIM_POLICIES)
    obj.child("volumeBindingMode").one_of(BINDING_MODES)
    obj.child("allowVolumeExpansion").flag()
    obj.child("mountOptions").texts()
    for term in obj.child("allowedTopologies").items():
        term.mapping()
        for expression in term.child("matchLabelExpressions").items():
            expression.mapping()
            expression.child("key").needed()
            if not expression.child("values").texts():
                expression.child("values").required()


def _parameters(field: Field) -> None:
    found = field.mapping()
    if len(found) > _PARAMETERS:
        field.too_many(len(found), _PARAMETERS)
    size = 0
    for key in found:
        if not key:
            field.invalid("field can not be empty")
        size += len((key + field.entry(key).text()).encode("utf-8", "surrogatepass"))
    if size > _PARAMETERS_LENGTH:
        field.too_long(_PARAMETERS_LENGTH)


def default(obj: Obj) -> None:
    """Fill in what is left out."""
    obj.setdefault("reclaimPolicy", "Delete")
    obj.setdefault("volumeBindingMode", "Immediate")


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes of what stays as it was made."""
    for word in ("parameters", "provisioner", "reclaimPolicy"):
        field = obj.child(word)
        if (field.value or None) != (old.get(word) or None):
            field.forbidden(f"updates to {word} are forbidden.")
    mode = obj.child("volumeBindingMode")
    if mode.value != old.get("volumeBindingMode", "Immediate"):
        mode.invalid("field is immutable")


def is_default(obj: Obj) -> bool:
    """Whether claims that name no class get this one."""
    annotations = obj["metadata"].get("annotations") or {}
    return any(annotations.get(a) == "true" for a in DEFAULT_ANNOTATIONS)
