"""Pods with real containers: their files, variables and groups; restarts with a back-off; logs, exec, restart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import pods
from tests.support.agent import Agent
from tests.support.podman import Podman
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.podman]
FOREVER = "trap exit TERM; echo up; while :; do sleep 0.1; done"


def container(name: str, script: str, *mounts: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """A container that runs *script* on ``(volume, path)`` pairs."""
    words = ["sh", "-c", script]
    where = [{"name": v, "mountPath": p} for v, p in mounts]
    return {"name": name, "image": "busybox", "command": words, "volumeMounts": where, **fields}


def file_of(agent: Agent, containers: list[dict[str, Any]], volumes: dict[str, Any], **spec: Any) -> str:
    """A file with the Pod `p`; its name."""
    named = [{"name": n, **s} for n, s in volumes.items()]
    body = {"containers": containers, "volumes": named, "restartPolicy": "Never", **spec}
    file = agent.directory / "p.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": body}))
    return str(file)


def watchers(agent: Agent) -> list[str]:
    """What is locked by processes that watch Pods in the background."""
    place = agent.run_dir / "supervisors"
    return sorted(p.name for p in place.glob("*.lock")) if place.exists() else []


def test_files_variables_and_groups(pod_agent: Agent, podman: Podman) -> None:
    """A container that is not root: its group lets it read a Secret of 0400 and write the Pod's volumes; files change
    under it and cannot be written; variables come from objects and the Pod."""
    pods.put(pod_agent, "Secret", "s", stringData={"word": "one"})
    pods.put(pod_agent, "ConfigMap", "c", data={"LEVEL": "info", "x": "y"})
    env = [
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "word"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "BOTH", "value": "$(POD)-$(LEVEL)"},
    ]
    one = container(
        "c", FOREVER, ("s", "/s"), ("m", "/m"), ("e", "/e"), env=env, envFrom=[{"configMapRef": {"name": "c"}}]
    )
    volumes = {
        "s": {"secret": {"secretName": "s", "defaultMode": 0o400}},
        "m": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        "e": {"emptyDir": {}},
    }
    context = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4321}
    pod_agent.ok("run", "-d", "-f", file_of(pod_agent, [one], volumes, securityContext=context))
    told = podman.exec("p-c", "echo $WORD $BOTH $x; id -G; cat /s/word; touch /m/a /e/a; stat -c '%u %g' /m/a /e/a")
    refused = podman.run("exec", "p-c", "touch", "/s/new", check=False).stderr
    full = podman.run("exec", "p-c", "dd", "if=/dev/zero", "of=/m/big", "bs=64k", check=False).stderr
    pods.put(pod_agent, "Secret", "s", stringData={"word": "two"})
    eventually(lambda: podman.exec("p-c", "cat /s/word") == "two", what="the container sees the new value")

    assert told == "one p-info y\n1000 4321\none1000 4321\n1000 4321\n"
    assert "Read-only file system" in refused
    assert "No space left on device" in full
    assert podman.exec("p-c", "echo $WORD") == "one\n"


def test_all_kinds_through_a_restart(pod_agent: Agent, podman: Podman) -> None:
    """A container that is killed and started again: volumes of all kinds, also in memory, have what they had; files
    of objects are the newest, and so is a subPath, which does not change in a container that runs."""
    host = pod_agent.directory / "host"
    host.mkdir()
    pods.put(pod_agent, "ConfigMap", "c", data={"key": "old"})
    template = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "4Mi"}}}}
    volumes = {
        "memory": {"emptyDir": {"medium": "Memory"}},
        "disk": {"emptyDir": {}},
        "own": {"ephemeral": {"volumeClaimTemplate": template}},
        "inline": {"csi": {"driver": "fusevol.io", "volumeAttributes": {"size": "1Mi"}}},
        "host": {"hostPath": {"path": str(host)}},
    }
    kinds = " ".join(f"/{n}" for n in volumes)
    one = container("c", FOREVER, *((n, f"/{n}") for n in volumes), ("config", "/config"))
    one["volumeMounts"].append({"name": "config", "mountPath": "/key", "subPath": "key"})
    volumes["config"] = {"configMap": {"name": "c"}}
    pod_agent.ok("run", "-d", "-f", file_of(pod_agent, [one], volumes, restartPolicy="Always"))
    podman.exec("p-c", f"for d in {kinds}; do echo $d > $d/file; done")
    pods.put(pod_agent, "ConfigMap", "c", data={"key": "new"})
    eventually(lambda: podman.exec("p-c", "cat /config/key") == "new", what="the container sees the new value")
    running = podman.exec("p-c", "cat /key")
    killed = podman.kill("p-c")
    eventually(lambda: podman.restarted("p-c", killed), 20, what="the container is started again", interval=0.2)
    found = podman.exec("p-c", f"for d in {kinds}; do cat $d/file; done; cat /key").split()
    pod_agent.ok("delete", "pod", "p", "--now")

    assert (running, found) == ("old", [*kinds.split(), "new"])
    assert (podman.names(), os.listdir(pod_agent.state / "pods"), watchers(pod_agent)) == ([], [], [])
    assert (host / "file").read_text() == "/host\n"


def test_a_failing_container_waits(pod_agent: Agent, podman: Podman) -> None:
    """In the background too: at once, then after the back-off, again and again; with the Pod the watching ends."""
    failing = container("c", "cut -d' ' -f1 /proc/uptime >> /v/log; exit 1", ("v", "/v"))
    name = file_of(pod_agent, [failing], {"v": {"emptyDir": {}}}, restartPolicy="OnFailure")
    pod_agent.ok("run", "-d", "--max-restart-period", "2s", "-f", name)
    log = pods.ready(pod_agent, "p")["/v"] / "log"
    eventually(lambda: len(log.read_text().split()) >= 4, 30.0, what="it was started four times")
    times = [float(t) for t in log.read_text().split()]
    (lock,) = watchers(pod_agent)
    told = (pod_agent.run_dir / "supervisors" / lock).with_suffix(".log").read_text()
    pod_agent.ok("delete", "pod", "p", "--now")
    count = len(log.read_text().split()) if log.exists() else 0

    assert times[1] - times[0] < 2 <= min(times[2] - times[1], times[3] - times[2])
    assert "back-off 2s restarting failed container=p-c (exit code 1)" in told
    assert (count, watchers(pod_agent)) == (0, [])


def test_init_containers_are_tried_again(pod_agent: Agent, podman: Podman) -> None:
    """An init container that fails is started again, and the others wait for it; a sidecar runs beside them."""
    init = container("i", "echo i >> /v/log; [ $(grep -c i /v/log) = 2 ]", ("v", "/v"))
    sidecar = container("s", "trap exit TERM; echo s >> /v/log; while :; do sleep 0.1; done", ("v", "/v"))
    main = container("m", "until grep -q s /v/log; do sleep 0.1; done; echo m >> /v/log", ("v", "/v"))
    spec = {"initContainers": [init, {**sidecar, "restartPolicy": "Always"}], "restartPolicy": "OnFailure"}
    name = file_of(pod_agent, [main], {"v": {"emptyDir": {}}}, **spec)
    done = pod_agent.cli("run", "--max-restart-period", "1s", "-f", name)
    log = (pods.ready(pod_agent, "p")["/v"] / "log").read_text().split()

    assert (done.returncode, done.stderr) == (0, "")
    assert log == ["i", "i", "s", "m"]
    assert podman.inspect("p-s")["State"]["Running"] is False


def test_logs_and_exec(pod_agent: Agent, podman: Podman) -> None:
    """logs and exec find the container by the Pod's names; output, standard input and exit code are the container's."""
    two = [container("a", f"echo one; echo two; {FOREVER}"), container("b", FOREVER)]
    pod_agent.ok("run", "-d", "-f", file_of(pod_agent, two, {}))
    eventually(lambda: "up" in pod_agent.ok("logs", "p", "-c", "a"), what="the container has begun")
    logs = pod_agent.cli("logs", "pod/p", "--tail", "2")
    said = pod_agent.cli("exec", "p", "-c", "b", "-i", "--", "sh", "-c", "cat; exit 7", text="fed")
    wrong = pod_agent.cli("exec", "p", "-c", "x", "--", "true")

    assert (logs.stdout, logs.stderr) == ("two\nup\n", 'Defaulted container "a" out of: a, b\n')
    assert (said.returncode, said.stdout) == (7, "fed")
    assert wrong.stderr == "Error: container x is not valid for pod p: it has a, b.\n"


def test_restart(pod_agent: Agent, podman: Podman) -> None:
    """restart: other processes on the same volumes, and they are still started again when they end."""
    one = container("c", FOREVER, ("v", "/v"))
    pod_agent.ok("run", "-d", "-f", file_of(pod_agent, [one], {"v": {"emptyDir": {}}}, restartPolicy="Always"))
    podman.exec("p-c", "echo kept > /v/file")
    before = podman.pid("p-c")
    told = pod_agent.ok("restart", "p", "--now")
    after = podman.pid("p-c")
    killed = podman.kill("p-c")
    eventually(lambda: podman.restarted("p-c", killed), 20, what="the container is started again", interval=0.2)

    assert told == "p-c restarted\n"
    assert before != after == killed
    assert podman.exec("p-c", "cat /v/file") == "kept\n"


def test_a_pod_that_was_never_run(pod_agent: Agent, podman: Podman) -> None:
    """One sentence with what to do."""
    pods.pod(pod_agent, "q", {})
    done = pod_agent.cli("logs", "q")

    assert done.stderr == 'Error: The Pod "q" has no container "main" yet: start it with `fusevol run -d -f FILE`.\n'


def test_a_missing_source_of_a_variable(pod_agent: Agent, podman: Podman) -> None:
    """The container is not started, and a sentence says what is missing."""
    env = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]
    done = pod_agent.cli("run", "-f", file_of(pod_agent, [container("c", "true", env=env)], {}))

    assert (done.returncode, done.stderr) == (1, 'Error: The variable A of container "c": secret "none" not found\n')
    assert podman.names() == []


def test_a_watcher_that_is_killed(pod_agent: Agent, podman: Podman) -> None:
    """kill -9 of the process that watches harms no container; running the Pod again starts another one."""
    one = container("c", FOREVER)
    name = file_of(pod_agent, [one], {}, restartPolicy="Always")
    pod_agent.ok("run", "-d", "-f", name)
    running = podman.pid("p-c")
    (lock,) = watchers(pod_agent)
    watcher = int((pod_agent.run_dir / "supervisors" / lock).read_text().split()[0])
    os.kill(watcher, 9)
    eventually(lambda: not Path(f"/proc/{watcher}").exists(), what="the watcher is dead")
    pod_agent.ok("run", "-d", "-f", name)
    same = podman.pid("p-c")
    killed = podman.kill("p-c")
    eventually(lambda: podman.restarted("p-c", killed), 20, what="the container is started again", interval=0.2)

    assert running == same
