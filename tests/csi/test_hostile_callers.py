"""Callers of the CSI socket whose messages are too large, whose names are too long, and whose handles are paths."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from agent.csi import csi_pb2 as pb
from agent.csi.refusal import Code
from agent.csi.server import CONNECTIONS, MESSAGE_LIMIT
from fusevol.transport import mount
from tests.csi.conftest import CsiAgent
from tests.support.csi import MIB, Kubelet, Plugin, capability
from tests.support.polling import eventually

pytestmark = pytest.mark.root

HOSTILE = [
    "../../../etc", "/etc", "..", ".", "default/..", "default/../../x", "default//etc", "default/./x", "default/x/../y",
    "a\0b", "default/a\0b", "x" * 129, "default/" + "x" * 5000,
    "ü/ñ", "default/\u202e\ufeff", "default/%2e%2e", "\n", " ",
    "default/*", "$(reboot)", "default/x; reboot", "csi/default", "//", "default/",
]  # fmt: skip
"""Handles that nobody was given."""
_ANSWERS = {
    Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.ABORTED, Code.OUT_OF_RANGE,
    Code.ALREADY_EXISTS, Code.RESOURCE_EXHAUSTED, Code.PERMISSION_DENIED,
}  # fmt: skip
"""Refusals that tell the caller of a mistake; none of them is a failure of ours."""


def tree(*roots: Path) -> set[str]:
    """Everything in *roots*."""
    return {os.path.join(top, name) for r in roots for top, dirs, files in os.walk(r) for name in (*dirs, *files)}


def requests(agent: CsiAgent, handle: str) -> list[tuple[str, dict[str, Any]]]:
    """Every call that names a volume, a snapshot or a group of them, about *handle*."""
    how, size = capability(), pb.CapacityRange(required_bytes=16 * MIB)
    staging, target = str(agent.directory / "stage"), str(agent.directory / "target")
    content, group = pb.VolumeContentSource, {"group_snapshot_id": handle, "snapshot_ids": [handle]}
    return [
        ("CreateVolume", {"name": "n", "volume_capabilities": [how], "parameters": {"pool": handle}}),
        *(
            ("CreateVolume", {"name": "n", "volume_capabilities": [how], "volume_content_source": source})
            for source in (
                content(volume=content.VolumeSource(volume_id=handle)),
                content(snapshot=content.SnapshotSource(snapshot_id=handle)),
            )
        ),
        ("DeleteVolume", {"volume_id": handle}),
        ("ValidateVolumeCapabilities", {"volume_id": handle, "volume_capabilities": [how]}),
        ("ListVolumes", {"starting_token": handle}),
        ("GetCapacity", {"parameters": {"pool": handle}}),
        ("CreateSnapshot", {"source_volume_id": handle, "name": "s"}),
        ("DeleteSnapshot", {"snapshot_id": handle}),
        ("ListSnapshots", {"snapshot_id": handle}),
        ("ListSnapshots", {"source_volume_id": handle}),
        ("ListSnapshots", {"starting_token": handle}),
        ("ControllerExpandVolume", {"volume_id": handle, "capacity_range": size}),
        ("ControllerGetVolume", {"volume_id": handle}),
        ("ControllerModifyVolume", {"volume_id": handle, "mutable_parameters": {"inodes": "10"}}),
        ("CreateVolumeGroupSnapshot", {"name": "g", "source_volume_ids": [handle]}),
        ("DeleteVolumeGroupSnapshot", group),
        ("GetVolumeGroupSnapshot", group),
        ("NodeStageVolume", {"volume_id": handle, "staging_target_path": staging, "volume_capability": how}),
        ("NodeUnstageVolume", {"volume_id": handle, "staging_target_path": staging}),
        (
            "NodePublishVolume",
            {
                "volume_id": handle,
                "staging_target_path": staging,
                "target_path": target,
                "volume_capability": how,
            },
        ),
        ("NodeUnpublishVolume", {"volume_id": handle, "target_path": target}),
        ("NodeGetVolumeStats", {"volume_id": handle, "volume_path": target}),
        ("NodeExpandVolume", {"volume_id": handle, "volume_path": target, "capacity_range": size}),
    ]


def code_of(plugin: Plugin, method: str, fields: dict[str, Any]) -> int:
    """The code of an answer; 0 for a success."""
    try:
        plugin.call(method, **fields)
    except grpc.RpcError as e:
        return int(e.code().value[0])
    return 0


def test_handles_are_no_paths(agent: CsiAgent, kubelet: Kubelet) -> None:
    """No call takes a handle that nobody was given for a path: it is refused, or nothing is there to be removed."""
    known = kubelet.plugin.create("known")
    kubelet.stage(known)
    victim = agent.directory / "victim"
    (victim / "data").mkdir(parents=True)
    (victim / "volume.json").write_text("{}")
    relative = os.path.relpath(victim, agent.pool / "volumes")
    before = tree(agent.pool, victim, agent.state / "mounts", agent.host)
    wrong = []
    for handle in (*HOSTILE, relative, f"default/{relative}", str(victim), f"default/{victim}"):
        for method, fields in requests(agent, handle):
            code = code_of(kubelet.plugin, method, fields)
            gone = method.startswith(("Delete", "NodeUn", "List", "GetCapacity"))  # what is not there is gone
            if not (code in _ANSWERS or (code == 0 and gone)):
                wrong.append((handle, method, fields, code))
    after = tree(agent.pool, victim, agent.state / "mounts", agent.host)

    assert wrong == []
    assert before == after
    assert {Path(m.mountpoint).name for m in mount.below(agent.directory)} == {"known"}


def test_handles_of_inline_volumes_are_no_paths(agent: CsiAgent, kubelet: Kubelet) -> None:
    """The handle of a Pod's own volume may be anything, and becomes no name of a file."""
    names = set()
    for number, handle in enumerate(h for h in HOSTILE if len(h.encode()) <= 128):
        path = kubelet.root / "pods" / str(number) / "mount"
        path.parent.mkdir(parents=True)
        kubelet.plugin.call("NodePublishVolume", **kubelet.inline_publication(handle, path, "", size="1Mi"))
        names |= set(os.listdir(agent.pool / "volumes"))
        kubelet.plugin.call("NodeUnpublishVolume", volume_id=handle, target_path=str(path))

    assert names
    assert all(name.startswith("inline-") and name.isascii() and len(name) == 47 for name in names)
    assert not mount.below(agent.directory)


def test_names_of_any_kind(agent: CsiAgent, kubelet: Kubelet) -> None:
    """A name that a CO suggests is Unicode, and may look like a path: its volume lies where all do."""
    names = [h for h in HOSTILE if len(h.encode()) <= 128 and h.isprintable()]
    handles = [kubelet.plugin.create(name, MIB) for name in names]

    assert len(set(handles)) == len(names)
    assert sorted(os.listdir(agent.pool / "volumes")) == sorted(h.partition("/")[2] for h in handles)


def texts(message: Message) -> list[str]:
    """The fields of *message* that are texts."""
    return [f.name for f in message.DESCRIPTOR.fields if f.type == FieldDescriptor.TYPE_STRING and not f.is_repeated]


def test_lengths(agent: CsiAgent, kubelet: Kubelet) -> None:
    """A text of more than 128 bytes and a map of more than 4 KiB are refused as the specification says."""
    how = [capability()]
    wrong = []
    for method, fields in requests(agent, "default/x"):
        for name in texts(getattr(pb, f"{method}Request")()):
            if name.endswith(("token", "_path")) or name not in fields:
                continue
            code = code_of(kubelet.plugin, method, {**fields, name: "é" * 65})
            if code not in {Code.INVALID_ARGUMENT, Code.NOT_FOUND} and not method.startswith(("Delete", "List")):
                wrong.append((method, name, code))
    many = {str(i): "v" * 100 for i in range(50)}
    code, said = kubelet.plugin.refusal("CreateVolume", name="n", volume_capabilities=how, parameters=many)
    flags = [capability(mount_flags=["x" * 100] * 50)]
    flagged, _ = kubelet.plugin.refusal("CreateVolume", name="n", volume_capabilities=flags)
    path = {"volume_id": kubelet.plugin.create("v"), "volume_capability": capability()}
    deep, _ = kubelet.plugin.refusal("NodeStageVolume", staging_target_path="/" + "x" * 4096, **path)
    up, _ = kubelet.plugin.refusal("NodeStageVolume", staging_target_path=f"{agent.directory}/../x", **path)
    zero, _ = kubelet.plugin.refusal("NodeStageVolume", staging_target_path=f"{agent.directory}/\0", **path)

    assert wrong == []
    assert (code, said) == (Code.INVALID_ARGUMENT, "parameters has more than 4096 bytes.")
    assert {flagged, deep, up, zero} == {Code.INVALID_ARGUMENT}


@pytest.mark.expect_log("Exception deserializing message")
def test_sizes(agent: CsiAgent, kubelet: Kubelet) -> None:
    """A message or metadata of too many bytes is refused by gRPC itself, and the next call is answered."""
    large, _ = kubelet.plugin.refusal("ControllerGetVolume", volume_id="x" * (MESSAGE_LIMIT + 1))
    with grpc.insecure_channel(f"unix:{agent.directory}/csi.sock") as channel:
        probe = channel.unary_unary("/csi.v1.Identity/Probe")
        with pytest.raises(grpc.RpcError) as heads:
            probe(b"", metadata=[("x", "y" * 20_000)], timeout=10)
        with pytest.raises(grpc.RpcError) as garbage:
            channel.unary_unary("/csi.v1.Node/NodeStageVolume")(b"\xff" * 100, timeout=10)
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/csi.v1.Node/Reboot")(b"", timeout=10)
        probe(b"", timeout=10)

    assert large == Code.RESOURCE_EXHAUSTED
    assert heads.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert garbage.value.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT}
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_many_callers(agent: CsiAgent, kubelet: Kubelet) -> None:
    """Callers who connect and say nothing are closed after a while, and one too many at once."""
    path = agent.directory / "csi.sock"
    kubelet.plugin.call("Probe")
    closed = []
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2 * CONNECTIONS)]
        for peer in silent:
            peer.connect(str(path))
            peer.settimeout(20)
        kubelet.plugin.call("Probe")
        for peer in silent:
            with contextlib.suppress(ConnectionError):
                while peer.recv(4096):
                    pass
            closed.append(peer)
    stranger = Plugin(path)
    eventually(lambda: code_of(stranger, "Probe", {}) == 0, what="another caller is served")
    stranger.close()

    assert len(closed) == 2 * CONNECTIONS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
