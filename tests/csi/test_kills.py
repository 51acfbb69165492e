"""kill -9 of the agent after each step of a call: the same call again completes it."""

from __future__ import annotations

import contextlib
import os

import grpc
import pytest

from agent.csi import csi_pb2 as pb
from fusevol.errors import UnavailableError
from fusevol.transport import mount
from tests.csi.conftest import CsiAgent
from tests.support.csi import MIB, Kubelet, capability
from tests.support.mortal import kill_at_every_step
from tests.support.polling import eventually

# ruff: noqa: ARG002 - all work is asked with a name, and not all needs it

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    # an attachment is written down before what it shows is made
    pytest.mark.expect_log("What belongs at .* cannot be mounted: There is no volume"),
]


class _Calls:
    """Calls of a CO, each of which may be cut short by the agent's death."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self.agent = kubelet.agent
        self.ended = False

    def prepare(self, name: str) -> None:
        """Nothing."""

    def calls(self, name: str) -> None:
        """The calls."""
        raise NotImplementedError

    def begin(self, name: str) -> None:
        """Make them once."""
        self.ended = False
        try:
            self.calls(name)
        except grpc.RpcError as e:
            raise UnavailableError(str(e)) from e
        self.ended = True

    def done(self, name: str) -> bool:
        """All have ended."""
        return self.ended

    def check(self, name: str) -> None:
        """The same calls again succeed, with what they promise; then nothing is left."""
        self.calls(name)
        self.promised(name)
        with contextlib.suppress(grpc.RpcError):
            self.undo(name)
        self.undo(name)
        pool = self.agent.pool
        eventually(
            lambda: not os.listdir(pool / "volumes") and not os.listdir(pool / "trash"), what="the pool is empty"
        )
        assert os.listdir(pool / "tmp") == os.listdir(self.agent.state / "mounts") == []
        assert not mount.below(self.agent.directory)
        assert not self.agent.processes()

    def promised(self, name: str) -> None:
        """What must be so after the calls."""

    def undo(self, name: str) -> None:
        """Take it all back."""


class Pod(_Calls):
    """A volume is made, staged and published to a group."""

    def calls(self, name: str) -> None:
        volume = self.kubelet.plugin.create(name)
        how = capability(volume_mount_group="4711")
        self.kubelet.stage(volume, how)
        self.kubelet.publish(volume, how=how)

    def promised(self, name: str) -> None:
        target = self.kubelet.target("pod", f"default/{name}")
        (target / "f").write_text("x")
        assert (target / "f").stat().st_gid == 4711
        assert len([m for m in mount.mounts() if m.mountpoint == str(target)]) == 1

    def undo(self, name: str) -> None:
        volume = f"default/{name}"
        self.kubelet.unpublish(volume)
        self.kubelet.unstage(volume)
        self.kubelet.plugin.call("DeleteVolume", volume_id=volume)


class Inline(_Calls):
    """A Pod's own volume."""

    def calls(self, name: str) -> None:
        self.kubelet.inline(name, size="8Mi")

    def promised(self, name: str) -> None:
        (self.kubelet.target("pod", name) / "f").write_text("x")

    def undo(self, name: str) -> None:
        self.kubelet.unpublish(name)


class Undoing(_Calls):
    """Both are unpublished, unstaged, deleted."""

    def prepare(self, name: str) -> None:
        Pod(self.kubelet).calls(name)
        self.kubelet.inline(f"csi-{name}", size="8Mi")

    def calls(self, name: str) -> None:
        self.kubelet.unpublish(f"csi-{name}")
        Pod(self.kubelet).undo(name)


class Growing(_Calls):
    """A volume in use grows."""

    def prepare(self, name: str) -> None:
        Pod(self.kubelet).calls(name)

    def calls(self, name: str) -> None:
        self.kubelet.plugin.call(
            "ControllerExpandVolume",
            volume_id=f"default/{name}",
            capacity_range=pb.CapacityRange(required_bytes=64 * MIB),
        )

    def promised(self, name: str) -> None:
        target = self.kubelet.target("pod", f"default/{name}")
        (target / "f").write_bytes(bytes(32 * MIB))
        size = os.statvfs(target)
        assert size.f_blocks * size.f_frsize == 64 * MIB

    def undo(self, name: str) -> None:
        Pod(self.kubelet).undo(name)


class Group(_Calls):
    """Two volumes are kept together."""

    def prepare(self, name: str) -> None:
        for volume in (f"{name}-a", f"{name}-b"):
            self.kubelet.plugin.create(volume)

    def calls(self, name: str) -> None:
        listed = self.kubelet.plugin.call("ListSnapshots").entries
        assert len(listed) in {0, 2}, "what is not finished is not shown"
        volumes = [f"default/{name}-a", f"default/{name}-b"]
        self.kubelet.plugin.call("CreateVolumeGroupSnapshot", name=name, source_volume_ids=volumes)

    def promised(self, name: str) -> None:
        assert len(os.listdir(self.agent.pool / "snapshots")) == 2

    def undo(self, name: str) -> None:
        self.kubelet.plugin.call("DeleteVolumeGroupSnapshot", group_snapshot_id=name)
        for volume in (f"{name}-a", f"{name}-b"):
            self.kubelet.plugin.call("DeleteVolume", volume_id=f"default/{volume}")


@pytest.mark.parametrize(
    ("work", "steps"),
    [
        (Pod, {"attachment recorded", "server started", "target bound", "given to the group"}),
        (Inline, {"attachment recorded", "target bound"}),
        (Undoing, {"target unmounted", "server ended", "attachment forgotten"}),
        (Growing, {"limits recorded"}),
        (Group, {"snapshot: durable"}),
    ],
)
def test_killed_after_each_step(kubelet: Kubelet, agent: CsiAgent, work: type[_Calls], steps: set[str]) -> None:
    """Whatever a dead agent has left of the calls, the next one completes when they are made again."""
    found = kill_at_every_step(
        agent, work(kubelet), but=r"(provision|trash|purge): |snapshot: (?!durable)"
    )  # tests/pools/test_crash.py

    assert steps <= set(found)
