"""Secrets go where they must, and nowhere else: not into logs, events, processes, records, or what commands print."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import grpc
import pytest

from fusevol import objects
from tests.csi.conftest import CsiAgent
from tests.support.csi import MIB, Kubelet
from tests.support.leaks import Leaks
from tests.support.logs import LogCheck
from tests.support.polling import eventually

pytestmark = pytest.mark.root

CSI, FLEX, OBJECT, WRONG = "hush-csi-7Qw", "hush-flex-9Zk", "hush-object-3Vm", "hush-wrong-5Tb"


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> CsiAgent:
    """An agent with a CSI socket that logs all that it can; the test ends it."""
    return CsiAgent(workdir, logs)


def csi(kubelet: Kubelet) -> None:
    """A volume's life, each call with secrets; and calls that fail."""
    secrets = {"password": CSI}
    volume = kubelet.plugin.create("v", secrets=secrets)
    kubelet.plugin.call("ControllerExpandVolume", volume_id=volume, capacity_range={"required_bytes": 32 * MIB},
                        secrets=secrets)  # fmt: skip
    kubelet.stage(volume, secrets=secrets)
    (kubelet.publish(volume, secrets=secrets) / "f").touch()
    snapshot = kubelet.plugin.call("CreateSnapshot", name="s", source_volume_id=volume, secrets=secrets)
    kubelet.plugin.call("DeleteSnapshot", snapshot_id=snapshot.snapshot.snapshot_id, secrets=secrets)
    for method, fields in (
        ("NodeStageVolume", {"volume_id": volume}),
        ("NodePublishVolume", {"volume_id": "none", "target_path": "/t"}),
        ("CreateVolume", {"name": ""}),
        ("DeleteVolume", {"volume_id": volume}),
    ):
        with pytest.raises(grpc.RpcError):
            kubelet.plugin.call(method, **fields, secrets=secrets)


def flexvolume(agent: CsiAgent) -> None:
    """A call-out that succeeds, and one that fails, with secrets as a kubelet gives them."""
    secret = {"kubernetes.io/secret/password": base64.b64encode(FLEX.encode()).decode(), "password": FLEX}
    for options in (
        {"fusevol/kind": "emptyDir", "fusevol/size": "1Mi"},
        {"fusevol/kind": "emptyDir", "fusevol/pool": "no"},
    ):
        agent.ok("flexvolume", "mount", str(agent.directory / "flex"), json.dumps({**options, **secret}))


def secret_objects(agent: CsiAgent) -> list[tuple[str, str]]:
    """A Secret, applied, changed, and used by a Pod; one that is refused; and all that commands print of them."""
    written = "{{apiVersion: v1, kind: Secret, metadata: {{name: s}}, stringData: {{password: {}}}}}"
    agent.apply(written.format(OBJECT))
    changed = agent.cli("diff", "-f", "-", text=written.format(f"{OBJECT}-2"))
    agent.apply(written.format(f"{OBJECT}-2"))
    refused = agent.cli(
        "apply", "-f", "-",
        text=f"{{apiVersion: v1, kind: Secret, metadata: {{name: w}}, data: {{password: '{WRONG} is no base64'}}}}",
    )  # fmt: skip
    agent.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: busybox, "
        "env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: s, key: password}}}], "
        "volumeMounts: [{name: s, mountPath: /s}]}], volumes: [{name: s, secret: {secretName: s}}]}}"
    )
    eventually(lambda: list(agent.state.glob("pods/*/volumes/*/s/password")), what="the Pod has its file")
    kinds = [k.plural for k in objects.KINDS]
    printed = [(f"get {k} -o yaml", agent.ok("get", k, "-A", "-o", "yaml")) for k in kinds if k != "secrets"]
    printed += [
        (f"get {k} -o wide", agent.ok("get", k, "-A", "-o", "wide")) for k in (*kinds, "pools", "mounts", "servers")
    ]
    printed += [(f"describe {k}", agent.ok("describe", k, "-A")) for k in kinds]
    paths = ("/v1/events", "/v1/mounts", "/v1/servers", "/v1/pools", "/v1/usage", "/metrics")
    printed += [(path, json.dumps(agent.client.request("GET", path))) for path in paths]
    return [*printed, ("diff", changed.stdout + changed.stderr), ("apply", refused.stdout + refused.stderr)]


def test_secrets_go_nowhere_else(agent: CsiAgent) -> None:
    """What is given by any door is in agent.db and in the Pod's file if it is an object's, and else nowhere."""
    leaks, objects_own = Leaks(CSI, FLEX, OBJECT, WRONG), Leaks(OBJECT)
    kubelet = Kubelet(agent)
    try:
        with leaks.watched() as seen:
            agent.start("--log-level", "debug")
            csi(kubelet)
            flexvolume(agent)
            printed = secret_objects(agent)
        logged = agent.log.read_text()
        files = leaks.files(agent.directory)
        (password,) = agent.state.glob("pods/*/volumes/*/s/password")
        shown = agent.ok("get", "secret", "s", "-o", "yaml")
        held = password.read_text()
        database = {f for f in files if Path(f).name.startswith("agent.db")}
        kept = b"".join(Path(f).read_bytes() for f in database)
        modes = {Path(f).stat().st_mode & 0o777 for f in database}
    finally:
        kubelet.close()
        agent.close()

    # what must be
    assert held == f"{OBJECT}-2"
    assert objects_own.there(shown)
    assert database
    assert "NodeStageVolume of" in logged
    assert seen  # what a kubelet calls, it calls with the options as arguments
    # what must not
    assert leaks.among(printed) == []
    assert set(files) - database == set()
    assert modes == {0o600}
    assert not Leaks(CSI, FLEX, WRONG).there(kept)
    assert {part for _, part in seen} <= {"cmdline"}
    assert all("flexvolume mount" in words for words, _ in seen), seen
