"""Which volume a claim gets: Kubernetes' static matching (volume-semantics 4.6). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.controllers.view import being_deleted, class_of, phase, refers_to
from agent.volumes import affinity
from agent.volumes.node import Node
from fusevol import quantity

Obj = dict[str, Any]


def capacity(volume: Obj) -> int:
    """Bytes of a volume; 0 when it does not say."""
    return quantity.parse((volume["spec"].get("capacity") or {}).get("storage", 0))


def requested(claim: Obj) -> int:
    """Bytes that a claim asks for."""
    return quantity.parse(((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", 0))


def modes(obj: Obj) -> frozenset[str]:
    """The access modes of a claim or volume."""
    return frozenset(obj["spec"].get("accessModes") or ())


def mode_of(obj: Obj) -> str:
    """``volumeMode``; nothing means Filesystem."""
    return str(obj["spec"].get("volumeMode") or "Filesystem")


def attributes_class(obj: Obj) -> str:
    """``volumeAttributesClassName``; nothing means none."""
    return str(obj["spec"].get("volumeAttributesClassName") or "")


def mismatch(volume: Obj, claim: Obj) -> str | None:
    """Why *volume* cannot serve *claim* when the user named it; None when it can (4.7)."""
    if being_deleted(volume):
        return "the volume is being deleted"
    if capacity(volume) < requested(claim):
        return "requested PV is too small"
    if (class_of(volume) or "") != (class_of(claim) or ""):
        return "storageClassName does not match"
    if mode_of(volume) != mode_of(claim):
        return "incompatible volumeMode"
    if not modes(volume) >= modes(claim):
        return "incompatible accessMode"
    if attributes_class(volume) != attributes_class(claim):
        return "volumeAttributesClassName does not match"
    return None


def find(claim: Obj, volumes: Iterable[Obj], node: Node | None = None, *, delayed: bool = False) -> Obj | None:
    """The volume that *claim* should be bound to, None if there is none.

    A volume that is pre-bound to the claim wins in its group. Otherwise the smallest one of the tightest set of access
    modes, by name on a tie, of those that *node*, if there is one, can reach. With *delayed* (``WaitForFirstConsumer``
    without a consumer) only pre-bound ones count.
    """
    groups: dict[tuple[str, ...], list[Obj]] = {}
    for volume in volumes:
        if _possible(volume, claim):
            groups.setdefault(tuple(sorted(modes(volume))), []).append(volume)
    for _, group in sorted(groups.items(), key=lambda g: (len(g[0]), g[0])):
        group.sort(key=lambda v: (capacity(v), v["metadata"]["name"]))
        for volume in group:
            if refers_to(volume["spec"].get("claimRef"), claim):
                return volume
        if delayed:
            continue
        for volume in group:
            if _free(volume, claim) and (node is None or affinity.fits(volume, node)):
                return volume
    return None


def _possible(volume: Obj, claim: Obj) -> bool:
    ref = volume["spec"].get("claimRef")
    return (
        (not ref or refers_to(ref, claim))  # first: there are many, and most are another claim's
        and modes(volume) >= modes(claim)
        and capacity(volume) >= requested(claim)
        and mode_of(volume) == mode_of(claim)
        and attributes_class(volume) == attributes_class(claim)
        and not being_deleted(volume)
    )


def _free(volume: Obj, claim: Obj) -> bool:
    return (
        phase(volume) == "Available"
        and (class_of(volume) or "") == (class_of(claim) or "")
        and selected(claim["spec"].get("selector"), volume["metadata"].get("labels") or {})
    )


def selected(selector: Obj | None, labels: Mapping[str, str]) -> bool:
    """Whether *labels* satisfy a label selector; no selector filters nothing (4.1)."""
    if not selector:
        return True
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(k) != v for k, v in wanted.items()):
        return False
    return all(affinity.holds(e, labels) for e in selector.get("matchExpressions") or [])
