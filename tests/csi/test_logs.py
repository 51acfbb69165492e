"""The agent's log for machines: each line an object, which says what it is about."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.csi.conftest import CsiAgent
from tests.support.csi import Kubelet
from tests.support.plugin import Caller
from tests.support.polling import eventually

pytestmark = pytest.mark.root


def lines(agent: CsiAgent) -> list[dict[str, Any]]:
    """What the agent has logged."""
    return [json.loads(line) for line in agent.log.read_text().splitlines()]


def test_every_door_names_its_requests(agent: CsiAgent) -> None:
    """Each call of API, FlexVolume, CSI and plugin is logged under an id of its own, with its volume."""
    agent.stop()
    agent.log.write_text("")
    agent.configure("plugin: true\nlogFormat: json")
    agent.start("--log-level", "debug")
    kubelet, caller = Kubelet(agent), Caller(agent.run_dir / "plugin.sock")
    volume = kubelet.plugin.create("by-csi")
    kubelet.stage(volume)
    caller.create("by-plugin", size="1Mi")
    caller.mount("by-plugin", "a")
    options = '{"fusevol/kind": "emptyDir", "fusevol/size": "1Mi"}'
    agent.ok("flexvolume", "mount", str(agent.directory / "t"), options)
    kubelet.close()
    logged = lines(agent)
    calls = {door: [x for x in logged if x.get("request", "").startswith(f"{door}-") and " call " in x["message"]]
             for door in ("api", "csi", "plugin")}  # fmt: skip

    assert all({"time", "level", "logger", "message"} <= set(one) for one in logged)
    assert {c["volume"] for c in calls["csi"]} >= {"by-csi", volume}
    assert any("POST /v1/ephemeral: 200" in c["message"] for c in calls["api"])
    assert any("Mount of 'by-plugin': OK" in c["message"] for c in calls["plugin"])
    for door in calls.values():
        assert len({c["request"] for c in door}) == len(door) > 0


def test_controllers_name_their_objects(agent: CsiAgent) -> None:
    """What a controller logs says which object it works on."""
    agent.stop()
    agent.log.write_text("")
    agent.configure("logFormat: json")
    agent.start("--log-level", "debug")
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, spec: {storageClassName: none, "
        "accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}"
    )
    key = "PersistentVolumeClaim/default/c"

    assert eventually(lambda: any(one.get("object") == key for one in lines(agent)), what="a record about the claim")
