"""Phases, finalizers and the end of PersistentVolumes (volume-semantics 4.3, 4.10), and what is provisioned (4.9)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent.controllers import provisioning, reclaim
from agent.controllers.view import (
    BACKEND_FINALIZER,
    BOUND_BY_CONTROLLER,
    PROVISIONED_BY,
    VOLUME_PROTECTION,
    Event,
    Put,
    Reclaim,
    View,
)
from fusevol.errors import InvalidError

Obj = dict[str, Any]

CLAIM: Obj = {
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data", "namespace": "default", "uid": "u1"},
    "spec": {"volumeName": "v", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


def made(policy: str = "Delete", phase: str = "Bound", *, ours: bool = True) -> Obj:
    """A volume that is bound to the claim."""
    return {
        "kind": "PersistentVolume",
        "metadata": {
            "name": "v",
            "uid": "uv",
            "annotations": {PROVISIONED_BY: "fusevol.io/fusevol" if ours else "ceph.com/cephfs"},
            "finalizers": [VOLUME_PROTECTION, *([BACKEND_FINALIZER] if ours and policy == "Delete" else [])],
        },
        "spec": {
            "claimRef": {"namespace": "default", "name": "data", "uid": "u1"},
            "persistentVolumeReclaimPolicy": policy,
            "csi": {"driver": "fusevol.io", "volumeHandle": "default/v"},
        },
        "status": {"phase": phase},
    }


def view(*claims: Obj, attached: frozenset[str] = frozenset()) -> View:
    """A view with *claims*."""
    return View(claims={(c["metadata"]["namespace"], c["metadata"]["name"]): c for c in claims}, attached=attached)


def phase_after(volume: Obj, seen: View) -> str:
    """The phase that the one write sets."""
    (action,) = reclaim.decide(volume, seen)
    assert isinstance(action, Put)
    return str(action.object["status"]["phase"])


def test_a_bound_volume_is_left_alone() -> None:
    """Nothing to do while the claim is there."""
    assert reclaim.decide(made(), view(CLAIM)) == []


def test_a_volume_without_its_claim_is_released() -> None:
    """Bound becomes Released when the claim is gone."""
    assert phase_after(made(), view()) == "Released"


def test_a_claim_of_the_same_name_is_another_claim() -> None:
    """The uid decides: a claim that was made anew does not get the old data."""
    other = copy.deepcopy(CLAIM)
    other["metadata"]["uid"] = "u2"

    assert phase_after(made(), view(other)) == "Released"


def test_delete_reclaims_what_was_provisioned_here() -> None:
    """Released with policy Delete: the data goes."""
    volume = made(phase="Released")

    assert reclaim.decide(volume, view()) == [Reclaim(volume)]


def test_retain_keeps_the_volume_released() -> None:
    """Released with policy Retain: nothing happens, for ever."""
    assert reclaim.decide(made("Retain", "Released"), view()) == []


def test_a_volume_of_another_provisioner_is_not_deleted() -> None:
    """The seed's cephfs volume: its data is not ours to delete; an event says so."""
    (action,) = reclaim.decide(made(phase="Released", ours=False), view())

    assert isinstance(action, Event)
    assert "ceph.com/cephfs" in action.message


def test_a_mounted_volume_is_not_deleted() -> None:
    """4.10: in use at delete time is an event, and tried again."""
    (action,) = reclaim.decide(made(phase="Released"), view(attached=frozenset({"u1"})))

    assert isinstance(action, Event)
    assert action.reason == "VolumeDelete"


def test_recycle_fails_with_kubernetes_words() -> None:
    """There is no recycler."""
    put, event = reclaim.decide(made("Recycle", "Released"), view())

    assert isinstance(put, Put)
    assert isinstance(event, Event)
    assert put.object["status"]["phase"] == "Failed"
    assert event.message == "No recycler plugin found for the volume!"


def test_a_reserved_volume_is_available() -> None:
    """claimRef without a uid reserves, it does not bind."""
    volume = made(phase="Pending")
    del volume["spec"]["claimRef"]["uid"]

    assert phase_after(volume, view()) == "Available"


@pytest.mark.parametrize("phase", ["Pending", "Released", "Failed"])
def test_a_volume_without_a_reference_is_available(phase: str) -> None:
    """4.3: a new one, and one whose claimRef an administrator has removed; what was wrong before is forgotten."""
    volume = made("Retain", phase)
    del volume["spec"]["claimRef"]
    volume["status"] |= {"reason": "VolumeFailedDelete", "message": "no"}
    (action,) = reclaim.decide(volume, view())
    assert isinstance(action, Put)

    assert set(action.object["status"]) == {"phase", "lastPhaseTransitionTime"}
    assert action.object["status"]["phase"] == "Available"


@pytest.mark.parametrize("by_controller", [True, False])
def test_a_volume_whose_claim_is_bound_elsewhere_is_free_again(by_controller: bool) -> None:
    """4.3: the controller's claimRef is removed, the user's keeps name and namespace."""
    volume = made("Retain")
    if by_controller:
        volume["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes"
    elsewhere = copy.deepcopy(CLAIM)
    elsewhere["spec"]["volumeName"] = "other"
    (action,) = reclaim.decide(volume, view(elsewhere))
    assert isinstance(action, Put)
    left = action.object["spec"].get("claimRef")

    assert left == (None if by_controller else {"namespace": "default", "name": "data"})


def test_what_was_made_for_a_claim_that_is_bound_elsewhere_goes() -> None:
    """4.3: with policy Delete nobody else gets a volume that was made for one claim."""
    elsewhere = copy.deepcopy(CLAIM)
    elsewhere["spec"]["volumeName"] = "other"

    assert phase_after(made(), view(elsewhere)) == "Released"
    assert reclaim.decide(made(phase="Released"), view(elsewhere)) == [Reclaim(made(phase="Released"))]


def test_a_new_volume_is_protected() -> None:
    """4.4: a volume that somebody created gets the finalizer that keeps it while it is Bound."""
    volume = made("Retain", ours=False)
    volume["metadata"]["finalizers"] = []
    (action,) = reclaim.decide(volume, view(CLAIM))
    assert isinstance(action, Put)

    assert action.object["metadata"]["finalizers"] == [VOLUME_PROTECTION]


def test_a_deleted_volume_waits_for_its_claim() -> None:
    """pv-protection: a Bound volume stays; once it is Released, the protection goes."""
    volume = made("Retain")
    volume["metadata"]["deletionTimestamp"] = "now"
    assert reclaim.decide(volume, view(CLAIM)) == []
    volume["status"]["phase"] = "Released"
    (action,) = reclaim.decide(volume, view())
    assert isinstance(action, Put)

    assert action.object["metadata"]["finalizers"] == []


def test_a_policy_that_becomes_retain_lets_the_object_go() -> None:
    """The finalizer of the backend stays only while deleting the data is wanted."""
    volume = made()
    volume["spec"]["persistentVolumeReclaimPolicy"] = "Retain"
    (action,) = reclaim.decide(volume, view(CLAIM))
    assert isinstance(action, Put)

    assert action.object["metadata"]["finalizers"] == [VOLUME_PROTECTION]


STORAGE_CLASS: Obj = {
    "metadata": {"name": "fast"},
    "provisioner": "fusevol.io/fusevol",
    "parameters": {"pool": "ssd", "mode": "0750", "csi.storage.k8s.io/fstype": "xfs"},
    "mountOptions": ["noatime"],
    "reclaimPolicy": "Retain",
}


def test_the_volume_is_made_as_the_class_says() -> None:
    """4.9: name by the claim's uid, class's pool, mode, options and policy; the claim's size, modes and reference."""
    plan = provisioning.plan(CLAIM, STORAGE_CLASS)
    volume = provisioning.persistent_volume(CLAIM, STORAGE_CLASS, plan, plan.capacity, "fusevol.io/fusevol")

    assert (plan.pool, plan.volume, plan.capacity, plan.mode) == ("ssd", "pvc-u1", 1 << 30, 0o750)
    assert volume["metadata"]["name"] == "pvc-u1"
    assert volume["metadata"]["annotations"] == {PROVISIONED_BY: "fusevol.io/fusevol"}
    assert volume["metadata"]["finalizers"] == [VOLUME_PROTECTION]
    assert volume["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert volume["spec"]["volumeMode"] == "Filesystem"
    assert volume["spec"]["claimRef"]["uid"] == "u1"
    assert volume["spec"]["mountOptions"] == ["noatime"]
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["spec"]["capacity"] == {"storage": "1Gi"}
    assert volume["spec"]["csi"] == {"driver": "fusevol.io", "volumeHandle": "ssd/pvc-u1"}


@pytest.mark.parametrize(
    ("spec", "parameters", "said"),
    [
        ({}, {}, None),
        ({"selector": {}}, {}, "claim Selector is not supported"),
        ({"selector": {"matchLabels": {"a": "b"}}}, {}, "claim Selector is not supported"),
        ({"volumeMode": "Block"}, {}, "fusevol.io/fusevol does not support block volume provisioning: ask for"),
        ({}, {"type": "gp2"}, "unknown parameters type"),
        ({}, {"mode": "rwx"}, "not octal"),
        ({}, {"inodes": "0"}, "not a positive number"),
        ({}, {"trashRetention": "1d"}, 'The parameter trashRetention of StorageClass "fast" "1d" is not a time'),
        ({}, {"quota": "soft"}, 'The parameter quota "soft" of StorageClass "fast" is not known: write "hard"'),
    ],
)
def test_what_cannot_be_provisioned_is_refused(spec: Obj, parameters: dict[str, str], said: str | None) -> None:
    """Each refusal names what is wrong."""
    claim = {**CLAIM, "spec": {**CLAIM["spec"], **spec}}
    storage_class = {**STORAGE_CLASS, "parameters": parameters}
    message = None
    try:
        provisioning.plan(claim, storage_class)
    except InvalidError as e:
        message = str(e)

    assert (message is None) if said is None else (said in (message or ""))


@pytest.mark.parametrize("parameters", [{}, {"quota": "hard"}, {"quota": "none"}])
def test_a_class_may_do_without_a_quota(parameters: dict[str, str]) -> None:
    """Limits are kept unless the class says otherwise."""
    plan = provisioning.plan(CLAIM, {**STORAGE_CLASS, "parameters": parameters})

    assert plan.enforced == (parameters.get("quota") != "none")


def test_the_volumes_record_says_what_its_objects_said() -> None:
    """For how long it is kept in the trash, and what a PersistentVolume that is made of it again must say."""
    kept = provisioning.plan(CLAIM, {**STORAGE_CLASS, "parameters": {"trashRetention": "24h"}})
    plain = provisioning.plan(CLAIM, {**STORAGE_CLASS, "parameters": {}})

    assert kept.labels == {**plain.labels, "trash-retention": "86400"}
    assert plain.labels == {"kind": "claim", "class": "", "access-modes": "ReadWriteOnce"}


@pytest.mark.parametrize("handle", ["", "a", "/a", "a/", "a/b/c"])
def test_a_handle_that_names_no_volume_is_refused(handle: str) -> None:
    """A static volume's handle is checked before it becomes a path."""
    with pytest.raises(InvalidError):
        provisioning.parse_handle(handle)
