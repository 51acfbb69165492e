"""``metadata``, label selectors and node affinity: what several kinds share."""

from __future__ import annotations

import copy

from fusevol.objects import names
from fusevol.objects.fields import Field
from fusevol.objects.kinds import DEFAULT_NAMESPACE, Kind, Obj

SERVER_FIELDS = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "managedFields",
)
"""What only the server sets: ignored in what users give."""

_ANNOTATIONS_LENGTH = 256 * 1024


def validate(metadata: Field, kind: Kind) -> None:
    """Report what is wrong with an object's metadata."""
    metadata.mapping()
    name = metadata.child("name")
    name.needed(_NO_GENERATION if metadata.child("generateName") else "name or generateName is required")
    names.subdomain(name)
    if kind.namespaced:
        names.label(metadata.child("namespace"))
    labels(metadata.child("labels"))
    _annotations(metadata.child("annotations"))
    for finalizer in metadata.child("finalizers").items():
        if text := finalizer.needed():
            for wrong in names.qualified(text):
                finalizer.invalid(wrong)
    for owner in metadata.child("ownerReferences").items():
        owner.mapping()
        for word, detail in (
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ):
            owner.child(word).needed(detail)


_NO_GENERATION = "names are not generated here, write one instead of generateName"


def labels(field: Field) -> None:
    """Report keys and values that are no labels."""
    for key in field.mapping():
        for wrong in names.qualified(key):
            Field(field.path, key, field.problems).invalid(wrong)
        value = field.entry(key)
        for wrong in names.label_value(value.text()):
            Field(field.path, value.value, field.problems).invalid(wrong)


def _annotations(field: Field) -> None:
    size = 0
    for key in field.mapping():
        for wrong in names.qualified(key.lower()):
            Field(field.path, key, field.problems).invalid(wrong)
        size += len((key + field.entry(key).text()).encode("utf-8", "surrogatepass"))
    if size > _ANNOTATIONS_LENGTH:
        field.too_long(_ANNOTATIONS_LENGTH)


def selector(field: Field) -> None:
    """Report what is wrong with a label selector (``matchLabels``, ``matchExpressions``)."""
    field.mapping()
    labels(field.child("matchLabels"))
    for expression in field.child("matchExpressions").items():
        _expression(expression, {"In", "NotIn"}, {"Exists", "DoesNotExist"}, "not a valid selector operator")


def _expression(field: Field, listed: set[str], bare: set[str], unknown: str) -> None:
    field.mapping()
    key, operator, values = field.child("key"), field.child("operator"), field.child("values")
    if text := key.needed():
        for wrong in names.qualified(text):
            key.invalid(wrong)
    count = len(values.texts())
    word = operator.text()
    if word in listed:
        if not count:
            values.required("must be specified when `operator` is 'In' or 'NotIn'")
    elif word in bare:
        if count:
            values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    elif word in {"Gt", "Lt"} and not unknown:
        if count != 1:
            values.required("must be specified single value when `operator` is 'Lt' or 'Gt'")
    elif operator.value is None or isinstance(operator.value, str):
        operator.invalid(unknown or "not a valid selector operator")


def _field_expression(expression: Field) -> None:
    """Report what is wrong with a requirement on a field of nodes, of which there is one (as the API server does)."""
    expression.mapping()
    key, operator, values = (expression.child(name) for name in ("key", "operator", "values"))
    if operator.value not in {"In", "NotIn"}:
        operator.invalid("not a valid selector operator")
    elif len(values.items()) != 1:
        values.required("must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
    if key.value != "metadata.name":
        key.invalid("not a valid field selector key")


def node_affinity(field: Field) -> None:
    """Report what is wrong with a volume's ``nodeAffinity``."""
    if not field:
        return
    field.mapping()
    required = field.child("required")
    if not required:
        required.required("must specify required node constraints")
        return
    required.mapping()
    terms = required.child("nodeSelectorTerms")
    found = terms.items()
    if not found:
        terms.required("must have at least one node selector term")
    for term in found:
        term.mapping()
        for expression in term.child("matchExpressions").items():
            _expression(expression, {"In", "NotIn"}, {"Exists", "DoesNotExist"}, "")
        for expression in term.child("matchFields").items():
            _field_expression(expression)


def default(obj: Obj, kind: Kind) -> None:
    """Set the namespace, and drop what only the server sets and what does not belong."""
    metadata = obj["metadata"]
    for field in SERVER_FIELDS:
        metadata.pop(field, None)
    metadata.pop("generateName", None)
    if not kind.namespaced:
        metadata.pop("namespace", None)  # the API server drops it as well
    elif not metadata.get("namespace"):
        metadata["namespace"] = DEFAULT_NAMESPACE


def carry_over(old: Obj, new: Obj) -> None:
    """Give *new* what the server has set in *old*, status included."""
    for field in SERVER_FIELDS:
        if field in old["metadata"]:
            new["metadata"][field] = copy.deepcopy(old["metadata"][field])
        else:
            new["metadata"].pop(field, None)
    new.pop("status", None)
    if "status" in old:
        new["status"] = copy.deepcopy(old["status"])


def validate_update(metadata: Field, old: Obj, kind: Kind) -> None:
    """Report a change of what names an object. Namespaces are defaulted already."""
    for word in ("name", "namespace") if kind.namespaced else ("name",):
        field = metadata.child(word)
        if field.value != old["metadata"].get(word):
            field.invalid("field is immutable")
