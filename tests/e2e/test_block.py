"""``volumeMode: Block``: such objects are bound as in Kubernetes, and neither made nor mounted here."""

from __future__ import annotations

import pytest

from tests.support import api, pods
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root


def told(agent: Agent, claim: str, reason: str) -> str:
    """The message of the claim's event with this reason."""

    def find() -> str:
        found = pods.events(agent, claim, "PersistentVolumeClaim")
        return next((e for e in found if e.startswith(f"{reason}: ")), "")

    return eventually(find, 20.0, what=f"{claim} has the event {reason}").partition(": ")[2]


def test_it_binds_to_its_like(agent: Agent) -> None:
    """Of all that fits otherwise, a claim gets only what has its volumeMode, by the search and by name."""
    api.apply(agent, api.volume("disk", "2Gi", volumeMode="Block"), api.volume("files", "3Gi"))
    api.apply(agent, api.claim("of-files", storageClassName=""))
    api.apply(agent, api.claim("of-disk", storageClassName="", volumeMode="Block"))
    found = [
        eventually(lambda n=n: api.is_bound(agent, n), 20.0, what=f"{n} is bound") for n in ("of-files", "of-disk")
    ]
    api.apply(agent, api.volume("other", volumeMode="Block"))
    api.apply(agent, api.claim("named", storageClassName="", volumeName="other"))
    refusal = told(agent, "named", "VolumeMismatch")

    assert found == ["files", "disk"]
    assert refusal == 'Cannot bind to requested volume "other": incompatible volumeMode'
    assert agent.get("pv", "other")["status"]["phase"] == "Available"


def test_it_is_not_made(agent: Agent) -> None:
    """The claim waits, with the words in which Kubernetes' own provisioners of directories refuse."""
    api.apply(agent, api.claim("disk", volumeMode="Block"))
    refusal = told(agent, "disk", "ProvisioningFailed")

    assert refusal == (
        'failed to provision volume with StorageClass "fusevol": fusevol.io/fusevol does not support block volume '
        "provisioning: ask for volumeMode Filesystem."
    )
    assert agent.get("pvc", "disk")["status"] == {"phase": "Pending"}
    assert agent.get("pv")["items"] == []


def test_it_is_not_mounted(agent: Agent) -> None:
    """Among volumeMounts it is refused in kubelet's words, and so is a directory among volumeDevices."""
    api.apply(agent, api.volume("disk", volumeMode="Block"), api.claim("disk", storageClassName="", volumeMode="Block"))
    api.apply(agent, api.volume("files"), api.claim("files", storageClassName=""))
    for name in ("disk", "files"):
        eventually(lambda n=name: api.is_bound(agent, n), 20.0, what=f"{name} is bound")
    devices = {"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}
    for name, claim, fields in (("a", "disk", {}), ("b", "disk", devices), ("c", "files", devices)):
        mounts = [] if fields else None
        pods.pod(agent, name, {"v": {"persistentVolumeClaim": {"claimName": claim}}}, mounts, container=fields)
    pods.refused(agent, "a", "volume v has volumeMode Block, but is specified in volumeMounts")
    pods.refused(agent, "b", "block devices are not served here")
    pods.refused(agent, "c", "volume v has volumeMode Filesystem, but is specified in volumeDevices")
    by_hand = agent.cli("mount", "disk", str(agent.directory / "mnt"))

    assert by_hand.returncode != 0
    assert 'persistentvolumeclaim "disk" has volumeMode Block' in by_hand.stderr
