"""The orders in which a kubelet calls: a Pod replaced, deleted by force; agent and machine restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.csi.refusal import Code
from fusevol.transport import mount
from tests.csi.conftest import CsiAgent
from tests.support import api
from tests.support.csi import MIB, Kubelet, Mode, capability
from tests.support.polling import eventually

pytestmark = pytest.mark.root


def _reboot(agent: CsiAgent, kubelet: Kubelet, down: Callable[[], None] = lambda: None) -> None:
    """What a reboot leaves: no process, no mount, another boot; what is on disk stays. *down* happens meanwhile."""
    agent.power_off()
    shutil.rmtree(agent.run_dir)
    with sqlite3.connect(agent.state / "agent.db") as database:
        for target, body in database.execute("SELECT target, body FROM attachments").fetchall():
            row = json.loads(body)
            assert row["boot"], "what the kubelet asked for ends with the boot"
            row["boot"] = "the-boot-before"
            database.execute("UPDATE attachments SET body = ? WHERE target = ?", (json.dumps(row), target))
    database.close()
    down()
    agent.start()


def test_a_pod_is_replaced_by_another(kubelet: Kubelet, agent: CsiAgent) -> None:
    """The old Pod's target goes before or after the new one's comes, its data stays; at the end nothing is left."""
    volume = kubelet.plugin.create("v")
    kubelet.stage(volume)
    (kubelet.publish(volume, "old") / "f").write_text("x")
    kubelet.publish(volume, "new")
    kubelet.unpublish(volume, "old")
    read = (kubelet.target("new", volume) / "f").read_text()
    kubelet.unpublish(volume, "new")
    kubelet.unstage(volume)
    staging = kubelet.staging(volume)
    kubelet.stage(volume)
    again = (kubelet.publish(volume, "next") / "f").read_text()
    for _ in range(2):
        kubelet.unpublish(volume, "next")
    for _ in range(2):
        kubelet.unstage(volume)
    kubelet.plugin.call("DeleteVolume", volume_id=volume)

    assert read == again == "x"
    assert not kubelet.target("next", volume).exists()
    assert os.listdir(staging) == []
    assert not mount.below(kubelet.root)
    assert not agent.processes()


def test_calls_out_of_order(kubelet: Kubelet) -> None:
    """Undoing what was never done, or was undone by the other call first, is fine; so is the order stage, unstage."""
    volume = kubelet.plugin.create("v")
    kubelet.unpublish(volume)
    kubelet.unstage(volume)
    kubelet.stage(volume)
    target = kubelet.publish(volume)
    kubelet.unstage(volume)  # a kubelet that lost track of the Pod
    (target / "f").write_text("x")
    kubelet.unpublish(volume)
    kubelet.plugin.call("DeleteVolume", volume_id=volume)

    assert not target.exists()


def test_a_busy_target_is_undone_later(kubelet: Kubelet) -> None:
    """While a program works in a target NodeUnpublishVolume is refused, and nothing is lost; later it succeeds."""
    volume = kubelet.plugin.create("v")
    kubelet.stage(volume)
    target = kubelet.publish(volume)
    busy = os.open(target, os.O_RDONLY)
    try:
        code, message = kubelet.plugin.refusal("NodeUnpublishVolume", volume_id=volume, target_path=str(target))
        (target / "f").write_text("x")
    finally:
        os.close(busy)
    kubelet.unpublish(volume)

    assert (code, "in use" in message) == (Code.FAILED_PRECONDITION, True)
    assert not target.exists()


def test_the_agent_is_restarted(kubelet: Kubelet, agent: CsiAgent) -> None:
    """After kill -9 of the agent mounts go on, calls again change nothing, and everything can be undone."""
    volume = kubelet.plugin.create("v")
    kubelet.stage(volume)
    target = kubelet.publish(volume)
    inline = kubelet.inline("csi-1", size="8Mi")
    with (target / "f").open("wb", buffering=0) as file:
        agent.kill()
        file.write(b"x")
        agent.start()
        file.write(b"y")
    before = api.servers(agent)
    kubelet.stage(volume)
    kubelet.publish(volume)
    kubelet.inline("csi-1", size="8Mi")
    after = api.servers(agent)
    read = (target / "f").read_text()
    kubelet.unpublish("csi-1")
    kubelet.unpublish(volume)
    kubelet.unstage(volume)
    kubelet.plugin.call("DeleteVolume", volume_id=volume)

    assert read == "xy"
    assert before == after
    assert len(after) == 2
    assert not inline.exists()
    assert not mount.below(agent.directory)


@pytest.mark.expect_log("ended unexpectedly", "mounted again", "had ended", "The keeper")
def test_the_machine_is_restarted(kubelet: Kubelet, agent: CsiAgent) -> None:
    """After a reboot nothing is mounted before the kubelet asks; then all is there, inline volumes' data too."""
    alone = capability(Mode.SINGLE_NODE_SINGLE_WRITER)
    volume = kubelet.plugin.create("v", volume_capabilities=[alone])
    kubelet.stage(volume, alone)
    (kubelet.publish(volume, how=alone) / "f").write_text("x")
    (kubelet.inline("csi-1", size="8Mi") / "f").write_text("y")
    kubelet.inline("csi-gone", "gone", size="8Mi")
    gone = kubelet.target("gone", "csi-gone")

    def down() -> None:
        shutil.rmtree(gone.parent)  # the kubelet clears away a Pod that was deleted meanwhile

    _reboot(agent, kubelet, down)
    mounted = mount.below(kubelet.root)
    unstaged = kubelet.plugin.refusal(
        "NodePublishVolume", **kubelet.publication(volume, kubelet.target("other", volume), alone)
    )[0]
    kubelet.stage(volume, alone)
    read = (kubelet.publish(volume, "other", alone) / "f").read_text()  # the old Pod was deleted by force
    kept = (kubelet.inline("csi-1", size="8Mi") / "f").read_text()
    volumes = os.listdir(agent.pool / "volumes")
    kubelet.unpublish("csi-1")
    kubelet.unpublish(volume, "other")
    kubelet.unpublish(volume)
    kubelet.unstage(volume)

    assert mounted == []
    assert unstaged == Code.FAILED_PRECONDITION
    assert (read, kept) == ("x", "y")
    assert len(volumes) == 2
    assert os.listdir(agent.pool / "volumes") == ["v"]
    assert not mount.below(agent.directory)


def test_nobody_inherits_the_socket(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Keeper and volume servers, which outlive the agent, hold none of gRPC's; the agent's end removes the file."""
    kubelet.inline("csi-1", size="8Mi")
    keeper = agent.keeper()
    assert keeper is not None
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    ours = {f"socket:[{row[6]}]" for row in rows if row[-1].startswith(f"{agent.directory}/.fusevol/")}
    held = {link for pid in [keeper, *agent.processes()] for link in _descriptors(pid)}
    agents = _descriptors(agent.pid)
    kubelet.unpublish("csi-1")
    agent.stop()

    assert ours & agents
    assert not ours & held
    assert not (agent.directory / "csi.sock").exists()


def _descriptors(pid: int) -> set[str]:
    return {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_a_second_driver_is_refused_the_socket(agent: CsiAgent) -> None:
    """An agent does not take the socket of another one that answers there, and says so in a sentence."""
    directory = agent.directory / "2"
    own = ["--state-dir", f"{directory}/s", "--run-dir", f"{directory}/r", "--socket", f"{directory}/r/agent.sock"]
    other = agent.cli("agent", *own)

    assert other.returncode == 1
    assert "Another CSI driver answers on" in other.stderr


def test_statistics_of_a_volume_whose_server_is_gone(kubelet: Kubelet, agent: CsiAgent) -> None:
    """MiB used are told again by the server that follows a killed one, and the condition is well."""
    volume = kubelet.plugin.create("v", 16 * MIB)
    kubelet.stage(volume)
    target = kubelet.publish(volume)
    (target / "f").write_bytes(bytes(MIB))
    (server,) = api.servers(agent).values()
    os.kill(server, signal.SIGKILL)
    eventually(lambda: set(api.servers(agent).values()) - {server}, 20, what="there is another server")
    stats = kubelet.plugin.call("NodeGetVolumeStats", volume_id=volume, volume_path=str(target))

    assert stats.usage[0].used >= MIB
    assert not stats.volume_condition.abnormal
