"""What a new volume is filled from: a claim or a snapshot, and what must hold of it (volume-semantics 4.11)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent.controllers import sources
from agent.controllers.view import Source, View
from fusevol.errors import FusevolError, InvalidError, UnavailableError

Obj = dict[str, Any]

CLAIM: Obj = {
    "metadata": {"name": "new", "namespace": "default", "uid": "un"},
    "spec": {"resources": {"requests": {"storage": "2Gi"}}},
}
DATA: Obj = {
    "metadata": {"name": "data", "namespace": "default", "uid": "ud"},
    "spec": {"volumeName": "v", "resources": {"requests": {"storage": "1Gi"}}},
    "status": {"phase": "Bound"},
}
VOLUME: Obj = {
    "metadata": {"name": "v"},
    "spec": {
        "capacity": {"storage": "2Gi"},
        "claimRef": {"namespace": "default", "name": "data", "uid": "ud"},
        "csi": {"driver": "fusevol.io", "volumeHandle": "default/v"},
    },
}
SNAPSHOT: Obj = {
    "metadata": {"name": "snap", "namespace": "default", "uid": "us"},
    "spec": {"source": {"persistentVolumeClaimName": "data"}},
    "status": {"boundVolumeSnapshotContentName": "content", "readyToUse": True, "restoreSize": "2Gi"},
}
CONTENT: Obj = {
    "metadata": {"name": "content"},
    "spec": {
        "driver": "fusevol.io",
        "sourceVolumeMode": "Filesystem",
        "volumeSnapshotRef": {"namespace": "default", "name": "snap", "uid": "us"},
    },
    "status": {"snapshotHandle": "default/s", "readyToUse": True},
}
FROM_CLAIM = {"kind": "PersistentVolumeClaim", "name": "data"}
FROM_SNAPSHOT = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "snap"}


def changed(obj: Obj, **fields: Any) -> Obj:
    """*obj* with parts of metadata, spec or status replaced."""
    return {**copy.deepcopy(obj), **{k: {**obj.get(k, {}), **v} for k, v in fields.items()}}


def found(source: Obj, *, claim: Obj = CLAIM, **world: Obj) -> Source | None:
    """The source of *claim*, with parts of the *world* replaced; an empty one is not there."""
    parts = {"data": DATA, "volume": VOLUME, "snapshot": SNAPSHOT, "content": CONTENT} | world
    view = View(
        volumes={"v": parts["volume"]} if parts["volume"] else {},
        claims={("default", "data"): parts["data"]} if parts["data"] else {},
        snapshots={("default", "snap"): parts["snapshot"]} if parts["snapshot"] else {},
        contents={"content": parts["content"]} if parts["content"] else {},
    )
    return sources.find(changed(claim, spec={"dataSource": source}), view)


def test_what_fits() -> None:
    """A claim's volume and a snapshot, of at most the size that is asked for, whatever the class is."""
    any_mode = {"annotations": {"snapshot.storage.kubernetes.io/allow-volume-mode-change": "true"}}
    other = changed(CONTENT, metadata=any_mode, spec={"sourceVolumeMode": "Block"})

    assert found(FROM_CLAIM, claim=changed(CLAIM, spec={"storageClassName": "x"})) == Source("volume", "default/v")
    assert found(FROM_SNAPSHOT) == Source("snapshot", "default/s")
    assert found(FROM_SNAPSHOT, content=other) == Source("snapshot", "default/s")


@pytest.mark.parametrize(
    ("source", "world", "error", "message"),
    [
        (FROM_CLAIM, {"data": {}}, UnavailableError, "the PVC data to clone does not exist"),
        (FROM_CLAIM, {"data": changed(DATA, metadata={"deletionTimestamp": "now"})}, UnavailableError, "being deleted"),
        (FROM_CLAIM, {"data": changed(DATA, status={"phase": "Pending"})}, UnavailableError, "is not bound"),
        (FROM_CLAIM, {"volume": {}}, UnavailableError, "is not bound"),
        (FROM_CLAIM, {"volume": changed(VOLUME, spec={"csi": {"driver": "x"}})}, InvalidError, "not one of fusevol.io"),
        (FROM_CLAIM, {"volume": changed(VOLUME, spec={"claimRef": {"uid": "x"}})}, InvalidError, "does not point back"),
        (FROM_CLAIM, {"volume": changed(VOLUME, spec={"capacity": {"storage": "3Gi"}})}, InvalidError, "less than the"),
        (FROM_CLAIM, {"data": changed(DATA, spec={"volumeMode": "Block"})}, InvalidError, "the volumeMode of the PVC"),
        (FROM_SNAPSHOT, {"snapshot": {}}, UnavailableError, "the snapshot snap does not exist"),
        (
            FROM_SNAPSHOT,
            {"snapshot": changed(SNAPSHOT, metadata={"deletionTimestamp": "now"})},
            UnavailableError,
            "being deleted",
        ),
        (FROM_SNAPSHOT, {"snapshot": changed(SNAPSHOT, status={"readyToUse": False})}, UnavailableError, "not ready"),
        (FROM_SNAPSHOT, {"content": {}}, UnavailableError, "not ready to use"),
        (
            FROM_SNAPSHOT,
            {"content": changed(CONTENT, spec={"volumeSnapshotRef": {"namespace": "default", "name": "x"}})},
            InvalidError,
            "does not point back to the snapshot",
        ),
        (FROM_SNAPSHOT, {"content": changed(CONTENT, spec={"driver": "x"})}, InvalidError, "one of x, not of fusevol"),
        (
            FROM_SNAPSHOT,
            {"content": changed(CONTENT, spec={"sourceVolumeMode": "Block"})},
            InvalidError,
            "the volumeMode of the snapshot snap is Block",
        ),
        (FROM_SNAPSHOT, {"snapshot": changed(SNAPSHOT, status={"restoreSize": "3Gi"})}, InvalidError, "less than the"),
        ({"apiGroup": "x.io", "kind": "Backup", "name": "b"}, {}, InvalidError, "cannot be filled from the Backup b"),
    ],
)
def test_what_does_not_fit(source: Obj, world: dict[str, Obj], error: type[FusevolError], message: str) -> None:
    """What may come yet is waited for (unavailable), what never fits is an error."""
    with pytest.raises(error, match=message):
        found(source, **world)
