"""Snapshots and what is made of them: restored volumes, clones; what is refused; copies that outlast their call."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.csi import csi_pb2 as pb
from agent.csi.refusal import Code
from tests.conftest import LoopFs
from tests.csi.conftest import CsiAgent
from tests.support.csi import MIB, Kubelet, capability
from tests.support.logs import LogCheck
from tests.support.polling import eventually

pytestmark = pytest.mark.root

Range = pb.CapacityRange


def of_snapshot(handle: str) -> pb.VolumeContentSource:
    return pb.VolumeContentSource(snapshot=pb.VolumeContentSource.SnapshotSource(snapshot_id=handle))


def of_volume(handle: str) -> pb.VolumeContentSource:
    return pb.VolumeContentSource(volume=pb.VolumeContentSource.VolumeSource(volume_id=handle))


def written(kubelet: Kubelet, volume: str, text: str) -> None:
    """Mount a volume, write *text* into its file ``f``, and unmount it."""
    kubelet.stage(volume)
    (kubelet.publish(volume) / "f").write_text(text)
    kubelet.unpublish(volume)
    kubelet.unstage(volume)


def read(kubelet: Kubelet, volume: str) -> str:
    """Mount a volume, read its file ``f``, and unmount it."""
    kubelet.stage(volume)
    text = (kubelet.publish(volume) / "f").read_text()
    kubelet.unpublish(volume)
    kubelet.unstage(volume)
    return text


def test_a_snapshot_outlives_its_volume(kubelet: Kubelet, agent: CsiAgent) -> None:
    """A snapshot keeps what was there, also when the volume is gone; volumes made of it begin with that, echo it, and
    keep their own limits."""
    plugin = kubelet.plugin
    volume = plugin.create("v", 8 * MIB)
    written(kubelet, volume, "before")
    made = plugin.call("CreateSnapshot", name="s", source_volume_id=volume).snapshot
    again = plugin.call("CreateSnapshot", name="s", source_volume_id=volume).snapshot
    written(kubelet, volume, "after")
    clone = plugin.create("c", 8 * MIB, volume_content_source=of_volume(volume))
    plugin.call("DeleteVolume", volume_id=volume)
    fields = {"name": "r", "volume_capabilities": [capability()], "volume_content_source": of_snapshot("default/s")}
    restored = plugin.call("CreateVolume", capacity_range=Range(required_bytes=16 * MIB), **fields).volume
    same = plugin.call("CreateVolume", **fields).volume
    texts = [read(kubelet, clone), read(kubelet, restored.volume_id)]
    kubelet.stage(restored.volume_id)
    with pytest.raises(OSError, match="No space"):
        (kubelet.publish(restored.volume_id) / "g").write_bytes(bytes(17 * MIB))
    plugin.call("DeleteSnapshot", snapshot_id="default/s")
    plugin.call("DeleteSnapshot", snapshot_id="default/s")

    assert (made.snapshot_id, made.source_volume_id, made.size_bytes) == ("default/s", volume, 8 * MIB)
    assert (made.ready_to_use, made.creation_time.seconds > 0) == (True, True)
    assert made == again
    assert texts == ["after", "before"]
    assert restored.content_source == same.content_source == of_snapshot("default/s")
    assert restored.capacity_bytes == 16 * MIB
    eventually(lambda: not os.listdir(agent.pool / "trash"), what="what was deleted is gone")
    assert os.listdir(agent.pool / "snapshots") == os.listdir(agent.pool / "tmp") == []


def test_what_cannot_be_restored_is_refused(kubelet: Kubelet) -> None:
    """Unknown sources, sizes that are too small, names that are taken: each has its code."""
    plugin = kubelet.plugin
    volume, other = plugin.create("v", 8 * MIB), plugin.create("w", 8 * MIB)
    snapshot = plugin.call("CreateSnapshot", name="s", source_volume_id=volume).snapshot.snapshot_id
    base = {"name": "r", "volume_capabilities": [capability()]}
    refused = [
        plugin.refusal("CreateSnapshot", name="s", source_volume_id=other),
        plugin.refusal("CreateSnapshot", name="t", source_volume_id="default/none"),
        plugin.refusal("CreateSnapshot", name="t", source_volume_id=volume, parameters={"colour": "red"}),
        plugin.refusal("CreateVolume", **base, volume_content_source=of_snapshot("default/none")),
        plugin.refusal("CreateVolume", **base, volume_content_source=of_snapshot("default/../s")),
        plugin.refusal("CreateVolume", **base, volume_content_source=of_volume("nopool/v")),
        plugin.refusal("CreateVolume", **base, volume_content_source=pb.VolumeContentSource()),
        plugin.refusal(
            "CreateVolume", **base, volume_content_source=of_snapshot(snapshot),
            capacity_range=Range(required_bytes=4 * MIB),
        ),
        plugin.refusal(
            "CreateVolume", **base, volume_content_source=of_volume(volume), capacity_range=Range(limit_bytes=4 * MIB)
        ),
        plugin.refusal(
            "CreateVolume", **(base | {"name": "v"}), volume_content_source=of_snapshot(snapshot),
            capacity_range=Range(required_bytes=8 * MIB),
        ),
    ]  # fmt: skip

    assert [code for code, _ in refused] == [
        Code.ALREADY_EXISTS,
        Code.NOT_FOUND,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.NOT_FOUND,
        Code.NOT_FOUND,
        Code.INVALID_ARGUMENT,
        Code.OUT_OF_RANGE,
        Code.OUT_OF_RANGE,
        Code.ALREADY_EXISTS,
    ], refused


def test_snapshots_are_listed(kubelet: Kubelet) -> None:
    """In pages, by source, by id; what matches nothing is an empty list, and a bad token ABORTED."""
    plugin = kubelet.plugin
    a, b = plugin.create("a", MIB), plugin.create("b", MIB)
    handles = [
        plugin.call("CreateSnapshot", name=f"s{i}", source_volume_id=(a, b)[i % 2]).snapshot.snapshot_id
        for i in range(5)
    ]

    def listed(**fields: object) -> list[str]:
        return [entry.snapshot.snapshot_id for entry in plugin.call("ListSnapshots", **fields).entries]

    first = plugin.call("ListSnapshots", max_entries=2)
    rest = listed(starting_token=first.next_token)
    filtered = [
        listed(source_volume_id=b),
        listed(snapshot_id=handles[3]),
        listed(snapshot_id=handles[3], source_volume_id=a),
        listed(source_volume_id="../x"),
    ]
    token = plugin.refusal("ListSnapshots", starting_token=handles[0])[0]

    assert [e.snapshot.snapshot_id for e in first.entries] + rest == handles
    assert filtered == [[handles[1], handles[3]], [handles[3]], [], []]
    assert token == Code.ABORTED


def test_a_volume_in_use(kubelet: Kubelet) -> None:
    """A snapshot and a clone of a volume that is being written are of one moment: of two files that are written in
    turns, neither is ahead of the other."""
    plugin = kubelet.plugin
    volume = plugin.create("v", 64 * MIB)
    kubelet.stage(volume)
    target = kubelet.publish(volume)
    for i in range(500):
        (target / f"{i}").write_bytes(bytes(4096))
    over = threading.Event()

    def write() -> int:
        count = 0
        with (target / "a").open("wb", buffering=0) as a, (target / "z").open("wb", buffering=0) as z:
            while not over.is_set():
                a.write(b"x")
                z.write(b"x")
                count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            eventually(lambda: (target / "z").stat().st_size > 10, what="the program writes")
            snapshot = plugin.call("CreateSnapshot", name="s", source_volume_id=volume).snapshot.snapshot_id
            clone = plugin.create("c", 64 * MIB, volume_content_source=of_volume(volume))
        finally:
            over.set()
    # a volume of the same name as its snapshot
    restored = plugin.create("s", 64 * MIB, volume_content_source=of_snapshot(snapshot))
    sizes = []
    for made in (clone, restored):
        kubelet.stage(made)
        shown = kubelet.publish(made)
        sizes.append(((shown / "a").stat().st_size, (shown / "z").stat().st_size))

    assert all(0 <= a - z <= 1 for a, z in sizes)
    assert 0 < sizes[1][0] <= sizes[0][0] <= writer.result()


@pytest.fixture
def on_btrfs(workdir: Path, logs: LogCheck, loop_fs: LoopFs) -> Iterator[Kubelet]:
    """A kubelet with a driver whose pool is on btrfs."""
    point = loop_fs("btrfs", 256 * MIB)
    agent = CsiAgent(workdir, logs)
    try:
        agent.start("--pool", f"default={point}/pool")
        with contextlib.closing(Kubelet(agent)) as kubelet:
            yield kubelet
    finally:
        agent.close()


def test_a_volume_in_use_on_btrfs(on_btrfs: Kubelet) -> None:
    """There a snapshot and a clone are one moment of a volume that goes on being used."""
    plugin = on_btrfs.plugin
    volume = plugin.create("v", 32 * MIB)
    on_btrfs.stage(volume)
    target = on_btrfs.publish(volume)
    (target / "f").write_text("before")
    os.sync()
    snapshot = plugin.call("CreateSnapshot", name="s", source_volume_id=volume).snapshot.snapshot_id
    clone = plugin.create("c", 32 * MIB, volume_content_source=of_volume(volume))
    (target / "f").write_text("after")
    restored = plugin.create("r", 32 * MIB, volume_content_source=of_snapshot(snapshot))
    texts = [read(on_btrfs, clone), read(on_btrfs, restored), (target / "f").read_text()]
    stats = plugin.call("NodeGetVolumeStats", volume_id=volume, volume_path=str(target))
    plugin.call("ControllerExpandVolume", volume_id=volume, capacity_range=Range(required_bytes=64 * MIB))
    size = os.statvfs(target)

    assert texts == ["before", "before", "after"]
    assert stats.usage[0].total == 32 * MIB
    assert size.f_blocks * size.f_frsize == 64 * MIB


def test_a_copy_outlasts_its_call(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Calls that are over before the copy is end with their deadlines, however many; all of them want the same copy."""
    plugin = kubelet.plugin
    volume = plugin.create("v", 256 * MIB)
    data = agent.pool / "volumes" / "v" / "data"
    for i in range(20_000):
        (data / str(i)).touch()
    snapshot = plugin.call("CreateSnapshot", name="s", source_volume_id=volume).snapshot.snapshot_id
    fields = {"name": "r", "volume_capabilities": [capability()], "volume_content_source": of_snapshot(snapshot)}
    codes, building = [], set()
    for _ in range(12):
        codes.append(plugin.refusal("CreateVolume", 0.02, **fields)[0])
        building.add(len(os.listdir(agent.pool / "tmp")))
    made = plugin.call("CreateVolume", **fields).volume.volume_id

    assert codes == [Code.DEADLINE_EXCEEDED] * 12
    assert building <= {0, 1}
    assert len(os.listdir(agent.pool / "volumes" / "r" / "data")) == 20_000
    assert made == "default/r"
    assert os.listdir(agent.pool / "tmp") == []


def test_a_group_is_of_one_moment(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Snapshots of two volumes that a program writes in turns: neither is ahead of the other. A group is made once, and
    goes as a whole."""
    plugin = kubelet.plugin
    volumes = [plugin.create(name, 32 * MIB) for name in ("a", "b")]
    for volume in volumes:
        kubelet.stage(volume)
    targets = [kubelet.publish(volume) for volume in volumes]
    for i in range(300):
        (targets[0] / f"{i}").write_bytes(bytes(4096))
    over = threading.Event()

    def write() -> None:
        with (targets[0] / "f").open("wb", buffering=0) as a, (targets[1] / "f").open("wb", buffering=0) as b:
            while not over.is_set():
                a.write(b"x")
                b.write(b"x")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            eventually(lambda: (targets[1] / "f").stat().st_size > 10, what="the program writes")
            group = plugin.call("CreateVolumeGroupSnapshot", name="g", source_volume_ids=volumes).group_snapshot
        finally:
            over.set()
        writer.result()
    again = plugin.call("CreateVolumeGroupSnapshot", name="g", source_volume_ids=volumes[::-1]).group_snapshot
    members = {one.source_volume_id: one.snapshot_id for one in group.snapshots}
    sizes = [(agent.pool / "snapshots" / members[v].partition("/")[2] / "data/f").stat().st_size for v in volumes]
    listed = [e.snapshot.group_snapshot_id for e in plugin.call("ListSnapshots").entries]
    restored = plugin.create("r", 32 * MIB, volume_content_source=of_snapshot(members[volumes[0]]))
    refused = [
        plugin.refusal("CreateVolumeGroupSnapshot", name="g", source_volume_ids=volumes[:1])[0],
        plugin.refusal("CreateVolumeGroupSnapshot", name="h", source_volume_ids=[volumes[0], "default/none"])[0],
        plugin.refusal("CreateVolumeGroupSnapshot", name="h")[0],
        plugin.refusal("DeleteSnapshot", snapshot_id=members[volumes[0]])[0],
    ]
    got = plugin.call("GetVolumeGroupSnapshot", group_snapshot_id="g", snapshot_ids=members.values()).group_snapshot
    for _ in range(2):
        plugin.call("DeleteVolumeGroupSnapshot", group_snapshot_id="g", snapshot_ids=members.values())
    gone = plugin.refusal("GetVolumeGroupSnapshot", group_snapshot_id="g")[0]

    assert members.keys() == set(volumes)
    assert group == again == got
    assert listed == ["g", "g"]
    assert 0 <= sizes[0] - sizes[1] <= 1
    assert sizes[1] > 10
    assert restored == "default/r"
    assert refused == [Code.ALREADY_EXISTS, Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT]
    assert gone == Code.NOT_FOUND
    assert os.listdir(agent.pool / "snapshots") == []
