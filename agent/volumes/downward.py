"""What a Pod is told about itself, in files and in variables (volume-semantics 3.5). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from agent.volumes.node import Node
from fusevol import objects
from fusevol.errors import InvalidError
from fusevol.quantity import Quantity

Obj = dict[str, Any]

_ENTRY: Final = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
_PLAIN: Final = ("metadata.name", "metadata.namespace", "metadata.uid")
_MAPS: Final = ("metadata.labels", "metadata.annotations")
_ESCAPES: Final = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\",
}  # fmt: skip


def field(pod: Obj, path: str) -> str:
    """The value of a ``fieldRef`` in a volume. Raises :class:`InvalidError` for a path that means nothing there."""
    metadata = pod["metadata"]
    if path in _PLAIN:
        return str(metadata[path.partition(".")[2]])
    if path in _MAPS:
        return whole_map(metadata.get(path.partition(".")[2]) or {})
    if match := _ENTRY.fullmatch(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    raise InvalidError(f"unsupported fieldPath: {path}")


def variable(pod: Obj, path: str, node: Node) -> str:
    """The value of a ``fieldRef`` in a variable. Raises :class:`InvalidError` for what Pods do not have here."""
    spec = pod["spec"]
    if path == "spec.nodeName":
        return str(spec.get("nodeName") or node.name)
    if path == "spec.serviceAccountName":
        return str(spec.get("serviceAccountName") or spec.get("serviceAccount") or "default")
    if path.startswith("status."):
        raise InvalidError(f"unsupported fieldPath: {path} (Pods have no address of their own here)")
    if path in _MAPS:
        raise InvalidError(f"unsupported fieldPath: {path} (name one: {path}['key'])")
    return field(pod, path)


def whole_map(values: Mapping[str, str]) -> str:
    """Labels or annotations as lines ``key="value"``, sorted, quoted as Go does it."""
    return "\n".join(f"{key}={quoted(str(values[key]))}" for key in sorted(values))


def quoted(text: str) -> str:
    """*text* as Go's ``%q`` writes it."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def resource(pod: Obj, ref: Obj, node: Node, *, container: str = "") -> str:
    """The value of a ``resourceFieldRef``: rounded up, in units of its divisor; *container* is whose variable it is.

    Raises :class:`InvalidError` for a container or resource that there is not.
    """
    named = str(ref.get("containerName") or container)
    found = next((c for c in objects.pod.containers(pod) if c["name"] == named), None)
    if found is None:
        raise InvalidError(f"container {named} not found")
    wanted = str(ref.get("resource") or "")
    kind, _, name = wanted.partition(".")
    if kind not in {"limits", "requests"} or not _known(name):
        raise InvalidError(f"unsupported container resource: {wanted}")
    divisor = Quantity.parse(ref.get("divisor") or "1").amount or Decimal(1)
    exact = _amount(found, kind, name, node) / divisor
    return str(int(exact.to_integral_value(rounding="ROUND_CEILING")))


def _known(name: str) -> bool:
    return name in {"cpu", "memory", "ephemeral-storage"} or name.startswith("hugepages-")


def _amount(container: Obj, kind: str, name: str, node: Node) -> Decimal:
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    if name in limits and (kind == "limits" or name not in requests):
        # a request that is left out is the limit, says the API server's defaulting
        return Quantity.parse(limits[name]).amount
    if kind == "requests":
        return Quantity.parse(requests.get(name) or "0").amount
    allocatable = {"cpu": node.cpus, "memory": node.memory, "ephemeral-storage": node.storage}
    return Decimal(allocatable.get(name, 0))
