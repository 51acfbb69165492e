"""What to do about a PersistentVolume: its phase, its finalizers, and its end (volume-semantics 4.3, 4.10). Pure."""

from __future__ import annotations

import copy
from typing import Any

from agent.controllers.binding import set_phase
from agent.controllers.moving import move_of
from agent.controllers.provisioning import handle_of
from agent.controllers.view import (
    BACKEND_FINALIZER,
    BOUND_BY_CONTROLLER,
    PROVISIONED_BY,
    VOLUME_PROTECTION,
    Action,
    Event,
    Put,
    Reclaim,
    View,
    annotations_of,
    being_deleted,
    finalizers,
    phase,
)

Obj = dict[str, Any]


def ours(volume: Obj, view: View) -> bool:
    """Whether the volume was provisioned here, so that its data may be deleted here."""
    return annotations_of(volume).get(PROVISIONED_BY) in view.provisioners and handle_of(volume) is not None


def policy_of(volume: Obj) -> str:
    """The reclaim policy; Retain when none is given."""
    return str(volume["spec"].get("persistentVolumeReclaimPolicy") or "Retain")


def decide(volume: Obj, view: View) -> list[Action]:
    """The next steps for *volume*; none while it is moved."""
    if move_of(volume) is not None:
        return []
    kept = _finalizers(volume, view)
    if kept != finalizers(volume):
        new = copy.deepcopy(volume)
        new["metadata"]["finalizers"] = kept
        return [Put(new)]
    ref = volume["spec"].get("claimRef")
    if not ref or not ref.get("uid"):
        return _phase(volume, "Available", view)
    claim = view.claims.get((str(ref.get("namespace") or ""), str(ref.get("name") or "")))
    if claim is None or claim["metadata"]["uid"] != ref["uid"]:
        return _released(volume, view)
    bound_to = claim["spec"].get("volumeName")
    if bound_to == volume["metadata"]["name"]:
        return _phase(volume, "Bound", view)
    if not bound_to and not being_deleted(volume):
        return []  # the claim's own turn comes; until then the volume is as good as taken
    if ours(volume, view) and policy_of(volume) == "Delete":
        return _released(volume, view)
    return _unbound(volume, view)


def _finalizers(volume: Obj, view: View) -> list[str]:
    """The finalizers that the volume should have now."""
    wanted = list(finalizers(volume))
    leaving = being_deleted(volume)
    if not leaving and VOLUME_PROTECTION not in wanted:
        wanted.append(VOLUME_PROTECTION)
    if ours(volume, view) and policy_of(volume) == "Delete":
        if not leaving and BACKEND_FINALIZER not in wanted:
            wanted.append(BACKEND_FINALIZER)
    elif BACKEND_FINALIZER in wanted and ours(volume, view):
        wanted.remove(BACKEND_FINALIZER)
    if leaving and VOLUME_PROTECTION in wanted and phase(volume) != "Bound":
        wanted.remove(VOLUME_PROTECTION)
    return wanted


def _phase(volume: Obj, wanted: str, view: View) -> list[Action]:
    if phase(volume) == wanted:
        return []
    new = copy.deepcopy(volume)
    set_phase(new, wanted, view)
    return [Put(new)]


def _unbound(volume: Obj, view: View) -> list[Action]:
    """Its claim is, or will be, bound to another one: give up the reference that we made, or the uid of the user's."""
    new = copy.deepcopy(volume)
    if BOUND_BY_CONTROLLER in annotations_of(volume):
        del new["spec"]["claimRef"]
        del new["metadata"]["annotations"][BOUND_BY_CONTROLLER]
    else:
        for field in ("uid", "resourceVersion"):
            new["spec"]["claimRef"].pop(field, None)
    set_phase(new, "Available", view)
    return [Put(new)]


def _released(volume: Obj, view: View) -> list[Action]:
    if phase(volume) not in {"Released", "Failed"}:
        return _phase(volume, "Released", view)
    policy = policy_of(volume)
    if policy == "Retain":
        return _phase(volume, "Released", view)
    if policy == "Delete":
        return _deleted(volume, view)
    if policy == "Recycle":
        return _failed(volume, view, "VolumeFailedRecycle", "No recycler plugin found for the volume!")
    return _failed(
        volume, view, "VolumeUnknownReclaimPolicy", "Volume has an unrecognized PersistentVolumeReclaimPolicy"
    )


def _deleted(volume: Obj, view: View) -> list[Action]:
    if not ours(volume, view):
        message = (
            f"The volume was made by {annotations_of(volume).get(PROVISIONED_BY) or 'hand'}, which must delete it: "
            "delete the data and the PersistentVolume by hand, or set its policy to Retain."
        )
        return [Event(volume, "VolumeFailedDelete", message, warning=True)]
    if volume["spec"]["claimRef"]["uid"] in view.attached:
        return [Event(volume, "VolumeDelete", "The volume is still mounted; it is deleted when that ends.")]
    return [Reclaim(volume)]


def _failed(volume: Obj, view: View, reason: str, message: str) -> list[Action]:
    if phase(volume) == "Failed":
        return []
    new = copy.deepcopy(volume)
    set_phase(new, "Failed", view, reason, message)
    return [Put(new), Event(volume, reason, message, warning=True)]
