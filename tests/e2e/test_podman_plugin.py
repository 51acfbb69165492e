"""podman's own volumes by the volume plugin: ``podman volume create --driver fusevol``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.transport import mount
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.podman import Podman
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.podman]

FOREVER = ("busybox", "sh", "-c", "trap exit TERM; while :; do sleep 0.1; done")


@pytest.fixture
def plugged(workdir: Path, logs: LogCheck, podman: Podman) -> Iterator[Agent]:
    """A running agent that podman knows as the volume driver ``fusevol``; without volumes afterwards."""
    agent = Agent(workdir, logs, podman.environment)
    before = podman.environment["CONTAINERS_CONF"]
    conf = workdir / "containers.conf"
    plugin = f'[engine.volume_plugins]\nfusevol = "{agent.run_dir / "plugin.sock"}"\n'
    conf.write_text(Path(before).read_text() + plugin)
    (workdir / "agent.yaml").write_text("plugin: true\n")
    podman.environment["CONTAINERS_CONF"] = str(conf)
    try:
        agent.start()
        yield agent
        podman.clear()
        podman.run("volume", "rm", "--all", "--force")
        assert agent.get("mounts")["items"] == []
        assert not mount.below(agent.state / "plugin")
    finally:
        podman.clear()
        podman.run("volume", "rm", "--all", "--force", check=False)
        podman.environment["CONTAINERS_CONF"] = before
        agent.close()


def create(podman: Podman, name: str, *options: str) -> None:
    """``podman volume create``."""
    podman.run("volume", "create", "--driver", "fusevol", *(f"--opt={o}" for o in options), name)


def run(podman: Podman, name: str, *volumes: str) -> None:
    """A container that stays, with *volumes*."""
    podman.run("run", "--detach", "--name", name, *(f"--volume={v}" for v in volumes), *FOREVER)


def test_quota(plugged: Agent, podman: Podman) -> None:
    """A write past the volume's size fails with ENOSPC at exactly that size; what was there before is intact."""
    create(podman, "data", "size=64Mi")
    run(podman, "c", "data:/data")
    podman.exec("c", "echo precious > /data/first; sync")
    failed = podman.run("exec", "c", "dd", "if=/dev/zero", "of=/data/big", "bs=1M", check=False)

    assert "No space left on device" in failed.stderr
    assert int(podman.exec("c", "du -sk /data").split()[0]) == 64 << 10
    assert podman.exec("c", "cat /data/first") == "precious\n"


def test_restart_and_another_container(plugged: Agent, podman: Podman) -> None:
    """Data outlives stops and containers; a stopped container's volume is not mounted."""
    create(podman, "data", "size=8Mi")
    run(podman, "a", "data:/data")
    podman.exec("a", "echo kept > /data/f")
    podman.run("stop", "--time", "1", "a")
    stopped = mount.below(plugged.state / "plugin")
    podman.run("start", "a")
    restarted = podman.exec("a", "cat /data/f")
    podman.run("rm", "--force", "--time", "0", "a")
    run(podman, "b", "data:/elsewhere")

    assert stopped == []
    assert restarted == podman.exec("b", "cat /elsewhere/f") == "kept\n"


def test_two_containers(plugged: Agent, podman: Podman) -> None:
    """Two containers share a volume, which stays mounted until both are gone."""
    create(podman, "data", "size=8Mi")
    run(podman, "a", "data:/a")
    run(podman, "b", "data:/b")
    podman.exec("a", "echo shared > /a/f")
    seen = podman.exec("b", "cat /b/f")
    podman.run("rm", "--force", "--time", "0", "a")

    assert seen == podman.exec("b", "cat /b/f") == "shared\n"
    assert len(plugged.servers()) == 1


def test_inspect_list_and_prune(plugged: Agent, podman: Podman) -> None:
    """podman shows its volumes with their driver and options, and prunes those that no container has."""
    create(podman, "used", "size=8Mi", "mode=0700")
    create(podman, "spare", "size=8Mi")
    run(podman, "c", "used:/data")
    (shown,) = json.loads(podman.run("volume", "inspect", "used").stdout)
    podman.run("volume", "prune", "--force")
    left = podman.run("volume", "ls", "--quiet").stdout.split()
    eventually(lambda: len(list((plugged.pool / "volumes").iterdir())) == 1, what="spare is gone from the pool")

    assert (shown["Name"], shown["Driver"], shown["Options"]) == ("used", "fusevol", {"mode": "0700", "size": "8Mi"})
    assert Path(shown["Mountpoint"]).is_relative_to(plugged.state / "plugin")
    assert left == ["used"]


def test_a_mistake_reaches_the_user(plugged: Agent, podman: Podman) -> None:
    """podman prints the plugin's sentence."""
    failed = podman.run("volume", "create", "--driver", "fusevol", "--opt", "size=64m", "data", check=False)

    assert failed.returncode != 0
    assert "less than 1Mi" in failed.stderr


def test_killed_agent(plugged: Agent, podman: Podman) -> None:
    """kill -9 of the agent does not disturb a container; after its restart podman goes on with all volumes."""
    create(podman, "data", "size=8Mi")
    run(podman, "a", "data:/data")
    servers = plugged.servers()
    plugged.kill()
    podman.exec("a", "echo without > /data/f")
    plugged.start()
    run(podman, "b", "data:/data")
    seen = podman.exec("b", "cat /data/f")
    survived = plugged.servers()
    podman.run("rm", "--force", "--time", "0", "a", "b")
    run(podman, "c", "data:/data")

    assert seen == podman.exec("c", "cat /data/f") == "without\n"
    assert survived == servers


def test_another_agent(plugged: Agent, podman: Podman) -> None:
    """An agent that ended properly and was started again has the same volumes."""
    create(podman, "data", "size=8Mi")
    run(podman, "a", "data:/data")
    podman.exec("a", "echo kept > /data/f")
    assert plugged.stop() == 0
    assert not (plugged.run_dir / "plugin.sock").exists()
    plugged.start()
    podman.run("restart", "--time", "1", "a")

    assert podman.exec("a", "cat /data/f") == "kept\n"
