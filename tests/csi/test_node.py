"""The Node service: what programs see at a target, who else may have the volume, and what a kubelet is told."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from agent.csi.refusal import Code
from fusevol.transport import mount
from tests.csi.conftest import CsiAgent
from tests.support import api
from tests.support.csi import MIB, Kubelet, Mode, capability, references

pytestmark = pytest.mark.root


def test_one_server_for_stage_and_targets(kubelet: Kubelet, agent: CsiAgent) -> None:
    """A staged volume is served once: two targets are the same filesystem, with the volume's size. Nothing is mounted
    at its staging path, since a kubelet would unstage no volume that is mounted elsewhere, too."""
    volume = kubelet.plugin.create("v", 16 * MIB)
    staging = kubelet.stage(volume)
    targets = [kubelet.publish(volume, pod) for pod in ("a", "b")]
    (targets[0] / "f").write_text("x")
    read = (targets[1] / "f").read_text()
    devices = {os.stat(place).st_dev for place in targets}
    size = os.statvfs(targets[0])

    assert read == "x"
    assert os.listdir(staging) == []
    assert not references(staging)
    assert len(devices) == len(api.servers(agent)) == 1
    assert size.f_blocks * size.f_frsize == 16 * MIB


def test_read_only_is_honoured(kubelet: Kubelet) -> None:
    """A read-only target beside a writable one; read-only modes and the mount flag ro make targets read-only."""
    volume = kubelet.plugin.create("v")
    kubelet.stage(volume)
    writable = kubelet.publish(volume, "a")
    shown = [
        kubelet.publish(volume, "b", readonly=True),
        kubelet.publish(volume, "c", capability(Mode.MULTI_NODE_READER_ONLY)),
        kubelet.publish(volume, "d", capability(mount_flags=["ro"])),
    ]
    (writable / "f").write_text("x")
    codes = []
    for target in shown:
        with pytest.raises(OSError, match="Read-only") as refused:
            (target / "g").touch()
        codes.append(refused.value.errno)

    assert codes == [errno.EROFS] * 3
    assert [(target / "f").read_text() for target in shown] == ["x"] * 3


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (Mode.SINGLE_NODE_SINGLE_WRITER, Code.FAILED_PRECONDITION),
        (Mode.SINGLE_NODE_WRITER, Code.FAILED_PRECONDITION),
        (Mode.SINGLE_NODE_READER_ONLY, Code.FAILED_PRECONDITION),
        (Mode.SINGLE_NODE_MULTI_WRITER, None),
        (Mode.MULTI_NODE_MULTI_WRITER, None),
    ],
)
def test_a_second_target(kubelet: Kubelet, mode: int, code: Code | None) -> None:
    """A second target is refused or not by the access mode; the same one again is fine, in another way never."""
    volume = kubelet.plugin.create("v", volume_capabilities=[capability(mode)])
    how = capability(mode)
    kubelet.stage(volume, how)
    kubelet.stage(volume, how)
    target = kubelet.publish(volume, "a", how)
    kubelet.publish(volume, "a", how)
    differently = kubelet.publication(volume, target, capability(mode, mount_flags=["cache=none"]))
    again = kubelet.plugin.refusal("NodePublishVolume", **differently)[0]
    second = kubelet.target("b", volume)
    found = None
    if code is None:
        kubelet.publish(volume, "b", how)
    else:
        found = kubelet.plugin.refusal("NodePublishVolume", **kubelet.publication(volume, second, how))[0]
        kubelet.unpublish(volume, "a")
        kubelet.publish(volume, "b", how)
    other_stage = kubelet.plugin.refusal(
        "NodeStageVolume",
        volume_id=volume,
        staging_target_path=str(kubelet.staging(volume)),
        volume_capability=capability(mode, mount_flags=["cache=none"]),
    )[0]

    assert again == other_stage == Code.ALREADY_EXISTS
    assert found == code
    assert mount.is_mounted(second)


def test_a_group_gets_the_volume(kubelet: Kubelet) -> None:
    """With VOLUME_MOUNT_GROUP all of it is the group's: what was there, and what is made in it. Twice, nothing is
    looked at any more; another group gets all of it again."""
    volume = kubelet.plugin.create("v", parameters={"mode": "0700"})
    kubelet.stage(volume)
    first = kubelet.publish(volume, "first")
    (first / "old").touch()
    target = kubelet.publish(volume, how=capability(volume_mount_group="4711"))
    (target / "new").mkdir()
    root, new = os.stat(target), os.stat(target / "new")
    old = os.stat(target / "old")
    os.chown(target / "old", -1, 7)
    kubelet.unpublish(volume)
    again = os.stat(kubelet.publish(volume, how=capability(volume_mount_group="4711")) / "old").st_gid
    kubelet.unpublish(volume)
    other = os.stat(kubelet.publish(volume, how=capability(volume_mount_group="4712")) / "old").st_gid

    assert (root.st_gid, stat.S_IMODE(root.st_mode)) == (4711, 0o2770)
    assert (new.st_gid, new.st_mode & stat.S_ISGID) == (4711, stat.S_ISGID)
    assert (old.st_gid, stat.S_IMODE(old.st_mode) & 0o660) == (4711, 0o660)
    assert (again, other) == (7, 4712)


def test_statistics_are_the_ledgers(kubelet: Kubelet) -> None:
    """NodeGetVolumeStats tells exactly what is used of what may be, in bytes and inodes, at staging path and target."""
    volume = kubelet.plugin.create("v", 16 * MIB, parameters={"inodes": "100"})
    staging = kubelet.stage(volume)
    target = kubelet.publish(volume)
    (target / "f").write_bytes(bytes(MIB))
    for name in ("g", "h"):
        (target / name).touch()
    told = []
    for path in (staging, target):
        stats = kubelet.plugin.call("NodeGetVolumeStats", volume_id=volume, volume_path=str(path))
        told.append([(u.unit, u.total, u.used, u.available) for u in stats.usage])
    condition = stats.volume_condition
    used = sum(512 * os.lstat(p).st_blocks for p in (target, *target.iterdir()))
    wrong = kubelet.plugin.refusal("NodeGetVolumeStats", volume_id=volume, volume_path=str(target.parent))[0]

    assert told[0] == told[1]
    assert told[0] == [(1, 16 * MIB, used, 16 * MIB - used), (2, 100, 4, 96)]
    assert not condition.abnormal
    assert wrong == Code.NOT_FOUND


def test_what_is_missing_or_wrong(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Each field that is missing or cannot be is refused with the specification's code."""
    plugin = kubelet.plugin
    volume = plugin.create("v")
    path = agent.directory / "p"
    good = {"volume_id": volume, "staging_target_path": str(path), "volume_capability": capability()}
    staged = [
        good | {"volume_id": ""},
        good | {"staging_target_path": ""},
        {k: v for k, v in good.items() if k != "volume_capability"},
        good | {"staging_target_path": "relative"},
        good | {"staging_target_path": "/a/../b"},
        good | {"staging_target_path": "/"},
        good | {"volume_capability": capability(fs_type="xfs")},
    ]
    codes = [plugin.refusal("NodeStageVolume", **fields)[0] for fields in staged]
    unstaged = plugin.refusal("NodePublishVolume", **kubelet.publication(volume, path))[0]
    nowhere = plugin.refusal(
        "NodePublishVolume", volume_id=volume, target_path=str(path), volume_capability=capability()
    )[0]

    assert codes == [Code.INVALID_ARGUMENT] * 6 + [Code.FAILED_PRECONDITION]
    assert unstaged == nowhere == Code.FAILED_PRECONDITION
    assert not path.exists()


def test_a_foreign_mount_is_left_alone(kubelet: Kubelet, agent: CsiAgent, workdir: Path) -> None:
    """A target at which somebody else has mounted something, or another volume is, is neither used nor undone."""
    a, b = kubelet.plugin.create("a"), kubelet.plugin.create("b")
    for volume in (a, b):
        kubelet.stage(volume)
    target = kubelet.publish(a)
    taken = kubelet.plugin.refusal("NodePublishVolume", **kubelet.publication(b, target))[0]
    kubelet.plugin.call("NodeUnpublishVolume", volume_id=b, target_path=str(target))
    still = mount.is_mounted(target)
    foreign = workdir / "foreign"
    foreign.mkdir()
    mount.bind(workdir, foreign)
    refused = kubelet.plugin.refusal("NodePublishVolume", **kubelet.publication(a, foreign))[0]
    kubelet.plugin.call("NodeUnpublishVolume", volume_id=a, target_path=str(foreign))

    assert (taken, refused) == (Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION)
    assert still
    assert mount.is_mounted(foreign)


def test_secrets_are_not_logged(kubelet: Kubelet, agent: CsiAgent) -> None:
    """No secret of any call is in the agent's log, which has the calls themselves, also of those that are refused."""
    agent.stop()
    agent.configure("logLevel: debug\n")
    agent.start()
    secret = {"password": "hunter2-very-secret"}
    volume = kubelet.plugin.create("v", secrets=secret)
    kubelet.stage(volume, secrets=secret)
    kubelet.publish(volume, secrets=secret, volume_context={"a": "hunter2-very-secret"})
    kubelet.plugin.refusal("NodeStageVolume", volume_id=volume, secrets=secret)
    kubelet.plugin.refusal("CreateVolume", name="w", secrets=secret)
    log = agent.log.read_text()

    assert "hunter2" not in log
    assert f"NodePublishVolume of {volume}: OK" in log
    assert "INVALID_ARGUMENT" in log


def test_node_and_identity(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Who answers, on which node, reachable from where; the socket is root's alone."""
    plugin = kubelet.plugin
    info, node = plugin.call("GetPluginInfo"), plugin.call("NodeGetInfo")
    socket = os.stat(agent.directory / "csi.sock")

    assert info.name == "fusevol.io"
    assert plugin.call("Probe").ready.value
    assert node.node_id
    assert list(node.accessible_topology.segments) == ["topology.fusevol.io/node"]
    assert stat.S_IMODE(socket.st_mode) == 0o600
