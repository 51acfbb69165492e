"""Access modes as they are enforced, and binding that waits for a Pod, with a real agent."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root
Obj = dict[str, Any]

LATE = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: late}
provisioner: fusevol.io/fusevol
volumeBindingMode: WaitForFirstConsumer
"""


def claim(name: str, mode: str, storage_class: str | None = None) -> str:
    """A claim's YAML."""
    spec: Obj = {"accessModes": [mode], "resources": {"requests": {"storage": "8Mi"}}}
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return yaml.safe_dump(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
    )


def pod(name: str, claim_name: str, containers: int = 1) -> str:
    """A Pod's YAML, with the claim in each container."""
    mounts = [{"name": "data", "mountPath": "/data"}]
    spec = {
        "containers": [{"name": f"c{i}", "image": "busybox", "volumeMounts": mounts} for i in range(containers)],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}],
    }
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


def condition(agent: Agent, name: str) -> Obj:
    """A Pod's VolumesReady."""
    found = (api.find(agent, "pod", name) or {}).get("status", {}).get("conditions") or [{}]
    return next((c for c in found if c.get("type") == "VolumesReady"), {})


def ready(agent: Agent, name: str) -> list[Path]:
    """Where the Pod's volumes are, once they are."""
    return eventually(lambda: api.is_ready(agent, name), 20.0, what=f"Pod {name} is ready")


def phase(agent: Agent, name: str) -> str:
    """A claim's phase."""
    return str((api.find(agent, "pvc", name) or {}).get("status", {}).get("phase", ""))


def test_read_only_many_is_read_only(agent: Agent) -> None:
    """Two Pods read a ReadOnlyMany claim, and neither they nor root by hand can write to it."""
    agent.apply(claim("shared", "ReadOnlyMany"))
    agent.apply(pod("one", "shared") + "---\n" + pod("two", "shared"))
    places = [ready(agent, "one")[0], ready(agent, "two")[0]]
    eventually(lambda: api.is_bound(agent, "shared"), 20.0)
    by_hand = agent.directory / "hand"
    api.mount(agent, "shared", by_hand)
    told = []
    for place in (*places, by_hand):
        with pytest.raises(OSError, match="Read-only") as caught:
            (place / "new").touch()
        told.append(caught.value.errno)
    shown = agent.get("pod/one")["status"]["volumeMounts"][0]

    assert told == [errno.EROFS] * 3
    assert shown["readOnly"] is True


def test_one_pod_has_a_read_write_once_pod_claim(agent: Agent) -> None:
    """A second Pod is refused with kubelet's reason until the first is gone; one Pod's containers share it."""
    agent.apply(claim("single", "ReadWriteOncePod"))
    agent.apply(pod("first", "single", containers=2))
    shared = ready(agent, "first")
    agent.apply(pod("second", "single"))
    refused = eventually(lambda: condition(agent, "second").get("message"), 20.0)
    by_hand = agent.cli("mount", "single", str(agent.directory / "hand"))
    events = agent.ok("events", "--for", "pod/second")
    agent.ok("delete", "pod", "first")
    after = ready(agent, "second")

    reason = "volume uses the ReadWriteOncePod access mode and is already in use by another pod"
    assert len(set(shared)) == 1
    assert refused == f'MountVolume.SetUp failed for volume "data" : {reason}'
    assert (by_hand.returncode, reason in by_hand.stderr) == (1, True)
    assert "FailedMount" in events
    assert len(after) == 1


def settled(states: list[Obj]) -> list[Obj]:
    """The conditions, once each says that its Pod has its volume or that another one has it."""
    done = [s.get("status") == "True" or "ReadWriteOncePod" in s.get("message", "") for s in states]
    return states if all(done) else []


@pytest.mark.parametrize("source", ["pool", "hostPath"])
def test_of_pods_that_come_at_once_one_gets_it(agent: Agent, source: str, tmp_path: Path) -> None:
    """Of six Pods applied together exactly one has a ReadWriteOncePod claim, the others are told why not."""
    if source == "hostPath":
        spec: Obj = {
            "capacity": {"storage": "8Mi"},
            "accessModes": ["ReadWriteOncePod"],
            "hostPath": {"path": str(tmp_path)},
        }
        agent.apply(
            yaml.safe_dump({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "p"}, "spec": spec})
        )
    names = [f"p{i}" for i in range(6)]
    # the Pods first: they all go on at the moment when their claim is bound
    agent.apply("---\n".join(pod(name, "single") for name in names))
    agent.apply(claim("single", "ReadWriteOncePod", "" if source == "hostPath" else None))
    states = eventually(
        lambda: settled([condition(agent, n) for n in names]), 20.0, what="all Pods have been looked at"
    )

    assert sorted(s["status"] for s in states) == ["False"] * 5 + ["True"]


def test_binding_waits_for_the_first_pod(agent: Agent) -> None:
    """A claim of a WaitForFirstConsumer class has no volume until a Pod uses it, then both come up by themselves."""
    agent.apply(LATE + "---\n" + claim("data", "ReadWriteOnce", "late"))
    waited = eventually(
        lambda: "WaitForFirstConsumer" in agent.ok("events", "--for", "pvc/data"), 20.0, what="the event is there"
    )
    before = (phase(agent, "data"), agent.get("pv")["items"])
    agent.apply(pod("web", "data"))
    (place,) = ready(agent, "web")
    (place / "file").write_text("here")
    found = agent.get("pvc/data")

    assert waited
    assert before == ("Pending", [])
    assert phase(agent, "data") == "Bound"
    assert found["metadata"]["annotations"]["volume.kubernetes.io/selected-node"]


def test_a_static_volume_waits_for_the_first_pod(agent: Agent, tmp_path: Path) -> None:
    """With `kubernetes.io/no-provisioner` a volume that fits stays Available until a Pod uses the claim."""
    volume: Obj = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "static"},
        "spec": {
            "capacity": {"storage": "8Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "late",
            "hostPath": {"path": str(tmp_path)},
        },
    }
    static = LATE.replace("fusevol.io/fusevol", "kubernetes.io/no-provisioner")
    agent.apply(static + "---\n" + yaml.safe_dump(volume) + "---\n" + claim("data", "ReadWriteOnce", "late"))
    eventually(lambda: "WaitForFirstConsumer" in agent.ok("events", "--for", "pvc/data"), 20.0)
    before = agent.get("pv/static")["status"]["phase"]
    agent.apply(pod("web", "data"))
    ready(agent, "web")

    assert before == "Available"
    assert agent.get("pv/static")["status"]["phase"] == "Bound"


def local(name: str, path: Path, node: str) -> str:
    """A PersistentVolume of a directory of that node's."""
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]
    spec: Obj = {
        "capacity": {"storage": "8Mi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "local": {"path": str(path)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
    }
    return yaml.safe_dump({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})


def test_a_volume_of_another_node(agent: Agent) -> None:
    """It is bound, since nobody looks at the node then, and not mounted: a Pod and a person are told why. One of this
    node, by a label of the configuration, is mounted."""
    (agent.directory / "agent.yaml").write_text("nodeName: n1\nnodeLabels: {rack: r7}\n")
    agent.stop()
    agent.start()
    here = agent.directory / "disk"
    here.mkdir()
    agent.apply(local("far", here, "n2"))
    agent.apply(claim("data", "ReadWriteOnce", ""))
    eventually(lambda: api.is_bound(agent, "data"), 20.0, what="the claim is bound")
    agent.apply(pod("p", "data"))
    told = eventually(lambda: agent.ok("events", "--for", "pod/p"), 20.0, what="an event")
    by_hand = agent.cli("mount", "data", str(agent.directory / "mnt"))

    assert "1 node(s) didn't match PersistentVolume's node affinity" in told
    assert 'node affinity (persistentvolume "far", this node is "n1")' in by_hand.stderr
    assert agent.get("pod", "p")["status"]["phase"] == "Pending"

    agent.apply(local("near", here, "n1").replace("kubernetes.io/hostname", "rack").replace("- n1", "- r7"))
    agent.apply(claim("more", "ReadWriteOnce", ""))
    eventually(lambda: api.is_bound(agent, "more"), 20.0, what="the claim is bound")
    api.mount(agent, "more", agent.directory / "mnt")
