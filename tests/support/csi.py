"""A container orchestrator's side of CSI: calls on a driver's socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from agent.csi import csi_pb2 as pb
from agent.csi.server import methods
from fusevol.transport import mount
from tests.support.agent import Agent

Mode = pb.VolumeCapability.AccessMode
_IDENTITY = {"GetPluginInfo", "GetPluginCapabilities", "Probe"}
MIB = 1 << 20


def capability(mode: int = Mode.SINGLE_NODE_MULTI_WRITER, **mount: Any) -> pb.VolumeCapability:
    """A capability to mount a volume."""
    return pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(**mount), access_mode=Mode(mode=Mode.Mode.ValueType(mode))
    )


class Plugin:
    """A driver's socket."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.enable_retries", 0)])

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def start(self, method: str, timeout: float = 60.0, /, **fields: Any) -> grpc.Future:
        """Begin a call."""
        service = "Identity" if method in _IDENTITY else "Node" if method.startswith("Node") else "Controller"
        if "Group" in method:
            service = "GroupController"
        stub = self._channel.unary_unary(
            f"/csi.v1.{service}/{method}",
            request_serializer=getattr(pb, f"{method}Request").SerializeToString,
            response_deserializer=getattr(pb, f"{method}Response").FromString,
        )
        request = getattr(pb, f"{method}Request")(**fields)
        return stub.future(request, timeout=timeout, wait_for_ready=True)

    def call(self, method: str, timeout: float = 60.0, /, **fields: Any) -> Any:
        """The response to a call. Raises ``grpc.RpcError``."""
        return self.start(method, timeout, **fields).result()

    def refusal(self, method: str, timeout: float = 60.0, /, **fields: Any) -> tuple[int, str]:
        """Code and message of a call that must be refused."""
        try:
            answer = self.call(method, timeout, **fields)
        except grpc.RpcError as e:
            code: int = e.code().value[0]
            return code, str(e.details())
        raise AssertionError(f"{method} was not refused: {answer}")

    def create(self, name: str, size: int = 16 * MIB, **more: Any) -> str:
        """Make a volume; its handle."""
        fields: dict[str, Any] = {
            "name": name,
            "capacity_range": pb.CapacityRange(required_bytes=size),
            "volume_capabilities": [capability()],
        }
        return str(self.call("CreateVolume", **(fields | more)).volume.volume_id)


def references(staging: Path) -> list[str]:
    """Where else a kubelet finds what is mounted at a staging path: as its GetMountRefs and HasMountRefs do."""
    table = mount.mounts()
    found = next((m for m in reversed(table) if staging.is_relative_to(m.mountpoint)), None)
    assert found is not None
    root = Path(found.root) / staging.relative_to(found.mountpoint)
    same = [m for m in table if m is not found and (m.major, m.minor, Path(m.root)) == (found.major, found.minor, root)]
    own = str(staging)[str(staging).index("/plugins/") :]
    return [m.mountpoint for m in same if own not in m.mountpoint]


class Kubelet:
    """What a kubelet does with a driver: it makes directories, and calls the Node service."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.root = agent.directory / "k"
        self.plugin = Plugin(agent.directory / "csi.sock")

    def staging(self, volume: str) -> Path:
        """A volume's staging path, which the kubelet makes."""
        path = self.root / "plugins" / volume.replace("/", "_") / "globalmount"
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        return path

    def target(self, pod: str, volume: str) -> Path:
        """A target path, whose parent the kubelet makes."""
        path = self.root / "pods" / pod / volume.replace("/", "_") / "mount"
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        return path

    def stage(self, volume: str, how: pb.VolumeCapability | None = None, **more: Any) -> Path:
        """NodeStageVolume."""
        path = self.staging(volume)
        self.plugin.call(
            "NodeStageVolume",
            volume_id=volume,
            staging_target_path=str(path),
            volume_capability=how or capability(),
            **more,
        )
        return path

    def publish(self, volume: str, pod: str = "pod", how: pb.VolumeCapability | None = None, **more: Any) -> Path:
        """NodePublishVolume."""
        path = self.target(pod, volume)
        self.plugin.call("NodePublishVolume", **self.publication(volume, path, how), **more)
        return path

    def publication(self, volume: str, path: Path, how: pb.VolumeCapability | None = None) -> dict[str, Any]:
        """The fields of NodePublishVolume."""
        return {
            "volume_id": volume,
            "staging_target_path": str(self.staging(volume)),
            "target_path": str(path),
            "volume_capability": how or capability(),
        }

    def inline(self, volume: str, pod: str = "pod", /, *, group: str = "", **attributes: str) -> Path:
        """NodePublishVolume of a volume that a Pod has inline."""
        path = self.target(pod, volume)
        self.plugin.call("NodePublishVolume", **self.inline_publication(volume, path, group, **attributes))
        return path

    @staticmethod
    def inline_publication(volume: str, path: Path, group: str = "", /, **attributes: str) -> dict[str, Any]:
        """The fields of that."""
        return {
            "volume_id": volume,
            "target_path": str(path),
            "volume_capability": capability(Mode.SINGLE_NODE_WRITER, volume_mount_group=group),
            "volume_context": {"csi.storage.k8s.io/ephemeral": "true", **attributes},
        }

    def unpublish(self, volume: str, pod: str = "pod") -> None:
        """NodeUnpublishVolume."""
        self.plugin.call("NodeUnpublishVolume", volume_id=volume, target_path=str(self.target(pod, volume)))

    def unstage(self, volume: str) -> None:
        """NodeUnstageVolume; a kubelet does not call it while the volume is mounted somewhere else, too."""
        assert not references(self.staging(volume))
        self.plugin.call("NodeUnstageVolume", volume_id=volume, staging_target_path=str(self.staging(volume)))

    def close(self) -> None:
        """Close the connection."""
        self.plugin.close()


__all__ = ["MIB", "Kubelet", "Mode", "Plugin", "capability", "methods"]
