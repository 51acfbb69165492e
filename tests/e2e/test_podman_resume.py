"""``fusevol resume``: what a reboot has ended runs again, on its volumes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusevol.transport import mount
from tests.e2e.test_podman_run import FOREVER
from tests.support.agent import Agent
from tests.support.podman import Podman
from tests.support.polling import eventually
from tests.support.processes import alive

pytestmark = [pytest.mark.root, pytest.mark.podman]

_WHERE = [{"name": "v", "mountPath": "/v"}]
_INIT = [{"name": "i", "image": "busybox", "command": ["sh", "-c", "echo init >> /v/log"], "volumeMounts": _WHERE}]
_CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}


def _pod(name: str, policy: str, *scripts: str, claim: str = "data", **spec: Any) -> dict[str, Any]:
    containers = [
        {
            "name": f"c{number}",
            "image": "busybox",
            "command": ["sh", "-c", script],
            "volumeMounts": _WHERE,
        }
        for number, script in enumerate(scripts)
    ]
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
    spec = {"containers": containers, "restartPolicy": policy, "volumes": volumes, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _run(agent: Agent, *pods: dict[str, Any]) -> None:
    for pod in pods:
        file = agent.directory / "pod.yaml"
        file.write_text(yaml.safe_dump(pod))
        agent.ok("run", "-d", "-f", str(file))


def _claims(agent: Agent, *names: str) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": _CLAIM}
    agent.apply(yaml.safe_dump_all([{**claim, "metadata": {"name": name}} for name in names]))


def _end_of_machine(agent: Agent, podman: Podman) -> None:
    """No process of containers, watchers, agent and servers is left, nothing is mounted, and /run is empty."""
    place = agent.run_dir / "supervisors"
    for lock in place.glob("*.lock"):
        watcher = int(lock.read_text().split()[0])
        os.kill(watcher, signal.SIGKILL)
        eventually(lambda: not alive(watcher), what="the watcher has ended")  # noqa: B023 - called at once
    shutil.rmtree(place)
    for found in [podman.inspect(name) for name in podman.names()]:
        state = found["State"]
        # who would tell podman of a container's end first
        for pid in (int(state["ConmonPid"]), int(state["Pid"])) if state["Running"] else ():
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not alive(pid), what="it has ended")  # noqa: B023
        for group in Path("/sys/fs/cgroup").glob(f"**/libpod_parent/libpod-{found['Id']}"):
            group.rmdir()
        shutil.rmtree(Path("/run") / found["OCIRuntime"] / found["Id"], ignore_errors=True)
    agent.power_off()
    for left in reversed(mount.below(podman.directory)):  # each container's /dev/shm
        mount.unmount(left.mountpoint, lazy=True)
    for memory in ("tmp", "run"):  # podman finds out by what is missing there that the machine was started again
        shutil.rmtree(podman.directory / memory)


def test_only_the_watcher_was_lost(pod_agent: Agent, podman: Podman) -> None:
    """The containers that run go on, nothing is initialised anew, and the Pod is watched again."""
    _claims(pod_agent, "data")
    _run(pod_agent, _pod("p", "Always", FOREVER, initContainers=_INIT))
    before = podman.pid("p-c0")
    (lock,) = (pod_agent.run_dir / "supervisors").glob("*.lock")
    watcher = int(lock.read_text().split()[0])
    os.kill(watcher, signal.SIGKILL)
    eventually(lambda: not alive(watcher), what="the watcher has ended")
    pod_agent.ok("resume")
    after, log = podman.pid("p-c0"), podman.exec("p-c0", "cat /v/log")
    podman.kill("p-c0")
    eventually(lambda: podman.restarted("p-c0", before), what="it is watched")

    assert after == before
    assert log == "init\n"


def _running(podman: Podman) -> list[str]:
    return [name for name in podman.names() if podman.inspect(name)["State"]["Running"]]


def test_after_the_end_of_the_machine(pod_agent: Agent, podman: Podman) -> None:
    """What the restartPolicy of each Pod says runs again, finds its data and is watched; what has ended stays so."""
    _claims(pod_agent, "data", "other", "third")
    _run(
        pod_agent,
        _pod("always", "Always", f"echo main >> /v/log; {FOREVER}", initContainers=_INIT),
        _pod("failure", "OnFailure", "exit 0", FOREVER, claim="other"),
        _pod("never", "Never", FOREVER, claim="third"),
    )
    eventually(lambda: "failure-c0" not in _running(podman), what="it ends")
    eventually(lambda: "Completed" in str(pod_agent.get("pod", "failure")["status"]), what="the agent was told")
    _end_of_machine(pod_agent, podman)
    nothing = _running(podman)
    pod_agent.start()
    said = pod_agent.ok("resume")
    running = _running(podman)
    log = podman.exec("always-c0", "cat /v/log")
    again = pod_agent.ok("resume")
    old = podman.kill("always-c0")
    eventually(lambda: podman.restarted("always-c0", old), what="it is watched")

    assert nothing == []
    assert sorted(said.split()) == running == ["always-c0", "failure-c1"]
    assert log == "init\nmain\n" * 2
    assert again == ""


@pytest.mark.expect_log("cannot be mounted", "MountVolume")
def test_a_volume_that_does_not_come_back(pod_agent: Agent, podman: Podman) -> None:
    """No container starts on the directory beneath a mount that is missing; the others do, and one says why."""
    _claims(pod_agent, "data", "other")
    _run(pod_agent, _pod("lame", "Always", FOREVER), _pod("sound", "Always", FOREVER, claim="other"))
    volume = pod_agent.pool / "volumes" / pod_agent.get("pvc", "data")["spec"]["volumeName"]
    _end_of_machine(pod_agent, podman)
    hidden = volume.rename(pod_agent.directory / "hidden")
    pod_agent.start()
    done = pod_agent.cli("resume", "--timeout", "1s")
    running = _running(podman)
    hidden.rename(volume)
    pod_agent.ok("resume", "--timeout", "30s")

    assert done.returncode == 1
    assert done.stderr.startswith('Error: The Pod "lame" in namespace default does not run: ')
    assert running == ["sound-c0"]
    assert _running(podman) == ["lame-c0", "sound-c0"]
