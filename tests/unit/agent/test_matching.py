"""Static matching and the binding of claims: the tables of Kubernetes' rules (volume-semantics 4.5 to 4.8)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent.controllers import binding, matching
from agent.controllers.view import (
    BIND_COMPLETED,
    BOUND_BY_CONTROLLER,
    CLAIM_PROTECTION,
    DEFAULT_CLASS,
    SELECTED_NODE,
    STORAGE_PROVISIONER,
    Action,
    Discard,
    Event,
    Expand,
    Provision,
    Put,
    View,
    default_class,
)
from agent.volumes.node import Node

Obj = dict[str, Any]


def pv(name: str, size: str = "10Gi", modes: tuple[str, ...] = ("ReadWriteOnce",), **spec: Any) -> Obj:
    """An available volume."""
    labels = spec.pop("labels", {})
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "labels": labels},
        "spec": {"capacity": {"storage": size}, "accessModes": list(modes), **spec},
        "status": {"phase": "Available"},
    }


def pvc(size: str = "5Gi", modes: tuple[str, ...] = ("ReadWriteOnce",), **spec: Any) -> Obj:
    """A claim that waits."""
    annotations = spec.pop("annotations", {})
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "data",
            "namespace": "default",
            "uid": "u1",
            "resourceVersion": "2",
            "finalizers": [CLAIM_PROTECTION],
            "annotations": annotations,
        },
        "spec": {"resources": {"requests": {"storage": size}}, "accessModes": list(modes), **spec},
        "status": {"phase": "Pending"},
    }


def sc(name: str = "fast", provisioner: str = "fusevol.io/fusevol", **fields: Any) -> Obj:
    """A class."""
    return {"kind": "StorageClass", "metadata": {"name": name}, "provisioner": provisioner, **fields}


def leaving(obj: Obj) -> Obj:
    """*obj* while it is being deleted."""
    return {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": "now"}}


def view(*objects: Obj, **fields: Any) -> View:
    """A view of *objects*."""
    return View(
        volumes={o["metadata"]["name"]: o for o in objects if o["kind"] == "PersistentVolume"},
        candidates=[o for o in objects if o["kind"] == "PersistentVolume"],
        classes={o["metadata"]["name"]: o for o in objects if o["kind"] == "StorageClass"},
        **fields,
    )


RWO, RWX = "ReadWriteOnce", "ReadWriteMany"
NO_A: Obj = {"key": "a", "operator": "DoesNotExist"}


@pytest.mark.parametrize(
    ("volumes", "claim", "found"),
    [
        ([pv("a", "10Gi"), pv("b", "30Gi")], pvc("20Gi"), "b"),
        ([pv("a", "10Gi"), pv("b", "30Gi")], pvc("10Gi"), "a"),
        ([pv("a", "10Gi"), pv("b", "30Gi")], pvc("31Gi"), None),
        ([pv("a", "30Gi", (RWO,)), pv("b", "10Gi", (RWO, RWX))], pvc(), "a"),
        ([pv("a", "30Gi", (RWX,))], pvc(), None),
        ([pv("a")], pvc(selector={"matchLabels": {"a": "2"}}), None),
        ([pv("a", labels={"a": "2"})], pvc(selector={"matchLabels": {"a": "2"}}), "a"),
        ([pv("a", labels={"a": "2"})], pvc(selector={}), "a"),
        ([pv("a", labels={"a": "2"})], pvc(selector={"matchLabels": {"a": "2"}, "matchExpressions": [NO_A]}), None),
        ([pv("b"), pv("a")], pvc(), "a"),
        ([pv("a", storageClassName="x")], pvc(), None),
        ([pv("a", storageClassName="x")], pvc(storageClassName="x"), "a"),
        ([pv("a", volumeMode="Block")], pvc(), None),
        ([pv("a", volumeMode="Filesystem")], pvc(volumeMode="Block"), None),
        ([pv("a"), pv("b", "6Gi", volumeMode="Block")], pvc(volumeMode="Block"), "b"),
        ([pv("a", volumeMode="Block", claimRef={"namespace": "default", "name": "data"})], pvc(), None),
        ([pv("a", volumeAttributesClassName="gold")], pvc(), None),
        ([pv("a")], pvc(volumeAttributesClassName="gold"), None),
        ([pv("a", volumeAttributesClassName="gold")], pvc(volumeAttributesClassName="gold"), "a"),
        ([{**pv("a"), "status": {"phase": "Pending"}}], pvc(), None),
        ([{**pv("a"), "status": {"phase": "Failed"}}], pvc(), None),
        ([pv("a", claimRef={"namespace": "default", "name": "other"})], pvc(), None),
        ([pv("a", claimRef={"namespace": "else", "name": "data"})], pvc(), None),
        ([pv("a", "6Gi"), pv("b", modes=(RWO, RWX), claimRef={"namespace": "default", "name": "data"})], pvc(), "a"),
        ([pv("a", "6Gi"), pv("b", claimRef={"namespace": "default", "name": "data"})], pvc(), "b"),
        ([pv("b", storageClassName="z", claimRef={"namespace": "default", "name": "data"})], pvc(), "b"),
        ([pv("b", claimRef={"namespace": "default", "name": "data", "uid": "other"})], pvc(), None),
    ],
)
def test_the_best_volume_is_found(volumes: list[Obj], claim: Obj, found: str | None) -> None:
    """The examples of 4.6: tightest modes, then smallest, then by name; a pre-bound one first."""
    chosen = matching.find(claim, volumes)

    assert (chosen["metadata"]["name"] if chosen else None) == found


@pytest.mark.parametrize(
    ("operator", "values", "labels", "holds"),
    [
        ("In", ["1"], {"k": "1"}, True),
        ("In", ["1"], {}, False),
        ("NotIn", ["1"], {}, True),
        ("NotIn", ["1"], {"k": "1"}, False),
        ("Exists", None, {"k": ""}, True),
        ("DoesNotExist", None, {"k": ""}, False),
        ("DoesNotExist", None, {}, True),
    ],
)
def test_selector_expressions(operator: str, values: list[str] | None, labels: dict[str, str], holds: bool) -> None:
    """The four operators treat a missing key as Kubernetes does."""
    selector = {"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}

    assert matching.selected(selector, labels) is holds


def test_a_deleted_volume_is_no_candidate() -> None:
    """A volume with a deletionTimestamp gets no new claim, not even one that it is reserved for."""
    reserved = pv("a", claimRef={"namespace": "default", "name": "data"})

    assert matching.find(pvc(), [leaving(pv("a")), leaving(reserved)]) is None


def test_the_older_annotations_count() -> None:
    """4.4, 4.5: the beta annotation names the class before the field does, and marks a default class."""
    old = {"volume.beta.kubernetes.io/storage-class": "x"}
    claim = pvc(storageClassName="y", annotations=old)
    volume = pv("b", storageClassName="y")
    volume["metadata"]["annotations"] = old
    default = sc()
    default["metadata"]["annotations"] = {"storageclass.beta.kubernetes.io/is-default-class": "true"}

    assert matching.find(claim, [pv("a", storageClassName="y"), volume]) == volume
    assert default_class({"fast": default}) == "fast"


def test_the_newest_default_class_wins_and_the_name_breaks_ties() -> None:
    """4.5: several default classes are no error."""
    marked = {DEFAULT_CLASS: "true"}
    classes = {
        n: {"metadata": {"name": n, "annotations": marked, "creationTimestamp": t}}
        for n, t in (("c", "2020"), ("b", "2021"), ("a", "2021"))
    }

    assert default_class(classes) == "a"


def only(actions: list[Action], kind: type[Action]) -> Any:
    """The one action of a kind."""
    found = [a for a in actions if isinstance(a, kind)]
    assert len(found) == 1, actions
    return found[0]


def test_binding_writes_the_volume_first() -> None:
    """4.7: claimRef and phase of the volume, then the claim with annotations, phase and capacity of the volume."""
    first, second = binding.decide(pvc("20Gi"), view(pv("a", "30Gi")))

    assert isinstance(first, Put)
    assert isinstance(second, Put)
    volume, claim = first.object, second.object
    assert volume["spec"]["claimRef"]["uid"] == "u1"
    assert volume["status"]["phase"] == "Bound"
    assert volume["metadata"]["annotations"] == {BOUND_BY_CONTROLLER: "yes"}
    assert claim["spec"]["volumeName"] == "a"
    assert claim["metadata"]["annotations"] == {BOUND_BY_CONTROLLER: "yes", BIND_COMPLETED: "yes"}
    assert claim["status"] == {"phase": "Bound", "accessModes": [RWO], "capacity": {"storage": "30Gi"}}


def test_a_binding_that_was_interrupted_is_completed() -> None:
    """After the first write alone, the same decision makes the second."""
    first, second = binding.decide(pvc(), view(pv("a")))
    assert isinstance(first, Put)
    again = binding.decide(pvc(), view(first.object))

    assert again == [second]


def test_a_complete_binding_needs_nothing() -> None:
    """A bound pair is left alone."""
    first, second = binding.decide(pvc(), view(pv("a")))
    assert isinstance(first, Put)
    assert isinstance(second, Put)

    assert binding.decide(second.object, view(first.object)) == []


def test_a_volume_that_lost_its_reference_is_bound_again() -> None:
    """4.8: a bound claim takes its volume back when somebody has removed the volume's claimRef."""
    first, second = binding.decide(pvc(), view(pv("a")))
    assert isinstance(first, Put)
    assert isinstance(second, Put)
    volume = copy.deepcopy(first.object)
    del volume["spec"]["claimRef"]
    (put,) = binding.decide(second.object, view(volume))
    assert isinstance(put, Put)

    assert put.object["spec"]["claimRef"]["uid"] == "u1"


def test_a_volume_reserved_for_the_claim_waits_for_no_pod() -> None:
    """4.14: what is pre-bound is bound at once, whatever the class's mode; what only fits waits."""
    late = sc(volumeBindingMode="WaitForFirstConsumer")
    claim = pvc(storageClassName="fast")
    reserved = pv("a", storageClassName="fast", claimRef={"namespace": "default", "name": "data"})
    found = [type(action) for action in binding.decide(claim, view(late, reserved))]
    fits = binding.decide(claim, view(late, pv("a", storageClassName="fast")))

    assert found == [Put, Put]
    assert only(fits, Event).reason == "WaitForFirstConsumer"


def test_a_claim_without_a_class_gets_the_default_one_later() -> None:
    """4.5: a default class that appears is assigned to a claim that has none and is not bound."""
    default = sc(annotations=None)
    default["metadata"]["annotations"] = {DEFAULT_CLASS: "true"}
    put = only(binding.decide(pvc(), view(default)), Put)

    assert put.object["spec"]["storageClassName"] == "fast"


def test_the_empty_class_is_never_provisioned() -> None:
    """4.5: `""` asks for a volume without a class, whatever the default."""
    default = sc()
    default["metadata"]["annotations"] = {DEFAULT_CLASS: "true"}
    event = only(binding.decide(pvc(storageClassName=""), view(default)), Event)

    assert (event.reason, event.message) == (
        "FailedBinding",
        "no persistent volumes available for this claim and no storage class is set",
    )


def test_provisioning_is_announced_on_the_claim_first() -> None:
    """4.9: both annotations are written, then the volume is made."""
    claim = pvc(storageClassName="fast")
    put = only(binding.decide(claim, view(sc())), Put)
    assert put.object["metadata"]["annotations"] == {
        STORAGE_PROVISIONER: "fusevol.io/fusevol",
        "volume.beta.kubernetes.io/storage-provisioner": "fusevol.io/fusevol",
    }

    assert binding.decide(put.object, view(sc())) == [Provision(put.object, sc())]


def test_a_provisioner_of_others_is_named_with_the_remedy() -> None:
    """The seed's class `standard`: its claims wait, and the event says for whom and what to do."""
    standard = sc("standard", "kubernetes.io/aws-ebs")
    claim = pvc(storageClassName="standard", annotations={STORAGE_PROVISIONER: "kubernetes.io/aws-ebs"})
    event = only(binding.decide(claim, view(standard)), Event)

    assert event.reason == "ExternalProvisioning"
    assert '"kubernetes.io/aws-ebs"' in event.message
    assert "fusevol.io/fusevol" in event.message


def test_a_class_that_does_not_exist_is_an_event() -> None:
    """4.5: provisioning fails with the class's name and the claim stays Pending."""
    event = only(binding.decide(pvc(storageClassName="x"), view()), Event)

    assert (event.reason, event.message) == ("ProvisioningFailed", 'storageclass.storage.k8s.io "x" not found')


def test_delayed_binding_waits_for_a_pod() -> None:
    """4.14: nothing before the first Pod, then the node is written and provisioning goes on."""
    late = sc(volumeBindingMode="WaitForFirstConsumer")
    claim = pvc(storageClassName="fast")
    waiting = only(binding.decide(claim, view(late)), Event)
    assert waiting.reason == "WaitForFirstConsumer"
    assert waiting.message == "waiting for first consumer to be created before binding"
    put = only(binding.decide(claim, view(late, users={("default", "data"): ["p"]}, node=Node(name="n1"))), Put)

    assert put.object["metadata"]["annotations"][SELECTED_NODE] == "n1"


CANNOT = 'Cannot bind to requested volume "v"'


@pytest.mark.parametrize(
    ("volume", "reason", "message"),
    [
        (None, "FailedBinding", 'volume "v" not found'),
        (pv("v", "1Gi"), "VolumeMismatch", f"{CANNOT}: requested PV is too small"),
        (pv("v", storageClassName="x"), "VolumeMismatch", f"{CANNOT}: storageClassName does not match"),
        (pv("v", modes=(RWX,)), "VolumeMismatch", f"{CANNOT}: incompatible accessMode"),
        (pv("v", volumeMode="Block"), "VolumeMismatch", f"{CANNOT}: incompatible volumeMode"),
        (
            pv("v", volumeAttributesClassName="x"),
            "VolumeMismatch",
            f"{CANNOT}: volumeAttributesClassName does not match",
        ),
        (leaving(pv("v")), "VolumeMismatch", f"{CANNOT}: the volume is being deleted"),
        (
            pv("v", claimRef={"namespace": "default", "name": "other"}),
            "FailedBinding",
            'volume "v" already bound to a different claim.',
        ),
    ],
)
def test_a_volume_that_the_claim_names_must_fit(volume: Obj | None, reason: str, message: str) -> None:
    """4.7: pre-binding on the claim's side is checked unless the volume names the claim; the claim stays Pending."""
    event = only(binding.decide(pvc(volumeName="v"), view(*([volume] if volume else []))), Event)

    assert (event.reason, event.message) == (reason, message)


def test_a_volume_that_names_the_claim_back_is_bound_unchecked() -> None:
    """4.7: pre-binding on both sides skips the checks."""
    volume = pv("v", "1Gi", claimRef={"namespace": "default", "name": "data"})
    actions = binding.decide(pvc(volumeName="v"), view(volume))

    assert [type(a) for a in actions] == [Put, Put]


@pytest.mark.parametrize(
    ("name", "volume", "reason"),
    [
        ("v", None, "ClaimLost"),
        ("", pv("v"), "ClaimLost"),
        ("v", pv("v", claimRef={"namespace": "d", "name": "x", "uid": "y"}), "ClaimMisbound"),
        ("v", pv("v", claimRef={"namespace": "default", "name": "data", "uid": "y"}), "ClaimMisbound"),
    ],
)
def test_a_bound_claim_without_its_volume_is_lost(name: str, volume: Obj | None, reason: str) -> None:
    """4.8: Lost clears capacity and modes and says why, once."""
    claim = pvc(volumeName=name, annotations={BIND_COMPLETED: "yes"})
    claim["status"] = {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": [RWO]}
    put, event = binding.decide(claim, view(*([volume] if volume else [])))
    assert isinstance(put, Put)
    assert isinstance(event, Event)
    assert put.object["status"] == {"phase": "Lost"}
    assert event.reason == reason

    assert binding.decide(put.object, view(*([volume] if volume else []))) == []


@pytest.mark.parametrize("uid", [{"uid": "u1"}, {}])
def test_a_lost_claim_is_bound_when_its_volume_is_back(uid: Obj) -> None:
    """Lost is not for ever: the volume, restored with its claimRef, with or without the uid, makes the claim Bound."""
    claim = pvc(volumeName="v", annotations={BIND_COMPLETED: "yes"})
    claim["status"] = {"phase": "Lost"}
    volume = pv("v", claimRef={"namespace": "default", "name": "data", **uid})
    *_, put = binding.decide(claim, view(volume))
    assert isinstance(put, Put)

    assert put.object["status"] == {"phase": "Bound", "accessModes": [RWO], "capacity": {"storage": "10Gi"}}


def test_the_capacity_is_copied_once() -> None:
    """4.7: what somebody writes into the volume later is not the claim's."""
    first, second = binding.decide(pvc(), view(pv("a")))
    assert isinstance(first, Put)
    assert isinstance(second, Put)
    first.object["spec"]["capacity"] = {"storage": "99Gi"}

    assert binding.decide(second.object, view(first.object)) == []


def test_a_claim_is_protected_first() -> None:
    """4.4: before anything else a claim gets its finalizer."""
    claim = pvc()
    claim["metadata"]["finalizers"] = []
    put = only(binding.decide(claim, view(pv("a"))), Put)

    assert put.object["metadata"]["finalizers"] == [CLAIM_PROTECTION]
    assert "volumeName" not in put.object["spec"]


def test_a_deleted_claim_stays_while_it_is_used() -> None:
    """pvc-protection: neither with a Pod nor with a mount is the finalizer removed; without both it is."""
    claim = pvc(volumeName="v", annotations={BIND_COMPLETED: "yes"})
    claim["metadata"]["deletionTimestamp"] = "now"
    assert binding.decide(claim, view(users={("default", "data"): ["p"]})) == []
    assert binding.decide(claim, view(attached=frozenset({"u1"}))) == []
    put = only(binding.decide(claim, view()), Put)

    assert put.object["metadata"]["finalizers"] == []


def test_a_claim_deleted_while_it_is_provisioned_for_leaves_no_volume() -> None:
    """What a crash may have made before there is a PersistentVolume goes with the claim."""
    claim = pvc()
    claim["metadata"]["deletionTimestamp"] = "now"

    assert isinstance(binding.decide(claim, view())[0], Discard)


def test_a_raised_request_is_granted_where_the_class_allows_it() -> None:
    """4.12: only with allowVolumeExpansion."""
    first, second = binding.decide(pvc(storageClassName="fast"), view(pv("a", storageClassName="fast")))
    assert isinstance(first, Put)
    assert isinstance(second, Put)
    claim = second.object
    claim["spec"]["resources"]["requests"]["storage"] = "20Gi"
    assert binding.decide(claim, view(first.object, sc())) == []

    assert isinstance(binding.decide(claim, view(first.object, sc(allowVolumeExpansion=True)))[0], Expand)
