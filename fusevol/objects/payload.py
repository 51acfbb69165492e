"""Secret and ConfigMap: named values for Pods and drivers (volume-semantics 3.3), and what they say."""

from __future__ import annotations

import base64
import binascii
import re

from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj

MAX_BYTES = 1024 * 1024
"""Of all values of one object (``MaxSecretSize`` in ``k8s.io/api/core/v1``)."""

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_KEY_RULE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
_FROZEN = "field is immutable when `immutable` is set"


def values(obj: Obj) -> dict[str, bytes]:
    """The values of an admitted Secret or ConfigMap by their keys."""
    if obj["kind"] == "Secret":
        return {k: base64.b64decode(v) for k, v in (obj.get("data") or {}).items()}
    text = {k: str(v).encode("utf-8", "surrogatepass") for k, v in (obj.get("data") or {}).items()}
    return text | {k: base64.b64decode(v) for k, v in (obj.get("binaryData") or {}).items()}


def count(obj: Obj) -> int:
    """How many values there are."""
    return len(obj.get("data") or {}) + len(obj.get("binaryData") or {})


def texts(field: Field) -> int:
    """Report keys and values of a mapping of texts that are wrong; the bytes of all values."""
    size = 0
    for key in field.mapping():
        _key(field, key)
        size += len(field.entry(key).text().encode("utf-8", "surrogatepass"))
    return size


def encoded(field: Field) -> int:
    """Report keys and values of a mapping of base64 texts that are wrong; the bytes of all values, decoded."""
    size = 0
    for key in field.mapping():
        _key(field, key)
        value = field.entry(key)
        try:
            size += len(base64.b64decode("".join(value.text().split()), validate=True))
        except (binascii.Error, ValueError):
            # never the value: it is a secret
            Field(value.path, "<not shown>", field.problems).invalid(
                "must be base64 (in a Secret, stringData is plain)"
            )
    return size


def sized(field: Field, size: int) -> None:
    """Report that *size* bytes are too many."""
    if size > MAX_BYTES:
        field.too_long(MAX_BYTES)


def frozen(obj: Field, old: Obj, words: tuple[str, ...]) -> None:
    """Report changes of an object that was made immutable."""
    if not old.get("immutable"):
        return
    if obj.child("immutable").value is not True:
        obj.child("immutable").forbidden("field is immutable when `immutable` is set")
    for word in words:
        if (obj.child(word).value or None) != (old.get(word) or None):
            obj.child(word).forbidden(_FROZEN)


def _key(field: Field, key: str) -> None:
    shown = Field(f"{field.path}[{key}]", key, field.problems)
    if not _KEY.fullmatch(key):
        shown.invalid(_KEY_RULE)
    elif key in {".", ".."}:
        shown.invalid(f"must not be '{key}'")
    elif key.startswith(".."):
        shown.invalid("must not start with '..'")
