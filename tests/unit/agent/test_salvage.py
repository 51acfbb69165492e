"""Volumes without a PersistentVolume: which they are, and the objects that they get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.controllers import salvage
from agent.controllers.salvage import Home
from agent.controllers.view import BIND_COMPLETED
from fusevol import objects
from fusevol.pool import Volume

Obj = dict[str, Any]

UID = "7b0a4a52-7a3f-4a3c-9d4e-0d5f3c8a1b2c"


def volume(name: str = f"pvc-{UID}", /, *, owned: bool = True, capacity: int | None = 1 << 20, **labels: str) -> Volume:
    """A volume as a pool has it."""
    return Volume(
        id=name,
        data=Path("/p/data"),
        ledger=Path("/p/ledger.json"),
        capacity_bytes=capacity,
        inode_limit=None,
        owner={"namespace": "default", "claim": "data", "uid": UID} if owned else {},
        labels={"kind": "claim", **labels},
        created="2026-01-01T00:00:00Z",
        quota="ledger",
        driver="plain",
        backing={},
    )


def claim(*, bound: bool, names: str = "") -> Obj:
    """A claim with the uid that the volume's name has."""
    annotations = {BIND_COMPLETED: "yes"} if bound else {}
    return {
        "metadata": {"name": "data", "namespace": "default", "uid": UID, "annotations": annotations},
        "spec": {"volumeName": names},
    }


def known(**given: Any) -> salvage.Known:
    """What these objects know of the pool ``p``."""
    return salvage.known("p", **{"volumes": [], "claims": [], "pods": [], "mounted": [], **given})


def persistent(handle: str) -> Obj:
    """A PersistentVolume of a volume."""
    return {"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "fusevol.io", "volumeHandle": handle}}}


@pytest.mark.parametrize(
    ("given", "found", "expected"),
    [
        ({}, volume(), False),
        ({"volumes": [persistent(f"p/pvc-{UID}")]}, volume(), True),
        ({"volumes": [persistent(f"other/pvc-{UID}")]}, volume(), False),
        ({"mounted": [f"pvc-{UID}"]}, volume(), True),
        ({"claims": [claim(bound=False)]}, volume(), True),
        ({"claims": [claim(bound=True, names=f"pvc-{UID}")]}, volume(), False),
        ({"pods": [{"metadata": {"uid": UID}}]}, volume(f"{UID}.scratch", kind="emptyDir"), True),
        ({"pods": [{"metadata": {"uid": "another"}}]}, volume(f"{UID}.scratch", kind="emptyDir"), False),
        ({}, volume("vol", kind="csi", name="vol"), True),
        ({}, volume("inline-0", kind="csi-inline"), True),
        ({}, volume(f"{UID}.inline", kind="csi"), False),
    ],
)
def test_known_volumes(given: Obj, found: Volume, expected: bool) -> None:
    """A PersistentVolume, a mount, a claim that is being served, a Pod and CSI account for volumes of their pool."""
    assert known(**given).has(found) is expected


def test_claims_that_have_lost_their_volume() -> None:
    """A bound claim whose PersistentVolume is gone is named, so that nobody throws its data away."""
    lost = known(claims=[claim(bound=True, names=f"pvc-{UID}")]).claims
    kept = known(claims=[claim(bound=True, names="pv")], volumes=[persistent("p/x")]).claims

    assert (lost, kept) == ({f"pvc-{UID}": "default/data"}, {})


def test_adopted_for_the_former_claim_alone() -> None:
    """The PersistentVolume names the claim that had it, uid and all: no other one can take what is in it."""
    found = volume(**{"class": "fast", "access-modes": "ReadWriteOnce,ReadWriteMany"})
    obj = salvage.persistent_volume(found, Home("p", [], None, None, 0), salvage.former_claim(found), "Retain", "me")
    spec = objects.admit(obj)["spec"]

    assert spec["claimRef"] == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": "default",
        "name": "data",
        "uid": UID,
    }
    assert (spec["accessModes"], spec["storageClassName"]) == (["ReadWriteOnce", "ReadWriteMany"], "fast")
    assert (spec["capacity"], spec["csi"]["volumeHandle"]) == ({"storage": "1Mi"}, f"p/pvc-{UID}")


def test_adopted_for_nobody() -> None:
    """A volume that was made for no claim is offered to all, with its pool's size if it has no limit."""
    found = volume(owned=False, capacity=None)
    obj = salvage.persistent_volume(found, Home("p", [], None, None, 4096), salvage.former_claim(found), "Retain", "me")
    spec = objects.admit(obj)["spec"]

    assert "claimRef" not in spec
    assert spec["capacity"] == {"storage": "4Ki"}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([], "Retain"),
        ([{"metadata": {"name": "other"}}], "Retain"),
        ([{"metadata": {"name": "fast"}}], "Delete"),
        ([{"metadata": {"name": "fast"}, "reclaimPolicy": "Retain"}], "Retain"),
    ],
)
def test_policy_of_the_class(classes: list[Obj], expected: str) -> None:
    """A restored volume has the policy of its class; without a class, it is kept."""
    assert salvage.policy_of(volume(**{"class": "fast"}), classes) == expected
