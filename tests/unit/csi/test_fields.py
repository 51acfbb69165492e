"""What requests may say (CSI v1.12), and the wire contract of the messages."""

from __future__ import annotations

import pytest

from agent.csi import csi_pb2 as pb
from agent.csi import fields, parameters, topology
from agent.csi.controller import Controller
from agent.csi.groups import GroupController
from agent.csi.identity import Identity
from agent.csi.node import Node
from agent.csi.refusal import Code, Refused, code_of
from agent.csi.server import methods
from agent.csi.settings import ENDPOINT, Settings
from agent.volumes.node import TOPOLOGY, segment
from fusevol.errors import FusevolError, UsageError

Mode = pb.VolumeCapability.AccessMode


def test_messages_have_the_specifications_numbers() -> None:
    """Bytes written by the specification's numbers are read as what they mean, and written as they were."""
    name, context = b"\x0a\x01v", b"\x42\x06\x0a\x01k\x12\x01w"  # fields 1 and 8
    capability = b"\x2a\x0f" + b"\x12\x09\x12\x02ro\x1a\x03471" + b"\x1a\x02\x08\x07"
    publish = name + b"\x22\x02/t" + capability + b"\x30\x01" + context
    request = pb.NodePublishVolumeRequest.FromString(publish)

    assert (request.volume_id, request.target_path, request.readonly) == ("v", "/t", True)
    assert list(request.volume_capability.mount.mount_flags) == ["ro"]
    assert request.volume_capability.mount.volume_mount_group == "471"
    assert request.volume_capability.access_mode.mode == Mode.SINGLE_NODE_MULTI_WRITER
    assert dict(request.volume_context) == {"k": "w"}
    assert request.SerializeToString(deterministic=True) == publish


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (pb.CreateVolumeRequest, ("name capacity_range volume_capabilities parameters secrets volume_content_source "
         "accessibility_requirements mutable_parameters")),
        (pb.Volume, "capacity_bytes volume_id volume_context content_source accessible_topology"),
        (pb.NodeStageVolumeRequest, ("volume_id publish_context staging_target_path volume_capability secrets "
         "volume_context")),
        (pb.NodeExpandVolumeRequest, ("volume_id volume_path capacity_range staging_target_path volume_capability "
         "secrets")),
        (pb.VolumeUsage, "available total used unit"),
        (pb.Snapshot, "size_bytes snapshot_id source_volume_id creation_time ready_to_use group_snapshot_id"),
        (pb.ListSnapshotsRequest, "max_entries starting_token source_volume_id snapshot_id secrets"),
    ],
)  # fmt: skip
def test_fields_are_numbered_in_the_specifications_order(message: type, numbers: str) -> None:
    """These messages number their fields from 1 in the specification's order."""
    found = {field.number: field.name for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]

    assert found == dict(enumerate(numbers.split(), start=1))


def test_every_promised_call_is_served() -> None:
    """Each service has its mandatory calls, and those of the capabilities that it states."""
    found = {service.__name__: set(methods(service)) for service in (Identity, Controller, GroupController, Node)}

    assert found["Identity"] == {"GetPluginInfo", "GetPluginCapabilities", "Probe"}
    assert found["Controller"] >= {
        "CreateVolume", "DeleteVolume", "ValidateVolumeCapabilities", "ListVolumes", "GetCapacity",
        "ControllerGetCapabilities", "ControllerExpandVolume", "ControllerGetVolume", "ControllerModifyVolume",
    }  # fmt: skip
    assert found["GroupController"] == {
        "GroupControllerGetCapabilities", "CreateVolumeGroupSnapshot", "DeleteVolumeGroupSnapshot",
        "GetVolumeGroupSnapshot",
    }  # fmt: skip
    assert found["Node"] == {
        "NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeGetVolumeStats",
        "NodeExpandVolume", "NodeGetCapabilities", "NodeGetInfo",
    }  # fmt: skip


def test_every_error_of_ours_has_a_code() -> None:
    """Each error that a user can cause becomes a code of its own, not INTERNAL; only damage is that."""
    internal = [error.__name__ for error in FusevolError.__subclasses__() if code_of(error("x")) == Code.INTERNAL]

    assert set(internal) - {"TooLargeError", "TooMuchError", "TooSlowError", "GoneError"} == {
        "CorruptError"
    }  # those are of HTTP alone


@pytest.mark.parametrize(
    ("required", "limit", "chosen"),
    [(0, 0, None), (5 << 20, 0, 5 << 20), (1, 0, 1 << 20), (0, 2 << 20, 2 << 20), (0, 4 << 30, 1 << 30)],
)
def test_the_size_of_a_new_volume(required: int, limit: int, chosen: int | None) -> None:
    """What is required, not less than the least; what is only limited gets the default or the limit."""
    given = pb.CapacityRange(required_bytes=required, limit_bytes=limit)
    found = fields.capacity_range(given, present=chosen is not None).choose()

    assert found == (chosen or fields.DEFAULT_SIZE)


@pytest.mark.parametrize("path", ["", "a", "/", "//", "/a/../b", "/a\0b", "/" + "x" * 5000, "/.."])
def test_paths_that_are_refused(path: str) -> None:
    """A target is an absolute path, not the root, without a way up."""
    with pytest.raises(Refused) as refused:
        fields.absolute(path, "target_path")

    assert refused.value.code == Code.INVALID_ARGUMENT


def test_ids_of_volumes() -> None:
    """A name that can be an id is one; others are hashed, always the same way; inline volumes are never named alike."""
    names = ["pvc-1", "PVC-1", "a.b", "a/b", "x" * 128, "inline-0", "ä"]
    ids = [parameters.volume_id(name) for name in names]

    assert ids[0] == "pvc-1"
    assert len(set(ids)) == len(names)
    assert ids == [parameters.volume_id(name) for name in names]
    assert parameters.inline_id("pvc-1") not in ids


def test_topology() -> None:
    """A node is in its own topology and in what says nothing; keys compare without their case, values with it."""
    key = TOPOLOGY
    matching = [{}, {key: "n1"}, {key.upper(): "n1"}]
    other = [{key: "N1"}, {key: "n2"}, {"zone": "n1"}, {key: "n1", "zone": "a"}]

    assert all(topology.matches("n1", pb.Topology(segments=s)) for s in matching)
    assert not any(topology.matches("n1", pb.Topology(segments=s)) for s in other)
    assert segment("node-1.example.org") == "node-1.example.org"
    assert len(segment("x" * 200)) <= 63
    assert segment("-x") != "-x"


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint in its three spellings, from the flag, the environment and the file, in this order."""
    file = {"endpoint": "unix:/f.sock", "hostPaths": ["/srv/a/", "/srv/b"], "maxVolumes": 5}
    from_file = Settings.parse(file)
    monkeypatch.setenv(ENDPOINT, "unix:///e.sock")
    from_environment = Settings.parse(file)
    flagged = Settings.parse(file, "/g.sock")

    assert from_file is not None
    assert from_environment is not None
    assert flagged is not None
    assert [str(s.endpoint) for s in (from_file, from_environment, flagged)] == ["/f.sock", "/e.sock", "/g.sock"]
    assert [str(p) for p in from_file.host_paths] == ["/srv/a", "/srv/b"]
    assert from_file.max_volumes == 5


@pytest.mark.parametrize(
    "given",
    [
        "unix:///a.sock",
        {"endpoint": "tcp://0.0.0.0:1"},
        {"endpoint": "unix://a"},
        {"hostPaths": ["/a"]},
        {"endpoint": "/a", "hostPaths": ["a"]},
        {"endpoint": "/a", "hostPaths": ["/a/../b"]},
        {"endpoint": "/a", "hostPaths": "/a"},
        {"endpoint": "/a", "maxVolumes": -1},
        {"endpoint": "/a", "port": 1},
        {"endpoint": "/a", "deployment": "cluster"},
    ],
)
def test_settings_that_are_refused(given: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be meant is refused in one sentence."""
    monkeypatch.delenv(ENDPOINT, raising=False)
    with pytest.raises(UsageError) as refused:
        Settings.parse(given)

    assert refused.value.message.endswith(".")
