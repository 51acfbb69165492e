"""The rules of what Pods take from Secrets, ConfigMaps and themselves: volumes of files, and variables.

volume-semantics 3; the messages are those of ``k8s.io/kubernetes/pkg/apis/core/validation``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from fusevol.objects import sources
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj

MODE: Final = 0o644
KINDS: Final = ("secret", "configMap", "downwardAPI", "projected")
_ENTRY: Final = re.compile(r"metadata\.(labels|annotations)\['.+'\]")
_IN_FILES: Final = (
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
)
_IN_VARIABLES: Final = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_CPU_UNITS: Final = ("1m", "1")
_BYTE_UNITS: Final = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
_DIVISORS: Final = {
    "cpu": ("1m and 1 are supported with the cpu", _CPU_UNITS),
    **{
        word: (f"{', '.join(_BYTE_UNITS)} are supported with the {name}", _BYTE_UNITS)
        for word, name in (
            ("memory", "memory"),
            ("ephemeral-storage", "local ephemeral storage"),
            ("hugepages", "hugepages"),
        )
    },
}
"""The units of each resource: what Kubernetes says of them, and which they are."""
_RESOURCES: Final = tuple(
    sorted(f"{kind}.{name}" for kind in ("limits", "requests") for name in ("cpu", "ephemeral-storage", "memory"))
)


def mode(field: Field) -> None:
    """Report permission bits that are none."""
    value = field.value
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o777):
        field.invalid("must be a number between 0 and 0777 (octal), both inclusive")


def secret(field: Field) -> None:
    """``secret`` of a Pod's volume."""
    field.child("secretName").needed()
    _object(field, set())


def config_map(field: Field) -> None:
    """``configMap`` of a Pod's volume."""
    field.child("name").needed()
    _object(field, set())


def _object(field: Field, seen: set[str]) -> None:
    mode(field.child("defaultMode"))
    field.child("optional").flag()
    for item in field.child("items").items():
        item.mapping()
        item.child("key").needed()
        _path(item.child("path"), seen)
        mode(item.child("mode"))


def downward(field: Field) -> None:
    """``downwardAPI`` of a Pod's volume."""
    mode(field.child("defaultMode"))
    _own(field, set())


def _own(field: Field, seen: set[str]) -> None:
    for item in field.child("items").items():
        item.mapping()
        _path(item.child("path"), seen)
        mode(item.child("mode"))
        of_field, of_resource = item.child("fieldRef"), item.child("resourceFieldRef")
        if of_field and of_resource:
            item.invalid("fieldRef and resourceFieldRef can not be specified simultaneously")
        elif of_field:
            _field_ref(of_field, _IN_FILES)
        elif of_resource:
            of_resource.child("containerName").needed()
            _resource_ref(of_resource)
        else:
            item.required("one of fieldRef and resourceFieldRef is required")


def projected(field: Field) -> None:
    """``projected`` of a Pod's volume."""
    mode(field.child("defaultMode"))
    seen: set[str] = set()
    for source in field.child("sources").items():
        found = [word for word in source.mapping() if word in _SOURCES]
        for word in found[:1]:
            _SOURCES[word](source.child(word), seen)
        for word in found[1:]:
            source.child(word).forbidden("may not specify more than 1 volume type")


def _named(field: Field, seen: set[str]) -> None:
    field.child("name").needed()
    _object(field, seen)


def _token(field: Field, seen: set[str]) -> None:
    seconds = field.child("expirationSeconds")
    value = seconds.integer(-(2**63), 2**63 - 1)
    if value is not None and value < 600:
        seconds.invalid("may not specify a duration less than 10 minutes")
    elif value is not None and value > 2**32:
        seconds.invalid("may not specify a duration larger than 2^32 seconds")
    field.child("audience").text()
    _path(field.child("path"), seen)


def _certificates(field: Field, seen: set[str]) -> None:
    field.mapping()
    if field.child("path"):
        _path(field.child("path"), seen)


_SOURCES: Final[Mapping[str, Callable[[Field, set[str]], None]]] = {
    "secret": _named,
    "configMap": _named,
    "downwardAPI": _own,
    "serviceAccountToken": _token,
    "clusterTrustBundle": _certificates,
    "podCertificate": _certificates,
}


def _path(path: Field, seen: set[str]) -> None:
    text = path.needed()
    if text.startswith("/"):
        path.invalid("must be a relative path")
    sources.no_backsteps(path)
    if text.startswith("..") and ".." not in text.split("/"):
        path.invalid("must not start with '..'")
    if text and text in seen:
        path.invalid("conflicting duplicate paths")
    seen.add(text)


def _field_ref(field: Field, known: tuple[str, ...]) -> None:
    field.mapping()
    version, path = field.child("apiVersion"), field.child("fieldPath")
    if version and version.text() != "v1":
        version.unsupported(["v1"])
    if path.needed() and path.text() not in known and not _ENTRY.fullmatch(path.text()):
        path.unsupported(known)


def _resource_ref(field: Field) -> None:
    field.mapping()
    resource = field.child("resource")
    text = resource.needed()
    if text and text not in _RESOURCES and not re.fullmatch(r"(limits|requests)\.hugepages-.+", text):
        resource.unsupported(_RESOURCES)
    divisor = field.child("divisor").quantity()
    if (
        divisor is not None
        and divisor.amount
        and (unit := re.match(r"\w+\.(cpu|memory|ephemeral-storage|hugepages)", text))
    ):
        what, known = _DIVISORS[unit[1]]
        if str(divisor) not in known:
            field.child("divisor").invalid(f"only divisor's values {what} resource")


# -- variables


def variables(container: Field) -> None:
    """``env`` and ``envFrom`` of a container."""
    for variable in container.child("env").items():
        variable.mapping()
        if "=" in variable.child("name").needed():
            variable.child("name").invalid("a valid environment variable name must not contain '='")
        variable.child("value").text()
        if variable.child("valueFrom"):
            _value_from(variable.child("valueFrom"), bool(variable.child("value").value))
    for source in container.child("envFrom").items():
        source.child("prefix").text()
        found = [word for word in ("configMapRef", "secretRef") if word in source.mapping()]
        if len(found) != 1:
            source.invalid(
                "may not have more than one field specified at a time"
                if found
                else "must specify one of: configMapRef or secretRef"
            )
        for word in found:
            source.child(word).child("name").needed()
            source.child(word).child("optional").flag()


def _value_from(field: Field, has_value: bool) -> None:
    known = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")
    found = [word for word in known if word in field.mapping()]
    if has_value:
        field.invalid("may not be specified when `value` is not empty")
    elif len(found) != 1:
        field.invalid(
            "may not have more than one field specified at a time"
            if found
            else "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        )
    for word in found:
        ref = field.child(word)
        if word == "fieldRef":
            _field_ref(ref, _IN_VARIABLES)
        elif word == "resourceFieldRef":
            _resource_ref(ref)
        else:
            ref.child("name").needed()
            ref.child("key").needed()
            ref.child("optional").flag()


def default(volume: Obj) -> None:
    """Fill in what is left out of a Pod's volume of files."""
    for kind in KINDS:
        if isinstance(volume.get(kind), dict):
            volume[kind].setdefault("defaultMode", MODE)
            for source in volume[kind].get("sources") or []:
                if isinstance(source.get("serviceAccountToken"), dict):
                    source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
