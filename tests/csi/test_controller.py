"""The Controller service beyond what csi-sanity asks: codes, idempotency, paging, limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from agent.csi import csi_pb2 as pb
from agent.csi.refusal import Code
from tests.csi.conftest import CsiAgent
from tests.support import api
from tests.support.csi import MIB, Kubelet, Mode, capability

pytestmark = pytest.mark.root

Range = pb.CapacityRange


def test_the_same_request_finds_the_volume(kubelet: Kubelet, agent: CsiAgent) -> None:
    """The same name twice is one volume, also with a range that its size is in; with anything else it is refused."""
    plugin = kubelet.plugin
    first = plugin.create("pvc-1", 16 * MIB, parameters={"inodes": "100"})
    again = plugin.create("pvc-1", parameters={"inodes": "100"})
    within = plugin.call(
        "CreateVolume",
        name="pvc-1",
        volume_capabilities=[capability(Mode.SINGLE_NODE_WRITER)],
        capacity_range=Range(required_bytes=MIB, limit_bytes=20 * MIB),
        parameters={"inodes": "100"},
    ).volume
    base = {"name": "pvc-1", "volume_capabilities": [capability()], "parameters": {"inodes": "100"}}
    others = [
        base | {"capacity_range": Range(required_bytes=17 * MIB)},
        base | {"capacity_range": Range(limit_bytes=15 * MIB)},
        base | {"parameters": {"inodes": "101"}},
        base | {"parameters": {"inodes": "100", "mode": "0700"}},
    ]
    refused = [plugin.refusal("CreateVolume", **other)[0] for other in others]

    assert first == again == within.volume_id == "default/pvc-1"
    assert within.capacity_bytes == 16 * MIB
    assert within.accessible_topology[0].segments.keys() == {"topology.fusevol.io/node"}
    assert refused == [Code.ALREADY_EXISTS] * 4
    assert os.listdir(agent.pool / "volumes") == ["pvc-1"]


REFUSED: list[tuple[dict[str, Any], Code, str]] = [
    ({"name": ""}, Code.INVALID_ARGUMENT, "lacks name"),
    ({"name": "a\x07b"}, Code.INVALID_ARGUMENT, "control characters"),
    ({"name": "n" * 129}, Code.INVALID_ARGUMENT, "128 bytes"),
    ({"volume_capabilities": []}, Code.INVALID_ARGUMENT, "volume_capabilities"),
    ({"volume_capabilities": [pb.VolumeCapability()]}, Code.INVALID_ARGUMENT, "access_type"),
    ({"volume_capabilities": [capability(Mode.UNKNOWN)]}, Code.INVALID_ARGUMENT, "access_mode"),
    (
        {
            "volume_capabilities": [
                pb.VolumeCapability(
                    block=pb.VolumeCapability.BlockVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER)
                )
            ]
        },
        Code.INVALID_ARGUMENT,
        "Block volumes",
    ),
    ({"volume_capabilities": [capability(fs_type="ext4")]}, Code.INVALID_ARGUMENT, "ext4"),
    ({"volume_capabilities": [capability(mount_flags=["sync"])]}, Code.INVALID_ARGUMENT, "sync"),
    ({"volume_capabilities": [capability(volume_mount_group="-1")]}, Code.INVALID_ARGUMENT, "gid"),
    ({"capacity_range": Range()}, Code.INVALID_ARGUMENT, "neither"),
    ({"capacity_range": Range(required_bytes=-1)}, Code.INVALID_ARGUMENT, "negative"),
    ({"capacity_range": Range(required_bytes=2 * MIB, limit_bytes=MIB)}, Code.OUT_OF_RANGE, "more than its limit"),
    ({"capacity_range": Range(limit_bytes=1000)}, Code.OUT_OF_RANGE, "at least"),
    ({"capacity_range": Range(required_bytes=1 << 62)}, Code.RESOURCE_EXHAUSTED, "in all"),
    ({"parameters": {"pool": "../etc"}}, Code.INVALID_ARGUMENT, "no pool"),
    ({"parameters": {"colour": "red"}}, Code.INVALID_ARGUMENT, "colour"),
    ({"parameters": {"mode": "rwx"}}, Code.INVALID_ARGUMENT, "octal"),
    ({"parameters": {"x": "y" * 5000}}, Code.INVALID_ARGUMENT, "4096 bytes"),
    ({"mutable_parameters": {"inodes": "many"}}, Code.INVALID_ARGUMENT, "positive number"),
    (
        {
            "accessibility_requirements": pb.TopologyRequirement(
                requisite=[pb.Topology(segments={"topology.fusevol.io/node": "elsewhere"})]
            )
        },
        Code.RESOURCE_EXHAUSTED,
        "cannot be reached",
    ),
    (
        {
            "volume_content_source": pb.VolumeContentSource(
                snapshot=pb.VolumeContentSource.SnapshotSource(snapshot_id="s")
            )
        },
        Code.NOT_FOUND,
        "no such volume or snapshot",
    ),
]
"""What is wrong with a CreateVolume request, the code, and words of the sentence."""


def test_what_cannot_be_made_is_refused(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Each bad CreateVolume has the specification's code and a sentence, and leaves nothing."""
    wrong = []
    for fields, code, says in REFUSED:
        request = {"name": "v", "volume_capabilities": [capability()]} | fields
        found, message = kubelet.plugin.refusal("CreateVolume", **request)
        if (found, says in message) != (code, True):
            wrong.append((fields, found, message))

    assert wrong == []
    assert os.listdir(agent.pool / "volumes") == []


def test_names_become_ids_that_are_no_paths(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Whatever a CO calls a volume, its directory is below the pool, and names that differ make volumes that differ."""
    names = ["../../etc", "Ä/ö", "pvc-1", "PVC-1", "a..b", "x" * 128, "."]
    handles = {kubelet.plugin.create(name) for name in names}
    made = os.listdir(agent.pool / "volumes")

    assert len(handles) == len(made) == len(names)
    assert {handle.removeprefix("default/") for handle in handles} == set(made)
    assert all(os.path.isdir(agent.pool / "volumes" / name / "data") for name in made)


HANDLES = ["..", "../x", "default/../x", "default/", "/etc", "default/x/y", "nopool/x", "a", "default/..", "\0/x"]


def test_handles_from_outside_are_never_paths(kubelet: Kubelet, agent: CsiAgent) -> None:
    """A handle that is none of ours is a volume that is not there, and nothing is touched."""
    plugin = kubelet.plugin
    (agent.pool / "x" / "data").mkdir(parents=True)
    (agent.pool / "x" / "volume.json").write_text("{}")
    path, larger = str(agent.directory / "p"), pb.CapacityRange(required_bytes=MIB)
    codes = set()
    for handle in HANDLES:
        plugin.call("DeleteVolume", volume_id=handle)
        plugin.call("NodeUnstageVolume", volume_id=handle, staging_target_path=path)
        plugin.call("NodeUnpublishVolume", volume_id=handle, target_path=path)
        stage = {"volume_id": handle, "staging_target_path": path, "volume_capability": capability()}
        publish = {"volume_id": handle, "target_path": path, "volume_capability": capability()}
        codes |= {
            plugin.refusal("NodeStageVolume", **stage)[0],
            plugin.refusal("NodePublishVolume", **publish, staging_target_path=path)[0],
            plugin.refusal("NodeGetVolumeStats", volume_id=handle, volume_path=path)[0],
            plugin.refusal("ControllerGetVolume", volume_id=handle)[0],
            plugin.refusal("ControllerExpandVolume", volume_id=handle, capacity_range=larger)[0],
        }

    assert codes == {Code.NOT_FOUND}
    assert (agent.pool / "x" / "volume.json").exists()


def test_volumes_of_the_agents_own_claims_are_none_of_a_cos(kubelet: Kubelet, agent: CsiAgent) -> None:
    """A claim's volume, a Pod's own and what CSI calls inline cannot be named by a handle, and stay when they are."""
    kubelet.inline("csi-1", size="1Mi")
    api.call_out(agent, "emptyDir", agent.directory / "empty")
    api.bound_claim(agent, "data")
    plugin = kubelet.plugin
    names = os.listdir(agent.pool / "volumes")
    codes = set()
    for name in names:
        volume = f"default/{name}"
        plugin.call("DeleteVolume", volume_id=volume)
        stage = {"volume_id": volume, "staging_target_path": "/x", "volume_capability": capability()}
        codes |= {
            plugin.refusal("ControllerExpandVolume", volume_id=volume, capacity_range=Range(required_bytes=1 << 30))[0],
            plugin.refusal("CreateSnapshot", name="s", source_volume_id=volume)[0],
            plugin.refusal("NodeStageVolume", **stage)[0],
        }

    assert codes == {Code.NOT_FOUND}
    assert len(names) == 3
    assert os.listdir(agent.pool / "volumes") == names
    assert plugin.call("ListVolumes").entries == []


def test_list_pages_while_volumes_come_and_go(kubelet: Kubelet) -> None:
    """Paging shows each volume that stays exactly once, also when the last one of a page is deleted."""
    plugin = kubelet.plugin
    handles = [plugin.create(f"v{i}") for i in range(7)]
    seen: list[str] = []
    token = ""
    pages = 0
    while True:
        page = plugin.call("ListVolumes", max_entries=3, starting_token=token)
        seen += [entry.volume.volume_id for entry in page.entries]
        pages += 1
        if pages == 1:
            plugin.call("DeleteVolume", volume_id=seen[-1])
            plugin.create("v00")  # before the token: not seen any more
        if not (token := page.next_token):
            break
    bad = [
        plugin.refusal("ListVolumes", starting_token=token)[0] for token in ("x", "djE6Li4vLi4=", "aW52YWxpZA==", "ä")
    ]
    negative = plugin.refusal("ListVolumes", max_entries=-1)[0]

    assert seen == handles
    assert pages == 3
    assert bad == [Code.ABORTED] * 4
    assert negative == Code.INVALID_ARGUMENT


def test_capacity(kubelet: Kubelet) -> None:
    """What is free is told for what can be had here, and nothing for what cannot."""
    plugin = kubelet.plugin
    node = plugin.call("NodeGetInfo")
    free = plugin.call("GetCapacity", parameters={"pool": "default"}, accessible_topology=node.accessible_topology)
    none = [
        plugin.call("GetCapacity", parameters={"pool": "nopool"}),
        plugin.call("GetCapacity", parameters={"colour": "red"}),
        plugin.call("GetCapacity", volume_capabilities=[capability(fs_type="xfs")]),
        plugin.call("GetCapacity", accessible_topology=pb.Topology(segments={"topology.fusevol.io/node": "other"})),
        plugin.call("GetCapacity", accessible_topology=pb.Topology(segments={"zone": "a"})),
    ]

    assert free.available_capacity > 0
    assert free.minimum_volume_size.value == MIB
    assert [n.available_capacity for n in none] == [0] * 5


def test_expansion_and_modification_reach_programs_at_once(kubelet: Kubelet) -> None:
    """A published volume grows and gets more inodes while it is in use, and the node has nothing left to do."""
    plugin = kubelet.plugin
    volume = plugin.create("v", 4 * MIB, parameters={"inodes": "3"})
    kubelet.stage(volume)
    target = kubelet.publish(volume)
    (target / "a").write_bytes(bytes(3 * MIB))
    (target / "b").touch()
    full = [_errno((target / "c").touch), _errno(lambda: (target / "b").write_bytes(bytes(8 * MIB)))]
    grown = plugin.call("ControllerExpandVolume", volume_id=volume, capacity_range=Range(required_bytes=32 * MIB))
    plugin.call("ControllerModifyVolume", volume_id=volume, mutable_parameters={"inodes": "10"})
    (target / "b").write_bytes(bytes(8 * MIB))
    (target / "c").touch()
    on_node = plugin.call("NodeExpandVolume", volume_id=volume, volume_path=str(target))
    smaller = plugin.call("ControllerExpandVolume", volume_id=volume, capacity_range=Range(required_bytes=MIB))
    size = os.statvfs(target)
    refused = [
        plugin.refusal("ControllerExpandVolume", volume_id=volume, capacity_range=Range(limit_bytes=MIB))[0],
        plugin.refusal("ControllerExpandVolume", volume_id=volume, capacity_range=Range(required_bytes=1 << 60))[0],
        plugin.refusal("ControllerModifyVolume", volume_id=volume, mutable_parameters={"inodes": "0"})[0],
        plugin.refusal("ControllerModifyVolume", volume_id=volume, mutable_parameters={"size": "1Gi"})[0],
        plugin.refusal("NodeExpandVolume", volume_id=volume, volume_path="/elsewhere")[0],
    ]

    assert full == [28, 28]  # ENOSPC
    assert (grown.capacity_bytes, grown.node_expansion_required) == (32 * MIB, False)
    assert (on_node.capacity_bytes, smaller.capacity_bytes) == (32 * MIB, 32 * MIB)
    assert (size.f_blocks * size.f_frsize, size.f_files) == (32 * MIB, 10)
    assert refused == [
        Code.OUT_OF_RANGE,
        Code.OUT_OF_RANGE,
        Code.INVALID_ARGUMENT,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
    ]


def test_a_volume_in_use_is_not_deleted(kubelet: Kubelet, agent: CsiAgent) -> None:
    """DeleteVolume is refused for as long as the volume is staged, and its data is gone afterwards."""
    plugin = kubelet.plugin
    volume = plugin.create("v")
    kubelet.stage(volume)
    refused, message = plugin.refusal("DeleteVolume", volume_id=volume)
    kubelet.unstage(volume)
    plugin.call("DeleteVolume", volume_id=volume)
    plugin.call("DeleteVolume", volume_id=volume)

    assert refused == Code.FAILED_PRECONDITION
    assert "in use" in message
    assert os.listdir(agent.pool / "volumes") == []


def test_validation_is_an_answer(kubelet: Kubelet) -> None:
    """What cannot be had is not confirmed, with a message; what can is echoed."""
    plugin = kubelet.plugin
    volume = plugin.create("v", parameters={"mode": "0750"})
    good = plugin.call(
        "ValidateVolumeCapabilities",
        volume_id=volume,
        volume_capabilities=[capability(Mode.MULTI_NODE_MULTI_WRITER)],
        parameters={"mode": "0750"},
    )
    bad = [
        plugin.call("ValidateVolumeCapabilities", volume_id=volume, volume_capabilities=[capability(fs_type="ext4")]),
        plugin.call(
            "ValidateVolumeCapabilities",
            volume_id=volume,
            volume_capabilities=[capability()],
            parameters={"mode": "0700"},
        ),
    ]

    assert good.confirmed.volume_capabilities == [capability(Mode.MULTI_NODE_MULTI_WRITER)]
    assert [(b.HasField("confirmed"), bool(b.message)) for b in bad] == [(False, True)] * 2


def _errno(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as e:
        return e.errno or 0
    return 0
