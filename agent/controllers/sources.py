"""What a new volume is filled from: the claim that it is a clone of, or the snapshot (volume-semantics 4.11). Pure."""

from __future__ import annotations

from typing import Any

from agent.config import DRIVER
from agent.controllers import matching
from agent.controllers.provisioning import handle_of
from agent.controllers.snapshots import refers_to
from agent.controllers.view import Source, View, being_deleted, is_bound_to, phase
from fusevol import objects, quantity
from fusevol.errors import InvalidError, UnavailableError

Obj = dict[str, Any]

_ANY_MODE = "snapshot.storage.kubernetes.io/allow-volume-mode-change"


def find(claim: Obj, view: View) -> Source | None:
    """The source of the volume that *claim* asks for; None for an empty one.

    Raises :class:`UnavailableError` for a source that may come yet, :class:`InvalidError` for one that never fits.
    """
    source = claim["spec"].get("dataSource") or claim["spec"].get("dataSourceRef")
    if not source:
        return None
    namespace = str(claim["metadata"].get("namespace") or objects.DEFAULT_NAMESPACE)
    kind, name = source["kind"], str(source["name"])
    if kind == "PersistentVolumeClaim":
        return _clone(claim, view.claims.get((namespace, name)), name, view)
    if kind == "VolumeSnapshot":
        return _restored(claim, view.snapshots.get((namespace, name)), name, view)
    raise InvalidError(f"A volume cannot be filled from the {kind} {name}: name a claim or a VolumeSnapshot.")


def _clone(claim: Obj, source: Obj | None, name: str, view: View) -> Source:
    if source is None:
        raise UnavailableError(f"the PVC {name} to clone does not exist in this namespace")
    if being_deleted(source):
        raise UnavailableError(f"the PVC {name} to clone is being deleted")
    volume = view.volumes.get(str(source["spec"].get("volumeName") or ""))
    if phase(source) != "Bound" or volume is None:
        raise UnavailableError(f"the PVC {name} to clone is not bound")
    handle = handle_of(volume)
    if handle is None:
        raise InvalidError(f"the volume of the PVC {name} is not one of {DRIVER}: only what it made can be cloned")
    if not is_bound_to(volume["spec"].get("claimRef"), source):
        raise InvalidError(f"the volume of the PVC {name} does not point back to it")
    _fits(claim, matching.capacity(volume), matching.mode_of(source), f"the PVC {name}")
    return Source("volume", handle)


def _restored(claim: Obj, snapshot: Obj | None, name: str, view: View) -> Source:
    if snapshot is None:
        raise UnavailableError(f"the snapshot {name} does not exist in this namespace")
    if being_deleted(snapshot):
        raise UnavailableError(f"the snapshot {name} is being deleted")
    bound = str((snapshot.get("status") or {}).get("boundVolumeSnapshotContentName") or "")
    content = view.contents.get(bound)
    if content is None or not objects.snapshot.is_ready(snapshot):
        raise UnavailableError(f"the snapshot {name} is not ready to use")
    if not refers_to(content, snapshot) or not content["spec"]["volumeSnapshotRef"].get("uid"):
        raise InvalidError(f"the content {bound} does not point back to the snapshot {name}")
    if content["spec"]["driver"] != DRIVER:
        raise InvalidError(f"the snapshot {name} is one of {content['spec']['driver']}, not of {DRIVER}")
    mode = str(content["spec"].get("sourceVolumeMode") or "Filesystem")
    if (content["metadata"].get("annotations") or {}).get(_ANY_MODE) == "true":
        mode = matching.mode_of(claim)
    size = quantity.parse((snapshot["status"]).get("restoreSize") or 0)
    _fits(claim, size, mode, f"the snapshot {name}")
    return Source("snapshot", str(content["status"]["snapshotHandle"]))


def _fits(claim: Obj, size: int, mode: str, what: str) -> None:
    if matching.mode_of(claim) != mode:
        raise InvalidError(f"the volumeMode of {what} is {mode}, which the claim does not ask for")
    if matching.requested(claim) < size:
        raise InvalidError(
            f"requested volume size {quantity.format_bytes(matching.requested(claim))} is less than the size "
            f"{quantity.format_bytes(size)} of {what}: ask for at least that"
        )
