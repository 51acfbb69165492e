"""The lecture notes that fusevol began with: each block applied to the letter, and what the text around it says."""

from __future__ import annotations

import re

import pytest

from tests.support import api, pods, seed
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root
CLAIM = ("pvc", "dlkit-workspace-test", "-n", "dlkit-resources")
VOLUME = "pvc-1f12135e-69dd-424e-97ac-c008e0b2981a"


def test_every_block_applies(agent: Agent) -> None:
    """All six, in kubectl's words; the name and the prompt that Kubernetes refuses get a refusal and a remedy."""
    answers = {name: agent.cli("apply", "-f", "-", text=seed.text(name)) for name in seed.NAMES}
    again = {name: agent.cli("apply", "-f", "-", text=seed.text(name)).stdout for name in seed.NAMES}
    refused = {name: done.stderr for name, done in answers.items() if done.returncode}

    assert len(answers) == 6
    assert set(refused) == {seed.BAD_NAME, seed.WITH_PROMPT}
    assert 'metadata.name: Invalid value: "emptyDir-path": a lowercase RFC 1123' in refused[seed.BAD_NAME]
    assert refused[seed.BAD_NAME].endswith('; try "emptydir-path"\n')
    assert re.search(r'line 1: "\[czh@n167 ~\]\$ k get .*" is a command: remove it', refused[seed.WITH_PROMPT])
    assert answers["standard-class"].stdout == "storageclass.storage.k8s.io/standard created\n"
    assert again["standard-class"] == "storageclass.storage.k8s.io/standard unchanged\n"
    assert again["claim"] == "persistentvolumeclaim/dlkit-workspace-test unchanged\n"


def test_a_class_is_a_template(agent: Agent) -> None:
    """Section 3.2: a claim names it; what AWS must make is waited for, and nothing else is bound instead."""
    agent.apply(seed.text("standard-class"))
    api.apply(agent, api.claim("mine", storageClassName="standard"))
    (said,) = eventually(lambda: pods.events(agent, "mine", "PersistentVolumeClaim"), 20.0, what="an event")
    claim = api.find(agent, "pvc", "mine")

    assert claim is not None
    assert said.startswith('ExternalProvisioning: Waiting for a volume to be created by "kubernetes.io/aws-ebs"')
    assert claim["status"]["phase"] == "Pending"
    assert claim["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] == "kubernetes.io/aws-ebs"


def test_pod_volumes(agent: Agent) -> None:
    """Section 4.1: a hostPath is the path itself, an emptyDir is a directory that lives as long as its Pod."""
    agent.apply(seed.text("hostpath-pod"))
    agent.apply(seed.text(seed.BAD_NAME).replace("emptyDir-path", "emptydir-path"))
    (desktop,), (empty,) = pods.ready(agent, "hostpath-pod").values(), pods.ready(agent, "emptydir-path").values()
    (empty / "test.test.test").touch()
    for name in ("hostpath-pod", "emptydir-path"):
        pods.delete(agent, "Pod", name)

    assert str(desktop) == "/User/cui/Desktop"
    assert not empty.exists()


def test_what_kubectl_printed(agent: Agent) -> None:
    """Section 4.2: the printed claim and volume name each other, but by uids of another cluster: Lost and Released."""
    for name in ("cephfs-class", "claim", "volume"):
        agent.apply(seed.manifest(name))
    eventually(lambda: agent.get("pv", VOLUME)["status"]["phase"] == "Released", 20.0, what="the volume is Released")

    assert agent.get(*CLAIM)["status"] == {"phase": "Lost"}


def test_what_was_bound(agent: Agent) -> None:
    """Without the uid, as one moves it to another cluster, the volume is the claim's again: 1Gi, ReadWriteOnce."""
    volume = seed.one("volume")
    del volume["spec"]["claimRef"]["uid"]
    agent.apply(seed.manifest("cephfs-class"))
    api.apply(agent, volume, seed.unbound_claim())
    eventually(lambda: agent.get(*CLAIM)["status"]["phase"] == "Bound", 20.0, what="the claim is bound")
    claim, volume = agent.get(*CLAIM), agent.get("pv", VOLUME)

    assert claim["status"] == seed.one("claim")["status"]
    assert claim["spec"] == seed.one("claim")["spec"]
    assert claim["metadata"]["finalizers"] == seed.one("claim")["metadata"]["finalizers"]
    assert claim["metadata"]["annotations"] == {
        "pv.kubernetes.io/bind-completed": "yes",
        "pv.kubernetes.io/bound-by-controller": "yes",
    }
    assert volume["status"]["phase"] == "Bound"
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]


def test_ten_and_thirty(agent: Agent) -> None:
    """Section 3.1: of volumes of 10G and 30G a claim of 20G gets the one of 30G; the next of 20G finds none."""
    for name, size in (("ten", "10G"), ("thirty", "30G")):
        api.apply(agent, api.volume(name, size))
    for name in ("first", "second"):
        api.apply(agent, api.claim(name, "20G", storageClassName=""))
        eventually(lambda n=name: (api.find(agent, "pvc", n) or {}).get("status"), 20.0, what=f"{name} has a phase")
    first, second = api.find(agent, "pvc", "first"), api.find(agent, "pvc", "second")

    assert first is not None
    assert second is not None
    assert (first["spec"]["volumeName"], first["status"]["capacity"]) == ("thirty", {"storage": "30G"})
    assert second["status"] == {"phase": "Pending"}
    assert agent.get("pv", "ten")["status"]["phase"] == "Available"
