"""What to do about a VolumeSnapshot and its content: take, bind, protect, end it (volume-semantics 4.16). Pure.

The names of the finalizers, annotations and reasons are those of Kubernetes' snapshot controller.
"""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

from agent.config import DRIVER
from agent.controllers.moving import move_of
from agent.controllers.provisioning import handle_of
from agent.controllers.view import (
    BIND_COMPLETED,
    Action,
    Create,
    Delete,
    DropSnapshot,
    Event,
    Put,
    TakeSnapshot,
    View,
    annotations_of,
    being_deleted,
    finalizers,
    phase,
)
from fusevol import objects, quantity

Obj = dict[str, Any]

_GROUP = "snapshot.storage.kubernetes.io"
BOUND_PROTECTION = f"{_GROUP}/volumesnapshot-bound-protection"
CONTENT_PROTECTION = f"{_GROUP}/volumesnapshotcontent-bound-protection"
SOURCE_PROTECTION = f"{_GROUP}/pvc-as-source-protection"
"""On a claim while a snapshot of it is being taken."""
SOURCE_KIND = "VolumeSnapshot"


def content_name(snapshot: Obj) -> str:
    """Name of the content of a snapshot that is taken here; always the same one, so trying again is harmless."""
    return f"snapcontent-{snapshot['metadata']['uid']}"


def snapshot_id(content: Obj) -> str:
    """Id of a content's snapshot in its pool."""
    return f"snapshot-{content['spec']['volumeSnapshotRef'].get('uid') or content['metadata']['uid']}"


def snapshot_of(content: Obj) -> tuple[str, str]:
    """Namespace and name of the snapshot that a content is for."""
    reference = content["spec"]["volumeSnapshotRef"]
    return str(reference.get("namespace") or ""), str(reference.get("name") or "")


def decide(snapshot: Obj, view: View) -> list[Action]:
    """The next steps for a VolumeSnapshot."""
    if being_deleted(snapshot):
        return _deleted(snapshot, view)
    if BOUND_PROTECTION not in finalizers(snapshot):
        return [Put(_with_finalizer(snapshot, BOUND_PROTECTION))]
    name = _status(snapshot).get("boundVolumeSnapshotContentName")
    if name and name not in view.contents:
        return _failed(snapshot, view, "SnapshotContentMissing", "VolumeSnapshotContent is missing")
    if objects.snapshot.content_name(snapshot):
        return _static(snapshot, view)
    return _dynamic(snapshot, view)


def _static(snapshot: Obj, view: View) -> list[Action]:
    """The user named the content; both must name each other."""
    name = objects.snapshot.content_name(snapshot)
    content = view.contents.get(name)
    if content is None:
        return _failed(snapshot, view, "SnapshotContentMissing", f'VolumeSnapshotContent "{name}" is missing')
    if not refers_to(content, snapshot):
        message = f'VolumeSnapshotContent "{name}" is bound to a different snapshot'
        return _failed(snapshot, view, "SnapshotContentMisbound", message)
    if not content["spec"]["volumeSnapshotRef"].get("uid"):
        new = copy.deepcopy(content)
        new["spec"]["volumeSnapshotRef"]["uid"] = snapshot["metadata"]["uid"]
        return [Put(new)]
    return _told(snapshot, content)


def _dynamic(snapshot: Obj, view: View) -> list[Action]:
    name = content_name(snapshot)
    content = view.contents.get(name)
    if content is not None:
        if not refers_to(content, snapshot):
            message = f'VolumeSnapshotContent "{name}" is bound to a different snapshot'
            return _failed(snapshot, view, "SnapshotContentMisbound", message)
        return _told(snapshot, content) or (_let_go(snapshot, view) if objects.snapshot.is_ready(content) else [])
    claim_name = objects.snapshot.claim_name(snapshot)
    claim = view.claims.get((_namespace(snapshot), claim_name))
    if claim is None:
        message = (
            f'failed to retrieve PVC {claim_name} from the lister: "persistentvolumeclaim "{claim_name}" not found"'
        )
        return _failed(snapshot, view, "SnapshotContentCreationFailed", message)
    volume = view.volumes.get(str(claim["spec"].get("volumeName") or ""))
    if phase(claim) != "Bound" or BIND_COMPLETED not in annotations_of(claim) or volume is None:
        message = f"the PVC {claim_name} is not yet bound to a PV, will not attempt to take a snapshot"
        return _failed(snapshot, view, "SnapshotContentCreationFailed", message)
    handle = handle_of(volume)
    if handle is None:
        message = f"the volume of PVC {claim_name} is not one of {DRIVER}: only what it makes has snapshots"
        return _failed(snapshot, view, "SnapshotContentCreationFailed", message)
    if move_of(volume) is not None:
        message = (
            f"the volume of PVC {claim_name} is being moved to another pool, the snapshot is taken when that is done"
        )
        return _failed(snapshot, view, "SnapshotContentCreationFailed", message)
    found, problem = _class_of(snapshot, view)
    if found is None:
        return _failed(snapshot, view, "SetDefaultSnapshotClassFailed", problem)
    if found["driver"] != DRIVER:
        message = f'VolumeSnapshotClass "{found["metadata"]["name"]}" is of the driver {found["driver"]}, not {DRIVER}'
        return _failed(snapshot, view, "SnapshotContentMismatch", message)
    if snapshot["spec"].get("volumeSnapshotClassName") is None:
        new = copy.deepcopy(snapshot)
        new["spec"]["volumeSnapshotClassName"] = found["metadata"]["name"]
        return [Put(new)]
    protect = [] if SOURCE_PROTECTION in finalizers(claim) else [Put(_with_finalizer(claim, SOURCE_PROTECTION))]
    return [*protect, Create(new_content(snapshot, claim, handle, found))]


def new_content(snapshot: Obj, claim: Obj, handle: str, snapshot_class: Obj) -> Obj:
    """The content of *snapshot* before it is taken."""
    metadata = snapshot["metadata"]
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": content_name(snapshot), "finalizers": [CONTENT_PROTECTION]},
        "spec": {
            "deletionPolicy": snapshot_class["deletionPolicy"],
            "driver": snapshot_class["driver"],
            "source": {"volumeHandle": handle},
            "sourceVolumeMode": str(claim["spec"].get("volumeMode") or "Filesystem"),
            "volumeSnapshotClassName": snapshot_class["metadata"]["name"],
            "volumeSnapshotRef": {
                "apiVersion": "snapshot.storage.k8s.io/v1",
                "kind": "VolumeSnapshot",
                "name": metadata["name"],
                "namespace": _namespace(snapshot),
                "uid": metadata["uid"],
            },
        },
    }


def _class_of(snapshot: Obj, view: View) -> tuple[Obj | None, str]:
    """The class that a snapshot names, or the default one of the driver; else why there is none."""
    name = snapshot["spec"].get("volumeSnapshotClassName")
    if name is not None:
        found = view.snapshot_classes.get(str(name))
        return found, f'volumesnapshotclass.snapshot.storage.k8s.io "{name}" not found'
    defaults = [
        c for c in view.snapshot_classes.values() if objects.snapshotclass.is_default(c) and c["driver"] == DRIVER
    ]
    if len(defaults) == 1:
        return defaults[0], ""
    if not defaults:
        return None, "cannot find default snapshot class"
    return None, f"{len(defaults)} default snapshot classes were found"


def refers_to(content: Obj, snapshot: Obj) -> bool:
    """Whether *content* is for this snapshot: same namespace and name, uid equal or not given."""
    reference, metadata = content["spec"]["volumeSnapshotRef"], snapshot["metadata"]
    named = (_namespace(snapshot), metadata["name"])
    return (reference.get("namespace"), reference.get("name")) == named and reference.get("uid") in {
        None,
        "",
        metadata["uid"],
    }


def _told(snapshot: Obj, content: Obj) -> list[Action]:
    """Tell the snapshot what its content says."""
    seen, new = _status(content), copy.deepcopy(snapshot)
    status: Obj = {"boundVolumeSnapshotContentName": content["metadata"]["name"]}
    for word in ("creationTime", "readyToUse", "restoreSize", "error"):
        if word in seen:
            status[word] = _printed(word, seen[word])
    status.setdefault("readyToUse", False)
    new["status"] = status
    if new == snapshot:
        return []
    done = Event(snapshot, "SnapshotReady", f"Snapshot {snapshot['metadata']['name']} is ready to use.")
    return [Put(new), *([done] if status["readyToUse"] and not objects.snapshot.is_ready(snapshot) else [])]


def _let_go(snapshot: Obj, view: View) -> list[Action]:
    """The claim may go once no snapshot of it is being taken any more; a *snapshot* that is being deleted is none."""
    claim = view.claims.get((_namespace(snapshot), objects.snapshot.claim_name(snapshot)))
    if claim is None or SOURCE_PROTECTION not in finalizers(claim):
        return []
    volume = view.volumes.get(str(claim["spec"].get("volumeName") or ""))
    handle = None if volume is None else handle_of(volume)
    for content in view.contents.values():
        taken = objects.snapshot.is_ready(content) or being_deleted(content)
        ours = being_deleted(snapshot) and refers_to(content, snapshot)
        if content["spec"]["source"].get("volumeHandle") == handle and not taken and not ours:
            return []
    return [Put(_without_finalizer(claim, SOURCE_PROTECTION))]


def _printed(word: str, value: Any) -> Any:
    """A value of a content's status as a snapshot's has it: nanoseconds as a time, bytes as a quantity."""
    if word == "creationTime" and isinstance(value, int):
        return dt.datetime.fromtimestamp(value / 1e9, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if word == "restoreSize" and isinstance(value, int):
        return quantity.format_bytes(value)
    return value


def _failed(snapshot: Obj, view: View, reason: str, message: str) -> list[Action]:
    """Say once what is wrong; it is tried again when something changes."""
    if (_status(snapshot).get("error") or {}).get("message") == message:
        return []
    new = copy.deepcopy(snapshot)
    new["status"] = {**_status(snapshot), "readyToUse": False, "error": {"message": message, "time": view.now}}
    return [Put(new), Event(snapshot, reason, message, warning=True)]


def _deleted(snapshot: Obj, view: View) -> list[Action]:
    if BOUND_PROTECTION not in finalizers(snapshot):
        return []
    if waiting := restoring(snapshot, view):
        text = f"The claim {waiting} is being restored from the snapshot; it is deleted when that is done."
        return [Event(snapshot, "SnapshotDeletePending", text)]
    name = _status(snapshot).get("boundVolumeSnapshotContentName") or content_name(snapshot)
    content = view.contents.get(str(name))
    if content is not None and refers_to(content, snapshot) and content["spec"]["deletionPolicy"] == "Delete":
        return [] if being_deleted(content) else [Delete(content)]
    return [*_let_go(snapshot, view), Put(_without_finalizer(snapshot, BOUND_PROTECTION))]


def restoring(snapshot: Obj, view: View) -> str:
    """Name of a claim that is being made from *snapshot*; empty if there is none."""
    namespace = _namespace(snapshot)
    for (where, name), claim in view.claims.items():
        source = claim["spec"].get("dataSource") or {}
        named = (where, source.get("kind"), source.get("name"))
        wanted = named == (namespace, SOURCE_KIND, snapshot["metadata"]["name"])
        if wanted and BIND_COMPLETED not in annotations_of(claim) and not being_deleted(claim):
            return name
    return ""


def decide_content(content: Obj, view: View) -> list[Action]:
    """The next steps for a VolumeSnapshotContent."""
    if content["spec"]["driver"] != DRIVER:
        return []
    if being_deleted(content):
        return _content_deleted(content, view)
    if CONTENT_PROTECTION not in finalizers(content):
        return [Put(_with_finalizer(content, CONTENT_PROTECTION))]
    return [] if objects.snapshot.is_ready(content) else [TakeSnapshot(content)]


def _content_deleted(content: Obj, view: View) -> list[Action]:
    if CONTENT_PROTECTION not in finalizers(content):
        return []
    snapshot = view.snapshots.get(snapshot_of(content))
    if snapshot is not None and refers_to(content, snapshot) and not being_deleted(snapshot):
        return []  # somebody uses it; it goes with the snapshot
    if content["spec"]["deletionPolicy"] == "Delete":
        return [DropSnapshot(content)]
    return [Put(_without_finalizer(content, CONTENT_PROTECTION))]


def _with_finalizer(obj: Obj, finalizer: str) -> Obj:
    new = copy.deepcopy(obj)
    new["metadata"]["finalizers"] = [*finalizers(obj), finalizer]
    return new


def _without_finalizer(obj: Obj, finalizer: str) -> Obj:
    new = copy.deepcopy(obj)
    new["metadata"]["finalizers"] = [f for f in finalizers(obj) if f != finalizer]
    return new


def _namespace(snapshot: Obj) -> str:
    return str(snapshot["metadata"].get("namespace") or objects.DEFAULT_NAMESPACE)


def _status(obj: Obj) -> Obj:
    return obj.get("status") or {}
