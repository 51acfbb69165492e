"""Secret: its rules (volume-semantics 3.3). Values never appear in a message."""

from __future__ import annotations

import base64

from fusevol.objects import payload
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj


def validate(obj: Field) -> None:
    """Report what is wrong with a Secret."""
    size = payload.encoded(_hidden(obj.child("data"))) + payload.texts(_hidden(obj.child("stringData")))
    payload.sized(obj.child("data"), size)
    obj.child("type").text()
    obj.child("immutable").flag()


def _hidden(field: Field) -> Field:
    """*field* with all values that are no text replaced, so that no report prints one."""
    if not isinstance(field.value, dict):
        return field
    shown = {k: v if isinstance(v, str) else ["<not shown>"] for k, v in field.value.items()}
    return Field(field.path, shown, field.problems)


def default(obj: Obj) -> None:
    """``stringData`` becomes part of ``data``; the type is ``Opaque`` if none is given."""
    data = {k: "".join(str(v).split()) for k, v in (obj.get("data") or {}).items()}
    for key, text in (obj.pop("stringData", None) or {}).items():
        data[key] = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
    if data:
        obj["data"] = data
    obj.setdefault("type", "Opaque")


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes of what stays as it was made."""
    kind = obj.child("type")
    if kind.value != old.get("type", "Opaque"):
        kind.invalid("field is immutable")
    payload.frozen(obj, old, ("data",))
