"""Valid objects that tests change, and what refuses them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fusevol import objects
from fusevol.errors import InvalidError

Obj = dict[str, Any]

CLAIM: Obj = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}
VOLUME: Obj = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"name": "disk"},
    "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/srv"}},
}
CLASS: Obj = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "fast"},
    "provisioner": "fusevol.io/fusevol",
}
POD: Obj = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web"},
    "spec": {
        "containers": [{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    },
}
SECRET: Obj = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "key"},
    "data": {"user": "YWRtaW4="},
    "stringData": {"password": "s3cret"},
}
CONFIG: Obj = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "settings"},
    "data": {"mode": "fast"},
    "binaryData": {"blob": "AAE="},
}
_SNAPSHOTS = "snapshot.storage.k8s.io/v1"
SNAPSHOT: Obj = {
    "apiVersion": _SNAPSHOTS,
    "kind": "VolumeSnapshot",
    "metadata": {"name": "before"},
    "spec": {"source": {"persistentVolumeClaimName": "data"}},
}
SNAPSHOT_CLASS: Obj = {
    "apiVersion": _SNAPSHOTS,
    "kind": "VolumeSnapshotClass",
    "metadata": {"name": "kept"},
    "driver": "fusevol.io",
    "deletionPolicy": "Retain",
}
SNAPSHOT_CONTENT: Obj = {
    "apiVersion": _SNAPSHOTS,
    "kind": "VolumeSnapshotContent",
    "metadata": {"name": "content"},
    "spec": {
        "driver": "fusevol.io",
        "deletionPolicy": "Delete",
        "source": {"snapshotHandle": "default/snap"},
        "volumeSnapshotRef": {"name": "before", "namespace": "default"},
    },
}
ALL = [CLAIM, VOLUME, CLASS, POD, SECRET, CONFIG, SNAPSHOT, SNAPSHOT_CLASS, SNAPSHOT_CONTENT]


def changed(obj: Obj, *changes: tuple[str, Any]) -> Obj:
    """A copy of *obj* with values set at paths such as ``spec/volumes/0/name``; ``...`` removes what is there."""
    new = copy.deepcopy(obj)
    for path, value in changes:
        at: Any = new
        *steps, last = [int(p) if p.isdigit() else p for p in path.split("/")]
        for step in steps:
            at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
        if value is ...:
            del at[last]
        else:
            at[last] = value
    return new


def refusal(obj: Any) -> str:
    """The sentence with which *obj* is refused."""
    with pytest.raises(InvalidError) as e:
        objects.admit(obj)
    assert "\n" not in e.value.message
    return e.value.message


def update_refusal(old: Obj, new: Obj) -> str:
    """The sentence with which a change is refused."""
    with pytest.raises(InvalidError) as e:
        objects.admit_update(old, new)
    assert "\n" not in e.value.message
    return e.value.message


def says(obj: Obj, text: str) -> str:
    """A whole refusal of one field error."""
    return f'{obj["kind"]} "{obj["metadata"]["name"]}" is invalid: {text}'
