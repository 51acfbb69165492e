"""Volumes that a Pod has inline: an emptyDir with a hard limit, and paths of the host by policy."""

from __future__ import annotations

import errno
import os

import pytest

from agent.csi.refusal import Code
from fusevol.transport import mount
from tests.csi.conftest import CsiAgent
from tests.support.csi import MIB, Kubelet

pytestmark = pytest.mark.root


def test_an_inline_volume_has_a_hard_limit_and_ends_with_its_pod(kubelet: Kubelet, agent: CsiAgent) -> None:
    """It is empty, no write passes its size, its statistics are told, and it is gone after NodeUnpublishVolume."""
    pod = {"csi.storage.k8s.io/pod.name": "web", "csi.storage.k8s.io/pod.uid": "u"}
    target = kubelet.inline("csi-abc", size="8Mi", group="4711", **pod)
    kubelet.inline("csi-abc", size="8Mi", group="4711", **pod)
    (target / "f").write_bytes(bytes(4 * MIB))
    with pytest.raises(OSError, match="No space") as refused:
        (target / "g").write_bytes(bytes(8 * MIB))
    stats = kubelet.plugin.call("NodeGetVolumeStats", volume_id="csi-abc", volume_path=str(target))
    group = os.stat(target).st_gid
    kubelet.unpublish("csi-abc")
    kubelet.unpublish("csi-abc")

    assert refused.value.errno == errno.ENOSPC
    assert stats.usage[0].total == 8 * MIB
    assert group == 4711
    assert not target.exists()
    assert os.listdir(agent.pool / "volumes") == []
    assert kubelet.plugin.call("ListVolumes").entries == []


def test_a_path_of_the_host_by_policy(kubelet: Kubelet, agent: CsiAgent) -> None:
    """What is below an allowed directory is shown, made if that is asked; everything else is refused."""
    (agent.host / "data").mkdir()
    (agent.host / "data" / "f").write_text("x")
    (agent.host / "file").touch()
    (agent.host / "out").symlink_to("/etc")
    shown = kubelet.inline("csi-1", kind="hostPath", path=str(agent.host / "data"), type="Directory")
    made = kubelet.inline("csi-2", "other", kind="hostPath", path=str(agent.host / "new/x"), type="DirectoryOrCreate")
    read = (shown / "f").read_text()
    (made / "g").touch()

    def refusal(path: str, kind: str = "") -> int:
        asked = kubelet.inline_publication(
            "csi-3", kubelet.target("bad", "csi-3"), kind="hostPath", path=path, type=kind
        )
        return kubelet.plugin.refusal("NodePublishVolume", **asked)[0]

    refused = [
        refusal("/etc"),
        refusal(f"{agent.host}/../s"),
        refusal(f"{agent.host}/out"),
        refusal(f"{agent.host}/out/ssh", "DirectoryOrCreate"),
        refusal(f"{agent.host}/file", "Directory"),
        refusal(f"{agent.host}/missing"),
        refusal(f"{agent.host}x"),
        refusal(str(agent.host / "data"), "Block"),
    ]
    for volume, pod in (("csi-1", "pod"), ("csi-2", "other")):
        kubelet.unpublish(volume, pod)

    assert read == "x"
    assert refused == [
        Code.PERMISSION_DENIED,
        Code.INVALID_ARGUMENT,
        Code.PERMISSION_DENIED,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.FAILED_PRECONDITION,
        Code.PERMISSION_DENIED,
        Code.INVALID_ARGUMENT,
    ]
    assert (agent.host / "new" / "x" / "g").exists()
    assert not mount.below(kubelet.root)
    assert not kubelet.target("bad", "csi-3").exists()


BAD: list[dict[str, str]] = [
    {"size": "much"},
    {"size": "1"},
    {"colour": "red"},
    {"kind": "Secret"},
    {"pool": "none"},
    {"inodes": "-1"},
]


def test_bad_attributes(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Attributes that cannot be understood are refused, and nothing is made."""
    target = kubelet.target("pod", "csi-1")
    asked = [kubelet.inline_publication("csi-1", target, "", **attributes) for attributes in BAD]
    codes = [kubelet.plugin.refusal("NodePublishVolume", **fields)[0] for fields in asked]

    assert codes == [Code.INVALID_ARGUMENT] * len(BAD)
    assert os.listdir(agent.pool / "volumes") == []
    assert not target.exists()
