"""Whether a volume can be reached from a node: a PersistentVolume's node affinity
(https://kubernetes.io/docs/concepts/storage/persistent-volumes/#node-affinity). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.volumes.node import Node

Obj = dict[str, Any]

CONFLICT = "node(s) didn't match PersistentVolume's node affinity"
"""What a scheduler says."""


def fits(volume: Obj, node: Node) -> bool:
    """Whether *node* meets one term of the volume's affinity, if it has any. The object is a valid one."""
    required = (volume["spec"].get("nodeAffinity") or {}).get("required")
    if not required:
        return True
    return any(_meets(term, node) for term in required.get("nodeSelectorTerms") or [])


def _meets(term: Obj, node: Node) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False  # an empty term is met by no node
    return all(holds(e, node.labels) for e in expressions) and all(
        holds(e, {"metadata.name": node.name}) for e in fields
    )


def holds(expression: Obj, labels: Mapping[str, str]) -> bool:
    """Whether *labels* satisfy one expression of a selector, of labels or of nodes."""
    value = labels.get(expression["key"])
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case operator:  # Gt and Lt: whole numbers on both sides, or no match
            try:
                found, bound = int(value or ""), int(values[0])
            except ValueError:
                return False
            return found > bound if operator == "Gt" else found < bound
