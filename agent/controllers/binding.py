"""What to do about a claim: bind it, provision for it, protect it, or say what it waits for. Pure.

Each decision looks at the objects as they are now and returns the next steps; nothing is remembered between two
decisions. That makes every step safe to be interrupted after (volume-semantics 4.7 to 4.9).
"""

from __future__ import annotations

import copy
from typing import Any

from agent.controllers import matching, sources
from agent.controllers.view import (
    BETA_STORAGE_PROVISIONER,
    BIND_COMPLETED,
    BOUND_BY_CONTROLLER,
    CLAIM_PROTECTION,
    NO_PROVISIONER,
    SELECTED_NODE,
    STORAGE_PROVISIONER,
    Action,
    Discard,
    Event,
    Expand,
    Provision,
    Put,
    View,
    annotate,
    annotations_of,
    being_deleted,
    claim_key,
    class_of,
    default_class,
    finalizers,
    is_bound_to,
    phase,
    reference,
    refers_to,
    volume_name,
)
from fusevol import quantity
from fusevol.errors import FusevolError

Obj = dict[str, Any]


def decide(claim: Obj, view: View) -> list[Action]:
    """The next steps for *claim*."""
    if being_deleted(claim):
        return _deleted(claim, view)
    if CLAIM_PROTECTION not in finalizers(claim):
        new = copy.deepcopy(claim)
        new["metadata"]["finalizers"] = [*finalizers(claim), CLAIM_PROTECTION]
        return [Put(new)]
    if BIND_COMPLETED in annotations_of(claim):
        return _bound(claim, view)
    if claim["spec"].get("volumeName"):
        return _named(claim, view)
    return _unbound(claim, view)


def in_use(claim: Obj, view: View) -> bool:
    """Whether a Pod names the claim or it is mounted somewhere."""
    return bool(view.users.get(claim_key(claim))) or claim["metadata"]["uid"] in view.attached


def _deleted(claim: Obj, view: View) -> list[Action]:
    if CLAIM_PROTECTION not in finalizers(claim) or in_use(claim, view):
        return []
    new = copy.deepcopy(claim)
    new["metadata"]["finalizers"] = [f for f in finalizers(claim) if f != CLAIM_PROTECTION]
    unfinished = BIND_COMPLETED not in annotations_of(claim) and volume_name(claim) not in view.volumes
    return [*([Discard(claim)] if unfinished else []), Put(new)]


def bind(claim: Obj, volume: Obj, view: View) -> list[Action]:
    """The writes that tie *claim* and *volume* together, the volume first; only those that change something."""
    actions: list[Action] = []
    new = copy.deepcopy(volume)
    if not is_bound_to(volume["spec"].get("claimRef"), claim):
        if not volume["spec"].get("claimRef"):
            annotate(new)[BOUND_BY_CONTROLLER] = "yes"
        new["spec"]["claimRef"] = reference(claim)
    set_phase(new, "Bound", view)
    if new != volume:
        actions.append(Put(new))
    bound = copy.deepcopy(claim)
    if not claim["spec"].get("volumeName"):
        bound["spec"]["volumeName"] = volume["metadata"]["name"]
        annotate(bound)[BOUND_BY_CONTROLLER] = "yes"
    annotate(bound)[BIND_COMPLETED] = "yes"
    if phase(claim) != "Bound":
        bound["status"] = {
            **(claim.get("status") or {}),
            "phase": "Bound",
            "accessModes": list(volume["spec"].get("accessModes") or []),
            "capacity": dict(volume["spec"].get("capacity") or {}),
        }
    if bound != claim:
        actions.append(Put(bound))
    return actions


def set_phase(volume: Obj, wanted: str, view: View, reason: str | None = None, message: str | None = None) -> None:
    """Set a volume's phase (on a copy), with the time when it changes."""
    status = dict(volume.get("status") or {})
    if status.get("phase") != wanted:
        status["lastPhaseTransitionTime"] = view.now
    status["phase"] = wanted
    for name, value in (("reason", reason), ("message", message)):
        if value:
            status[name] = value
        else:
            status.pop(name, None)
    volume["status"] = status


def _pending(claim: Obj, *actions: Action) -> list[Action]:
    if phase(claim) == "Pending":
        return list(actions)
    new = copy.deepcopy(claim)
    new["status"] = {**(claim.get("status") or {}), "phase": "Pending"}
    return [Put(new), *actions]


def _named(claim: Obj, view: View) -> list[Action]:
    """The user chose the volume (4.7, pre-binding on the claim's side)."""
    name = claim["spec"]["volumeName"]
    volume = view.volumes.get(name)
    if volume is None:
        return _pending(claim, Event(claim, "FailedBinding", f'volume "{name}" not found', warning=True))
    ref = volume["spec"].get("claimRef")
    if not ref:
        reason = matching.mismatch(volume, claim)
        if reason:
            message = f'Cannot bind to requested volume "{name}": {reason}'
            return _pending(claim, Event(claim, "VolumeMismatch", message, warning=True))
        return bind(claim, volume, view)
    if refers_to(ref, claim):
        return bind(claim, volume, view)
    message = f'volume "{name}" already bound to a different claim.'
    return _pending(claim, Event(claim, "FailedBinding", message, warning=True))


def _unbound(claim: Obj, view: View) -> list[Action]:
    name = class_of(claim)
    if name is None and (default := default_class(view.classes)) is not None:
        new = copy.deepcopy(claim)
        new["spec"]["storageClassName"] = default
        return [Put(new)]
    storage_class = view.classes.get(name or "")
    scheduled = storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
    delayed = scheduled and SELECTED_NODE not in annotations_of(claim)
    users = view.users.get(claim_key(claim))
    # the affinity is a scheduler's matter: a claim that is bound at once is bound without a look at it
    node = view.node if scheduled else None
    volume = matching.find(claim, view.candidates, node, delayed=delayed and not users)
    if volume is not None:
        return bind(claim, volume, view)
    if delayed and not users:
        message = "waiting for first consumer to be created before binding"
        return _pending(claim, Event(claim, "WaitForFirstConsumer", message))
    if not name:
        message = "no persistent volumes available for this claim and no storage class is set"
        return _pending(claim, Event(claim, "FailedBinding", message))
    return _provisioned(claim, name, storage_class, view, delayed=delayed)


def _provisioned(claim: Obj, name: str, storage_class: Obj | None, view: View, *, delayed: bool) -> list[Action]:
    if storage_class is None:
        message = f'storageclass.storage.k8s.io "{name}" not found'
        return _pending(claim, Event(claim, "ProvisioningFailed", message, warning=True))
    provisioner = str(storage_class["provisioner"])
    if provisioner == NO_PROVISIONER:
        message = f'no persistent volume of class "{name}" is available, and the class makes none: create one.'
        return _pending(claim, Event(claim, "FailedBinding", message))
    if annotations_of(claim).get(STORAGE_PROVISIONER) != provisioner or delayed:
        new = copy.deepcopy(claim)
        annotate(new).update({STORAGE_PROVISIONER: provisioner, BETA_STORAGE_PROVISIONER: provisioner})
        if delayed:
            annotate(new)[SELECTED_NODE] = view.node.name
        new["status"] = {**(claim.get("status") or {}), "phase": "Pending"}
        return [Put(new)]
    if provisioner not in view.provisioners:
        message = (
            f'Waiting for a volume to be created by "{provisioner}", the provisioner of StorageClass "{name}", which '
            f'is not served here: choose a class of "{view.provisioners[0]}", list the name under `provisioners` in '
            "the configuration of fusevol, or create the PersistentVolume by hand."
        )
        return _pending(claim, Event(claim, "ExternalProvisioning", message))
    try:
        source = sources.find(claim, view)
    except FusevolError as e:
        text = f'failed to provision volume with StorageClass "{name}": {e.message}'
        return _pending(claim, Event(claim, "ProvisioningFailed", text, warning=True))
    return _pending(claim, Provision(claim, storage_class, source))


def _bound(claim: Obj, view: View) -> list[Action]:
    name = claim["spec"].get("volumeName")
    if not name:
        text = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"
        return _lost(claim, "ClaimLost", text)
    volume = view.volumes.get(name)
    if volume is None:
        return _lost(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
    ref = volume["spec"].get("claimRef")
    if ref and not is_bound_to(ref, claim):
        if refers_to(ref, claim):
            return bind(claim, volume, view)
        text = "Two claims are bound to the same volume, this one is bound incorrectly"
        return _lost(claim, "ClaimMisbound", text)
    return bind(claim, volume, view) or _expanded(claim, volume, view)


def _lost(claim: Obj, reason: str, message: str) -> list[Action]:
    if phase(claim) == "Lost":
        return []
    new = copy.deepcopy(claim)
    new["status"] = {
        **{k: v for k, v in (claim.get("status") or {}).items() if k not in {"accessModes", "capacity"}},
        "phase": "Lost",
    }
    return [Put(new), Event(claim, reason, message, warning=True)]


def _expanded(claim: Obj, volume: Obj, view: View) -> list[Action]:
    """Expansion (4.12): only of what a class that allows it provisioned here."""
    granted = quantity.parse(((claim.get("status") or {}).get("capacity") or {}).get("storage", 0))
    if matching.requested(claim) <= granted:
        return []
    storage_class = view.classes.get(class_of(claim) or "")
    if storage_class is None or not storage_class.get("allowVolumeExpansion"):
        return []
    return [Expand(claim, volume)]
