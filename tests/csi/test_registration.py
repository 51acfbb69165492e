"""A kubelet's plugin watcher: it finds the driver by way of Kubernetes' own node-driver-registrar.

The registrar comes as a container image, and cannot be had as a program from a registry of packages: it is looked for
in ``PATH`` (``csi-node-driver-registrar``, built from its source by hand).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from agent.csi import csi_pb2 as pb
from tests.csi.conftest import CsiAgent
from tests.support.csi import Kubelet
from tests.support.polling import eventually

pytestmark = pytest.mark.root
MANIFESTS = Path(__file__).parents[2] / "manifests"
PROGRAM = "csi-node-driver-registrar"


def _messages() -> dict[str, Any]:
    """The messages of pluginregistration v1 (kubelet/pkg/apis/pluginregistration/v1/api.proto)."""
    field = descriptor_pb2.FieldDescriptorProto
    shapes = {
        "InfoRequest": [],
        "PluginInfo": [("type", 1, False), ("name", 2, False), ("endpoint", 3, False), ("supported_versions", 4, True)],
        "RegistrationStatus": [("plugin_registered", 1, None), ("error", 2, False)],
        "RegistrationStatusResponse": [],
    }
    file = descriptor_pb2.FileDescriptorProto(name="registration.proto", package="pluginregistration", syntax="proto3")
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for label, number, repeated in fields:
            message.field.add(
                name=label,
                number=number,
                type=field.TYPE_BOOL if repeated is None else field.TYPE_STRING,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"pluginregistration.{n}")) for n in shapes}


MESSAGES = _messages()


class Found(NamedTuple):
    """What a plugin says of itself."""

    type: str
    name: str
    endpoint: str
    versions: list[str]


def ask(socket: Path) -> Found:
    """Registration.GetInfo, within the second that a kubelet gives it."""
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        call = channel.unary_unary(
            "/pluginregistration.Registration/GetInfo",
            MESSAGES["InfoRequest"].SerializeToString,
            MESSAGES["PluginInfo"].FromString,
        )
        said = call(MESSAGES["InfoRequest"](), timeout=1, wait_for_ready=True)
    return Found(said.type, said.name, said.endpoint, list(said.supported_versions))


def notify(socket: Path, error: str = "") -> None:
    """Registration.NotifyRegistrationStatus."""
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        call = channel.unary_unary(
            "/pluginregistration.Registration/NotifyRegistrationStatus",
            MESSAGES["RegistrationStatus"].SerializeToString,
            MESSAGES["RegistrationStatusResponse"].FromString,
        )
        status = MESSAGES["RegistrationStatus"](plugin_registered=not error, error=error)
        call(status, timeout=5, wait_for_ready=True)


def arguments() -> list[str]:
    """Those of the DaemonSet's registrar."""
    pod = yaml.safe_load((MANIFESTS / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    (found,) = (c for c in pod["containers"] if c["name"] == "node-driver-registrar")
    return list(found["args"])


class Registrar:
    """The program as the DaemonSet starts it; the container's directories are some of the test's."""

    def __init__(self, agent: CsiAgent) -> None:
        self.registry = agent.directory / "plugins_registry"
        self.registry.mkdir(exist_ok=True)
        self.log = agent.directory / "registrar.log"
        words = [
            argument.replace("=/csi/", f"={agent.directory}/").replace(
                "=/var/lib/kubelet/plugins/fusevol.io/", f"={agent.directory}/"
            )
            for argument in arguments()
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, *words, f"--plugin-registration-path={self.registry}"], stdout=log, stderr=log
            )

    def seen(self) -> Path:
        """The socket that a kubelet's watcher sees."""
        return eventually(lambda: next(iter(self.registry.glob("*.sock")), None), 20.0, what="it registers") or Path()

    def ended(self) -> int:
        """The exit code, once it has ended."""
        return self._process.wait(20)

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        self._process.wait(20)


@pytest.fixture
def registrar(agent: CsiAgent) -> Iterator[Registrar]:
    """A running one."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not in PATH: it comes as a container image, or is built from its source by hand")
    running = Registrar(agent)
    yield running
    running.close()


def test_the_registrar_is_told_where_the_driver_is() -> None:
    """The path that a kubelet gets to hear is the one that the agent listens on."""
    configuration = yaml.safe_load((MANIFESTS / "configmap.yaml").read_text())["data"]["agent.yaml"]
    endpoint = yaml.safe_load(configuration)["csi"]["endpoint"]

    assert f"--kubelet-registration-path={endpoint.removeprefix('unix://')}" in arguments()


def test_registration(agent: CsiAgent, kubelet: Kubelet, registrar: Registrar) -> None:
    """GetInfo, NodeGetInfo at the endpoint that it names, and the good news; again after the agent's restart."""
    found = ask(registrar.seen())
    driver = yaml.safe_load((MANIFESTS / "csidriver.yaml").read_text())["metadata"]["name"]
    for _ in range(2):
        with grpc.insecure_channel(f"unix://{found.endpoint}") as channel:
            call = channel.unary_unary(
                "/csi.v1.Node/NodeGetInfo",
                pb.NodeGetInfoRequest.SerializeToString,
                pb.NodeGetInfoResponse.FromString,
            )
            node = call(pb.NodeGetInfoRequest(), timeout=120, wait_for_ready=True)
        notify(registrar.seen())
        assert node.node_id
        assert node.accessible_topology.segments
        agent.kill()
        agent.start()

    assert found == Found("CSIPlugin", driver, str(agent.directory / "csi.sock"), ["1.0.0"])
    assert ask(registrar.seen()) == found


@pytest.mark.usefixtures("kubelet")
def test_a_registration_that_fails(agent: CsiAgent, registrar: Registrar) -> None:
    """The registrar ends with the reason, is started again, and the driver is there as before."""
    with contextlib.suppress(grpc.RpcError):  # it may end before it has answered
        notify(registrar.seen(), "the node says no")
    assert registrar.ended() != 0
    assert "the node says no" in registrar.log.read_text()
    again = Registrar(agent)
    try:
        notify(again.seen())
        assert ask(again.seen()).endpoint == str(agent.directory / "csi.sock")
    finally:
        again.close()
