"""What may change in a stored object, and what not (volume-semantics 4.2)."""

from __future__ import annotations

from typing import Any

import pytest

from fusevol import objects
from tests.unit.objects.samples import ALL, CLAIM, CLASS, POD, VOLUME, Obj, changed, says, update_refusal

STORAGE = "spec/resources/requests/storage"
IMMUTABLE = (
    "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for "
    "bound claims (changed: {})"
)
POD_IMMUTABLE = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"


def stored(obj: Obj, *changes: tuple[str, Any], status: Obj | None = None) -> Obj:
    """*obj* as it lies in the store."""
    server = {"uid": "u-1", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    new = objects.admit(changed(obj, *changes))
    new["metadata"].update(server)
    return {**new, "status": status} if status else new


BOUND: Obj = {"phase": "Bound", "capacity": {"storage": "1Gi"}}


@pytest.mark.parametrize("obj", ALL, ids=lambda o: o["kind"])
def test_the_same_again_changes_nothing(obj: Obj) -> None:
    """Applying the same file again gives exactly what is stored, with all that the server has set."""
    old = stored(obj, status=BOUND)

    assert objects.admit_update(old, obj) == old


def test_server_fields_come_from_the_stored_object() -> None:
    """A user's uid, version and status are ignored."""
    old = stored(CLAIM, status=BOUND)
    wanted = changed(CLAIM, ("metadata/uid", "other"), ("metadata/selfLink", "x"), ("status", {"phase": "Lost"}))

    assert objects.admit_update(old, wanted) == old


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ([("spec/accessModes", ["ReadWriteMany"])], IMMUTABLE.format("accessModes")),
        (
            [("spec/accessModes", ["ReadWriteMany"]), ("spec/selector", {"matchLabels": {"a": "b"}})],
            IMMUTABLE.format("accessModes, selector"),
        ),
        ([("spec/volumeName", "other")], IMMUTABLE.format("volumeName")),
        ([("spec/storageClassName", "other")], IMMUTABLE.format("storageClassName")),
        ([("spec/resources/limits", {"storage": "2Gi"})], IMMUTABLE.format("resources.limits")),
        (
            [(STORAGE, "512Mi")],
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity",
        ),
    ],
)
def test_bound_claims(changes: list[tuple[str, Any]], text: str) -> None:
    """Of a bound claim only the request may grow."""
    fixed = [("spec/volumeName", "disk"), ("spec/storageClassName", "fast")]
    old = stored(CLAIM, *fixed, status=BOUND)

    assert update_refusal(old, changed(CLAIM, *fixed, *changes)) == says(CLAIM, text)


def test_a_bound_claim_may_grow_and_take_it_back() -> None:
    """A larger request is fine, and so is a smaller one than before as long as it stays above what was given."""
    grown = objects.admit_update(stored(CLAIM, status=BOUND), changed(CLAIM, (STORAGE, "4Gi")))
    less = objects.admit_update(grown, changed(CLAIM, (STORAGE, "2Gi")))

    assert [objects.claim.request_bytes(o) for o in (grown, less)] == [4 << 30, 2 << 30]


def test_an_equal_size_in_other_words_is_no_change() -> None:
    """Requests are compared as numbers, also before the claim is bound."""
    old = stored(CLAIM, status={"phase": "Pending"})

    assert objects.admit_update(old, changed(CLAIM, (STORAGE, "1024Mi"))) == old


def test_an_unbound_claim_cannot_grow() -> None:
    """There is nothing to expand before there is a volume."""
    text = update_refusal(stored(CLAIM, status={"phase": "Pending"}), changed(CLAIM, (STORAGE, "2Gi")))

    assert text == says(
        CLAIM, "spec.resources.requests.storage: Forbidden: Only bound persistent volume claims can be expanded"
    )


def test_class_and_volume_are_set_once() -> None:
    """The default class and the bound volume come later than the claim."""
    new = objects.admit_update(
        stored(CLAIM), changed(CLAIM, ("spec/storageClassName", "fast"), ("spec/volumeName", "disk"))
    )

    assert (objects.claim.storage_class(new), objects.claim.volume_name(new)) == ("fast", "disk")


@pytest.mark.parametrize(
    ("obj", "changes", "text"),
    [
        (
            VOLUME,
            [("spec/hostPath/path", "/other")],
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
        ),
        (VOLUME, [("spec/volumeMode", "Block")], 'spec.volumeMode: Invalid value: "Block": field is immutable'),
        (CLASS, [("provisioner", "other")], "provisioner: Forbidden: updates to provisioner are forbidden."),
        (CLASS, [("parameters", {"a": "b"})], "parameters: Forbidden: updates to parameters are forbidden."),
        (CLASS, [("reclaimPolicy", "Retain")], "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."),
        (
            CLASS,
            [("volumeBindingMode", "WaitForFirstConsumer")],
            'volumeBindingMode: Invalid value: "WaitForFirstConsumer": field is immutable',
        ),
    ],
)
def test_what_stays_as_it_was_made(obj: Obj, changes: list[tuple[str, Any]], text: str) -> None:
    """Sources of volumes and the meaning of classes do not change."""
    assert update_refusal(stored(obj), changed(obj, *changes)) == says(obj, text)


def test_node_affinity_is_set_once() -> None:
    """A volume gets its nodes once."""
    here, there = (
        {
            "required": {
                "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [n]}]}]
            }
        }
        for n in ("a", "b")
    )
    old = stored(VOLUME)
    old = objects.admit_update(old, changed(VOLUME, ("spec/nodeAffinity", here)))

    assert "field is immutable" in update_refusal(old, changed(VOLUME, ("spec/nodeAffinity", there)))


def test_classes_and_volumes_change_elsewhere() -> None:
    """Expansion, mount options, policy, claimRef, capacity and labels may change, and a claim's attributes class."""
    free = [("allowVolumeExpansion", True), ("mountOptions", ["ro"])]
    storage_class = objects.admit_update(stored(CLASS), changed(CLASS, *free))
    gold = ("spec/volumeAttributesClassName", "gold")
    claim = objects.admit_update(stored(CLAIM, status=BOUND), changed(CLAIM, gold))
    volume = objects.admit_update(
        stored(VOLUME),
        changed(VOLUME, ("spec/persistentVolumeReclaimPolicy", "Delete"), ("spec/capacity/storage", "2Gi")),
    )

    assert storage_class["allowVolumeExpansion"] is True
    assert storage_class["mountOptions"] == ["ro"]
    assert claim["spec"]["volumeAttributesClassName"] == "gold"
    assert (volume["spec"]["persistentVolumeReclaimPolicy"], objects.volume.capacity_bytes(volume)) == (
        "Delete",
        2 << 30,
    )


def test_pods_change_only_their_image() -> None:
    """A Pod's volumes and commands stay; its image may change."""
    old = stored(POD)
    new = objects.admit_update(old, changed(POD, ("spec/containers/0/image", "debian")))
    text = update_refusal(old, changed(POD, ("spec/volumes/0/emptyDir/medium", "Memory")))

    assert new["spec"]["containers"][0]["image"] == "debian"
    assert text.startswith(says(POD, POD_IMMUTABLE))
    assert text.endswith("(changed: volumes); delete the Pod and apply it again")


def test_names_do_not_change() -> None:
    """An object of another name, namespace or kind is another object."""
    old = stored(CLAIM)

    assert 'metadata.name: Invalid value: "b"' in update_refusal(old, changed(CLAIM, ("metadata/name", "b")))
    assert 'metadata.namespace: Invalid value: "b"' in update_refusal(old, changed(CLAIM, ("metadata/namespace", "b")))
    assert "cannot become a Pod" in update_refusal(old, POD)
