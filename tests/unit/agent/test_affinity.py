"""Node affinity of volumes: which node meets it, and where that counts."""

from __future__ import annotations

from typing import Any

import pytest

from agent.controllers import binding, matching
from agent.controllers.view import Put
from agent.volumes import affinity
from agent.volumes.node import Node, segment
from tests.unit.agent.test_matching import pv, pvc, view

Obj = dict[str, Any]
HERE = Node(name="n1", labels={"kubernetes.io/hostname": "n1", "zone": "a", "disks": "4"})


def expression(key: str, operator: str, *values: str) -> Obj:
    """One requirement."""
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def term(*expressions: Obj, fields: tuple[Obj, ...] = ()) -> Obj:
    """One term."""
    return {"matchExpressions": list(expressions), "matchFields": list(fields)}


def reachable_by(volume: Obj, *terms: Obj) -> Obj:
    """*volume* with that affinity."""
    volume["spec"]["nodeAffinity"] = {"required": {"nodeSelectorTerms": list(terms)}}
    return volume


MINE, OTHERS = expression("zone", "In", "a", "b"), expression("zone", "In", "c")


@pytest.mark.parametrize(
    ("terms", "fits"),
    [
        ([term(MINE)], True),
        ([term(OTHERS)], False),
        ([term(OTHERS), term(MINE)], True),  # one term is enough
        ([term(MINE, OTHERS)], False),  # all of its expressions are needed
        ([term()], False),  # an empty one is met by nobody
        ([term(), term(MINE)], True),
        ([term(expression("zone", "NotIn", "c"))], True),
        ([term(expression("zone", "NotIn", "a"))], False),
        ([term(expression("rack", "NotIn", "a"))], True),  # who has no such label is not in it
        ([term(expression("rack", "In", "a"))], False),
        ([term(expression("zone", "Exists"))], True),
        ([term(expression("rack", "Exists"))], False),
        ([term(expression("rack", "DoesNotExist"))], True),
        ([term(expression("zone", "DoesNotExist"))], False),
        ([term(expression("disks", "Gt", "3"))], True),
        ([term(expression("disks", "Gt", "4"))], False),
        ([term(expression("disks", "Lt", "10"))], True),  # as numbers
        ([term(expression("zone", "Lt", "10"))], False),
        ([term(expression("disks", "Gt", "many"))], False),
        ([term(fields=(expression("metadata.name", "In", "n1"),))], True),
        ([term(fields=(expression("metadata.name", "NotIn", "n1"),))], False),
        ([term(MINE, fields=(expression("metadata.name", "In", "n2"),))], False),
    ],
)
def test_terms(terms: list[Obj], fits: bool) -> None:
    """Terms are alternatives, what is in one is needed together."""
    assert affinity.fits(reachable_by(pv("v", "1Gi"), *terms), HERE) is fits


def test_without_an_affinity() -> None:
    """A volume that says nothing is everywhere."""
    assert affinity.fits(pv("v", "1Gi"), HERE)


def test_who_waits_gets_what_fits() -> None:
    """With a consumer, the smallest volume that the node can reach; a claim that is bound at once gets the smallest."""
    small, large = reachable_by(pv("small", "1Gi"), term(OTHERS)), reachable_by(pv("large", "9Gi"), term(MINE))
    storage_class = {"kind": "StorageClass", "metadata": {"name": "x"}, "provisioner": "kubernetes.io/no-provisioner"}
    for volume in (small, large):
        volume["spec"]["storageClassName"] = "x"
    claim = pvc("1Gi")
    claim["spec"]["storageClassName"] = "x"
    users = {("default", claim["metadata"]["name"]): ["p"]}

    def chosen(mode: str) -> str:
        with_class = view(small, large, {**storage_class, "volumeBindingMode": mode}, users=users, node=HERE)
        first = binding.decide(claim, with_class)[0]
        assert isinstance(first, Put)
        return str(first.object["metadata"]["name"])

    assert (chosen("WaitForFirstConsumer"), chosen("Immediate")) == ("large", "small")
    assert matching.find(claim, [small], HERE) is None


def test_this_machine() -> None:
    """What a kubelet calls its node, and the labels that the configuration adds."""
    node = Node.here("n1", "/", {"zone": "a"})

    assert node.labels["kubernetes.io/hostname"] == "n1"
    assert node.labels["kubernetes.io/os"] == "linux"
    assert node.labels["kubernetes.io/arch"] in {"amd64", "arm64", "arm", "386", "riscv64"}
    assert (node.labels["zone"], node.labels["topology.fusevol.io/node"]) == ("a", segment("n1"))
