"""The Identity service: who this is, what it can do, whether it is well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from google.protobuf.wrappers_pb2 import BoolValue

from agent.config import DRIVER
from agent.csi import csi_pb2 as pb
from agent.csi.refusal import Code, Refused
from fusevol import __version__

_DEVICE: Final = Path("/dev/fuse")


class Identity:
    """For the trio loop."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    async def get_plugin_info(self, _request: pb.GetPluginInfoRequest) -> pb.GetPluginInfoResponse:
        """Name and version."""
        return pb.GetPluginInfoResponse(name=DRIVER, vendor_version=__version__)

    async def get_plugin_capabilities(
        self, _request: pb.GetPluginCapabilitiesRequest
    ) -> pb.GetPluginCapabilitiesResponse:
        """A controller, groups of snapshots, volumes that live on one node, expansion in use."""
        service, expansion = pb.PluginCapability.Service, pb.PluginCapability.VolumeExpansion
        return pb.GetPluginCapabilitiesResponse(
            capabilities=[
                pb.PluginCapability(service=service(type=service.CONTROLLER_SERVICE)),
                pb.PluginCapability(service=service(type=service.GROUP_CONTROLLER_SERVICE)),
                pb.PluginCapability(service=service(type=service.VOLUME_ACCESSIBILITY_CONSTRAINTS)),
                pb.PluginCapability(volume_expansion=expansion(type=expansion.ONLINE)),
            ]
        )

    async def probe(self, _request: pb.ProbeRequest) -> pb.ProbeResponse:
        """Whether the agent is ready. A pool that hangs is no reason to be unhealthy: a restart would not help."""
        if not _DEVICE.is_char_device():
            raise Refused(Code.FAILED_PRECONDITION, f"There is no {_DEVICE}: load the kernel module fuse.")
        return pb.ProbeResponse(ready=BoolValue(value=self._ready()))
