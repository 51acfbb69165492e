"""ConfigMap: its rules (volume-semantics 3.3)."""

from __future__ import annotations

from fusevol.objects import payload
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj


def validate(obj: Field) -> None:
    """Report what is wrong with a ConfigMap."""
    data, binary = obj.child("data"), obj.child("binaryData")
    size = payload.texts(data) + payload.encoded(binary)
    payload.sized(data, size)
    for key in set(data.mapping()) & set(binary.mapping()):
        Field(f"data[{key}]", key, obj.problems).invalid("duplicate of key present in binaryData")
    obj.child("immutable").flag()


def default(obj: Obj) -> None:
    """Nothing is left out."""


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes of one that was made immutable."""
    payload.frozen(obj, old, ("data", "binaryData"))
