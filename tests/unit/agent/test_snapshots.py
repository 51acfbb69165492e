"""Snapshots: from the object to its content and back, and what keeps what from deletion (volume-semantics 4.16)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent.controllers import snapshots
from agent.controllers.snapshots import BOUND_PROTECTION, CONTENT_PROTECTION, SOURCE_PROTECTION
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
    annotate,
    finalizers,
)
from fusevol import objects

Obj = dict[str, Any]

CLAIM: Obj = {
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data", "namespace": "default", "uid": "uc", "annotations": {BIND_COMPLETED: "yes"}},
    "spec": {"volumeName": "pv"},
    "status": {"phase": "Bound"},
}
VOLUME: Obj = {
    "kind": "PersistentVolume",
    "metadata": {"name": "pv", "uid": "uv"},
    "spec": {"csi": {"driver": "fusevol.io", "volumeHandle": "default/pv"}},
}
CLASS: Obj = {
    "kind": "VolumeSnapshotClass",
    "metadata": {"name": "std", "annotations": {objects.snapshotclass.DEFAULT_ANNOTATION: "true"}},
    "driver": "fusevol.io",
    "deletionPolicy": "Delete",
}
SNAPSHOT: Obj = {
    "kind": "VolumeSnapshot",
    "metadata": {"name": "before", "namespace": "default", "uid": "us"},
    "spec": {"source": {"persistentVolumeClaimName": "data"}},
}


class World:
    """Objects, and the decisions on them carried out."""

    def __init__(self, *given: Obj) -> None:
        self.objects = {(o["kind"], o["metadata"]["name"]): copy.deepcopy(o) for o in (CLAIM, VOLUME, CLASS, *given)}
        self.events: list[str] = []
        self.broken = ""
        """Why no snapshot can be taken."""

    def view(self) -> View:
        """What decisions look at."""

        def named(kind: str) -> dict[str, Obj]:
            return {name: o for (k, name), o in self.objects.items() if k == kind}

        def spaced(kind: str) -> dict[tuple[str, str], Obj]:
            return {(o["metadata"]["namespace"], name): o for name, o in named(kind).items()}

        return View(
            volumes=named("PersistentVolume"),
            claims=spaced("PersistentVolumeClaim"),
            snapshots=spaced("VolumeSnapshot"),
            contents=named("VolumeSnapshotContent"),
            snapshot_classes=named("VolumeSnapshotClass"),
        )

    def settle(self) -> None:
        """Decide and act until nothing is left to do."""
        for _ in range(30):
            told: list[Action] = []
            for obj in list(self.objects.values()):
                actions = self._decide(obj)
                if any(not isinstance(a, Event) for a in actions):
                    break
                told += actions
            else:
                for action in told:
                    self._do(action)
                return
            for action in actions:
                self._do(action)
            if self.broken and any(isinstance(a, TakeSnapshot) for a in actions):
                return
        raise AssertionError("it never ends")

    def _decide(self, obj: Obj) -> list[Action]:
        match obj["kind"]:
            case "VolumeSnapshot":
                return snapshots.decide(obj, self.view())
            case "VolumeSnapshotContent":
                return snapshots.decide_content(obj, self.view())
            case _:
                return []

    def _do(self, action: Action) -> None:
        match action:
            case Put(obj) | Create(obj):
                key = (obj["kind"], obj["metadata"]["name"])
                obj["metadata"].setdefault("uid", "made")
                self.objects[key] = obj
                if obj["metadata"].get("deletionTimestamp") and not finalizers(obj):
                    del self.objects[key]
            case Delete(obj):
                self.delete(obj["kind"], obj["metadata"]["name"])
            case TakeSnapshot(content):
                if not self.broken:
                    taken = {"readyToUse": True, "restoreSize": 1 << 30, "creationTime": 1_700_000_000 * 10**9}
                    content["status"] = {**taken, "snapshotHandle": "default/snap"}
            case DropSnapshot(content):
                content["metadata"]["finalizers"] = []
                del self.objects["VolumeSnapshotContent", content["metadata"]["name"]]
                self.events.append("dropped")
            case Event(_, reason, _, _):
                self.events.append(reason)
            case _:
                raise AssertionError(action)

    def delete(self, kind: str, name: str) -> None:
        """What a user does."""
        obj = self.objects[kind, name]
        if finalizers(obj):
            obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        else:
            del self.objects[kind, name]

    def __getitem__(self, key: tuple[str, str]) -> Obj:
        return self.objects[key]


def test_a_snapshot_is_taken_and_told() -> None:
    """The class is the default one, the content is named by the uid, and the status is in Kubernetes' units."""
    world = World(SNAPSHOT)
    world.settle()
    snapshot = world["VolumeSnapshot", "before"]
    content = world["VolumeSnapshotContent", "snapcontent-us"]

    assert snapshot["spec"]["volumeSnapshotClassName"] == "std"
    assert snapshot["status"] == {
        "boundVolumeSnapshotContentName": "snapcontent-us",
        "creationTime": "2023-11-14T22:13:20Z",
        "readyToUse": True,
        "restoreSize": "1Gi",
    }
    assert finalizers(snapshot) == [BOUND_PROTECTION]
    assert finalizers(content) == [CONTENT_PROTECTION]
    assert content["spec"]["source"] == {"volumeHandle": "default/pv"}
    assert finalizers(world["PersistentVolumeClaim", "data"]) == []
    assert world.events == ["SnapshotReady"]


def test_the_claim_stays_while_its_snapshot_is_taken() -> None:
    """And is let go of when the snapshot that never came is deleted."""
    world = World(SNAPSHOT)
    world.broken = "the pool is full"
    world.settle()
    assert finalizers(world["PersistentVolumeClaim", "data"]) == [SOURCE_PROTECTION]

    world.delete("VolumeSnapshot", "before")
    world.settle()
    assert finalizers(world["PersistentVolumeClaim", "data"]) == []
    assert not [k for k in world.objects if k[0].startswith("VolumeSnapshot") and k[0] != "VolumeSnapshotClass"]


def test_deleting_a_snapshot_deletes_its_content() -> None:
    """By the policy Delete, the backend's snapshot first."""
    world = World(SNAPSHOT)
    world.settle()
    world.delete("VolumeSnapshot", "before")
    world.settle()

    assert "dropped" in world.events
    assert {kind for kind, _ in world.objects} == {"PersistentVolumeClaim", "PersistentVolume", "VolumeSnapshotClass"}


def test_retain_keeps_the_content() -> None:
    """By the policy Retain the content stays, with a stale reference."""
    world = World(SNAPSHOT, {**CLASS, "deletionPolicy": "Retain"})
    world.settle()
    world.delete("VolumeSnapshot", "before")
    world.settle()

    assert "dropped" not in world.events
    assert ("VolumeSnapshot", "before") not in world.objects
    assert world["VolumeSnapshotContent", "snapcontent-us"]["status"]["readyToUse"]


def test_a_content_in_use_is_not_deleted() -> None:
    """Its own deletion waits for the snapshot's."""
    world = World(SNAPSHOT)
    world.settle()
    world.delete("VolumeSnapshotContent", "snapcontent-us")
    world.settle()
    assert ("VolumeSnapshotContent", "snapcontent-us") in world.objects

    world.delete("VolumeSnapshot", "before")
    world.settle()
    assert ("VolumeSnapshotContent", "snapcontent-us") not in world.objects


def test_a_snapshot_that_is_being_restored_waits() -> None:
    """Deleting it is put off, with an event."""
    restored = copy.deepcopy(CLAIM)
    restored["metadata"] = {"name": "copy", "namespace": "default", "uid": "ux"}
    restored["spec"] = {"dataSource": {"kind": "VolumeSnapshot", "name": "before"}}
    world = World(SNAPSHOT, restored)
    world.settle()
    world.delete("VolumeSnapshot", "before")
    world.settle()
    assert world.events[-1] == "SnapshotDeletePending"

    annotate(world["PersistentVolumeClaim", "copy"])[BIND_COMPLETED] = "yes"
    world.settle()
    assert ("VolumeSnapshot", "before") not in world.objects


def test_a_content_that_the_user_named() -> None:
    """Both must name each other; the uid is filled in."""
    content: Obj = {
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": "old", "uid": "uo"},
        "spec": {
            "driver": "fusevol.io",
            "deletionPolicy": "Retain",
            "source": {"snapshotHandle": "default/snap"},
            "volumeSnapshotRef": {"name": "before", "namespace": "default"},
        },
    }
    static = {**SNAPSHOT, "spec": {"source": {"volumeSnapshotContentName": "old"}}}
    world = World(static, content)
    world.settle()
    assert world["VolumeSnapshotContent", "old"]["spec"]["volumeSnapshotRef"]["uid"] == "us"
    assert world["VolumeSnapshot", "before"]["status"]["readyToUse"]

    other = copy.deepcopy(content)
    other["spec"]["volumeSnapshotRef"]["name"] = "another"
    world = World(static, other)
    world.settle()
    assert "SnapshotContentMisbound" in world.events
    assert not world["VolumeSnapshot", "before"]["status"]["readyToUse"]


@pytest.mark.parametrize(
    ("kind", "name", "change", "told"),
    [
        ("VolumeSnapshotClass", "std", {"metadata": {"name": "std"}}, "cannot find default snapshot class"),
        ("VolumeSnapshotClass", "std", {"driver": "other.io"}, "cannot find default snapshot class"),
        ("PersistentVolumeClaim", "data", {"status": {"phase": "Pending"}}, "not yet bound"),
        ("PersistentVolume", "pv", {"spec": {"hostPath": {"path": "/srv"}}}, "only what it makes has snapshots"),
    ],
)
def test_what_cannot_be_taken(kind: str, name: str, change: Obj, told: str) -> None:
    """The status says why, once; when the cause is gone it is taken."""
    world = World(SNAPSHOT)
    whole = world[kind, name]
    world.objects[kind, name] = {**whole, **change}
    world.settle()
    world.settle()
    assert told in world["VolumeSnapshot", "before"]["status"]["error"]["message"]
    assert len(world.events) == 1

    world.objects[kind, name] = whole
    world.settle()
    assert world["VolumeSnapshot", "before"]["status"]["readyToUse"]
    assert "error" not in world["VolumeSnapshot", "before"]["status"]


def test_two_default_classes() -> None:
    """Neither is taken."""
    world = World(SNAPSHOT, {**CLASS, "metadata": {**CLASS["metadata"], "name": "second"}})
    world.settle()

    assert world["VolumeSnapshot", "before"]["status"]["error"]["message"] == "2 default snapshot classes were found"


def test_a_content_that_is_missing() -> None:
    """One that the user named and one that was taken: an event, and the snapshot cannot be restored from."""
    world = World({**SNAPSHOT, "spec": {"source": {"volumeSnapshotContentName": "old"}}})
    world.settle()
    static = world["VolumeSnapshot", "before"]["status"]["readyToUse"], world.events
    world = World(SNAPSHOT)
    world.settle()
    world.events.clear()
    del world.objects["VolumeSnapshotContent", "snapcontent-us"]
    world.settle()

    assert static == (False, ["SnapshotContentMissing"])
    assert world.events == ["SnapshotContentMissing"]
    assert not world["VolumeSnapshot", "before"]["status"]["readyToUse"]
