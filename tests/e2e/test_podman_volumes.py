"""Real containers on real volumes: what survives what, and that quotas hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.agent import Agent
from tests.support.podman import Podman
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.podman]

FOREVER = ["sh", "-c", "trap exit TERM; while :; do sleep 0.1; done"]


def claim(name: str, size: str) -> dict[str, Any]:
    """A claim in the shape of the seed's."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }


def container(name: str, *mounts: tuple[str, str], command: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """A container that mounts ``(volume, path)`` pairs."""
    return {
        "name": name,
        "image": "ubuntu",
        "command": command or FOREVER,
        "volumeMounts": [{"name": v, "mountPath": p} for v, p in mounts],
        **fields,
    }


def pod(name: str, containers: list[dict[str, Any]], volumes: dict[str, Any], policy: str = "Never") -> dict[str, Any]:
    """A Pod with *volumes* (name to source)."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "containers": containers,
            "volumes": [{"name": n, **source} for n, source in volumes.items()],
            "restartPolicy": policy,
        },
    }


def run(agent: Agent, *objects: dict[str, Any], detach: bool = True) -> str:
    """``fusevol run`` of a file with these objects; what it prints."""
    file = agent.directory / "pod.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    return agent.ok("run", *(["-d"] if detach else []), "-f", str(file))


DATA = {"data": {"persistentVolumeClaim": {"claimName": "data"}}, "scratch": {"emptyDir": {}}}


def test_killed_container_finds_its_data(pod_agent: Agent, podman: Podman) -> None:
    """A container whose process is killed is started again and finds what it had written, in emptyDir and claim."""
    both = [container("c", ("data", "/data"), ("scratch", "/scratch"))]
    run(pod_agent, claim("data", "64Mi"), pod("web", both, DATA, "Always"))
    podman.exec("web-c", "echo kept > /data/f; echo here > /scratch/f")
    killed = podman.kill("web-c")
    eventually(lambda: podman.restarted("web-c", killed), 20, what="podman restarts the container", interval=0.2)

    assert podman.exec("web-c", "cat /data/f /scratch/f") == "kept\nhere\n"


def test_two_containers_share_an_emptydir(pod_agent: Agent, podman: Podman) -> None:
    """What one container writes into an emptyDir, the other reads at once, each at its own path."""
    run(pod_agent, pod("two", [container("a", ("s", "/a")), container("b", ("s", "/b"))], {"s": {"emptyDir": {}}}))
    podman.exec("two-a", "echo shared > /a/f")

    assert podman.exec("two-b", "cat /b/f") == "shared\n"


def test_pod_recreated(pod_agent: Agent, podman: Podman) -> None:
    """A Pod that is deleted and created again finds its claim's data and an empty emptyDir."""
    objects = (claim("data", "64Mi"), pod("web", [container("c", ("data", "/data"), ("scratch", "/scratch"))], DATA))
    run(pod_agent, *objects)
    podman.exec("web-c", "echo kept > /data/f; echo gone > /scratch/f")
    pod_agent.ok("delete", "pod", "web", "--now")
    assert podman.names() == []
    run(pod_agent, *objects)

    assert podman.exec("web-c", "cat /data/f; ls -A /scratch") == "kept\n"


def test_run_again_keeps_the_pod(pod_agent: Agent, podman: Podman) -> None:
    """The same file run again is the same Pod: an ended container is started again, its emptyDir is kept."""
    words = ["sh", "-c", "date +%s%N >> /s/f; wc -l < /s/f"]
    one = pod("again", [container("c", ("s", "/s"), command=words)], {"s": {"emptyDir": {}}})
    first = run(pod_agent, one, detach=False)
    second = run(pod_agent, one, detach=False)

    assert (first, second) == ("1\n", "2\n")


def test_hostpath_survives_the_pod(pod_agent: Agent, podman: Podman, workdir: Path) -> None:
    """The seed's first Pod: a hostPath without a type, not there before; its file is on the host after the Pod."""
    path = workdir / "User" / "cui" / "Desktop"
    touch = container("test-container", ("volume1", "/etc/data"), command=["touch", "/etc/data/test.test.test"])
    run(pod_agent, pod("hostpath-pod", [touch], {"volume1": {"hostPath": {"path": str(path)}}}), detach=False)
    pod_agent.ok("delete", "pod", "hostpath-pod")

    assert [p.name for p in path.iterdir()] == ["test.test.test"]


def test_quota_in_a_container(pod_agent: Agent, podman: Podman) -> None:
    """df says the limit, a write past it fails with ENOSPC at exactly the limit, what was written before is intact."""
    volumes = {"data": {"persistentVolumeClaim": {"claimName": "data"}}}
    run(pod_agent, claim("data", "1Gi"), pod("web", [container("c", ("data", "/data"))], volumes))
    size = podman.exec("web-c", "df -hP /data").splitlines()[-1].split()[1]
    podman.exec("web-c", "echo precious > /data/first; sync")
    failed = podman.run("exec", "web-c", "dd", "if=/dev/zero", "of=/data/big", "bs=1M", check=False)
    used = int(podman.exec("web-c", "du -sk /data").split()[0]) * 1024

    assert size == "1.0G"
    assert re.search("No space left on device", failed.stderr)
    assert used == 1 << 30
    assert podman.exec("web-c", "cat /data/first") == "precious\n"


def test_sizelimit_of_an_emptydir(pod_agent: Agent, podman: Podman) -> None:
    """An emptyDir's sizeLimit is a hard quota."""
    run(pod_agent, pod("web", [container("c", ("s", "/s"))], {"s": {"emptyDir": {"sizeLimit": "1Mi"}}}))
    failed = podman.run("exec", "web-c", "dd", "if=/dev/zero", "of=/s/big", "bs=64k", check=False)

    assert "No space left on device" in failed.stderr
    assert int(podman.exec("web-c", "du -sk /s").split()[0]) == 1024


def test_read_only_mount(pod_agent: Agent, podman: Podman) -> None:
    """A read-only volumeMount can be read but not written, while another container writes."""
    reader = container("r", ("s", "/s"))
    reader["volumeMounts"][0]["readOnly"] = True
    run(pod_agent, pod("web", [container("w", ("s", "/s")), reader], {"s": {"emptyDir": {}}}))
    podman.exec("web-w", "echo x > /s/f")
    failed = podman.run("exec", "web-r", "touch", "/s/g", check=False)

    assert "Read-only file system" in failed.stderr
    assert podman.exec("web-r", "cat /s/f") == "x\n"


def test_agent_killed_while_a_container_writes(pod_agent: Agent, podman: Podman) -> None:
    """kill -9 of the agent and its restart change nothing for a container that writes without a pause."""
    script = "i=0; while echo $i >> /data/log; do i=$((i+1)); done; echo broken > /tmp/broken"
    words = ["sh", "-c", script]
    volumes = {"data": {"persistentVolumeClaim": {"claimName": "data"}}}
    run(pod_agent, claim("data", "64Mi"), pod("web", [container("c", ("data", "/data"), command=words)], volumes))

    def lines() -> int:
        return int(podman.exec("web-c", "wc -l < /data/log"))

    def grows() -> None:
        before = lines()
        eventually(lambda: lines() > before, what="the container writes")

    grows()
    servers, writer = pod_agent.servers(), podman.pid("web-c")
    assert len(servers) == 1
    pod_agent.kill()
    grows()
    pod_agent.start()
    grows()

    assert podman.pid("web-c") == writer
    assert pod_agent.servers() == servers
    assert podman.exec("web-c", "ls /tmp") == ""
    assert podman.exec("web-c", "head -n 1000 /data/log | tail -n 1") == "999\n"
