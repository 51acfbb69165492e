"""The objects of the lecture notes that fusevol began with apply as they were printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusevol import objects
from tests.support import seed
from tests.unit.objects.samples import refusal


@pytest.mark.parametrize("name", [n for n in seed.NAMES if n != seed.BAD_NAME])
def test_applies_as_printed(name: str) -> None:
    """What kubectl printed, status and uid included, is admitted, and applying it again changes nothing."""
    (given,) = objects.load(seed.manifest(name), name)
    admitted = objects.admit(given)

    assert admitted["metadata"]["name"] == given["metadata"]["name"]
    assert not {"uid", "resourceVersion", "selfLink", "creationTimestamp"} & set(admitted["metadata"])
    assert "status" not in admitted
    assert objects.admit_update(admitted, given) == admitted


def test_the_name_that_kubernetes_refuses() -> None:
    """The Pod emptyDir-path is refused as in Kubernetes, with the name that would do; under that name it is fine."""
    given = seed.one(seed.BAD_NAME)
    text = refusal(given)
    given["metadata"]["name"] = "emptydir-path"

    assert text.startswith('Pod "emptyDir-path" is invalid: metadata.name: Invalid value: "emptyDir-path": a lowercase')
    assert text.endswith('; try "emptydir-path"')
    assert objects.pod.volumes(objects.admit(given))[0].kind == "emptyDir"


def test_the_printed_claim_keeps_its_binding() -> None:
    """What a user may set survives: annotations, finalizers, owners, the volume's name."""
    given = seed.one("claim")
    admitted = objects.admit(given)

    assert objects.key(admitted) == ("PersistentVolumeClaim", "dlkit-resources", "dlkit-workspace-test")
    assert admitted["spec"] == given["spec"]
    for field in ("annotations", "finalizers", "labels", "ownerReferences"):
        assert admitted["metadata"][field] == given["metadata"][field]


def test_the_demo_has_the_same_claim() -> None:
    """What the demo applies is what was printed, but for the class's provisioner and what a cluster adds later."""
    given = (Path(__file__).parents[3] / "demo" / "objects" / "claim.yaml").read_text()
    ours, claim = objects.load(given, "claim.yaml")
    printed = seed.one("cephfs-class")

    assert objects.admit(claim) == objects.admit(seed.unbound_claim())
    assert {k: v for k, v in ours.items() if k not in {"parameters", "provisioner"}} == {
        k: v for k, v in printed.items() if k not in {"parameters", "provisioner"}
    }
