"""``fusevol run``: output, exit codes, restarts, Ctrl-C, what it refuses."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.agent import Agent
from tests.support.podman import Podman

pytestmark = [pytest.mark.root, pytest.mark.podman]

FOREVER = "trap exit TERM; echo up; while :; do sleep 0.1; done"


def write(agent: Agent, *scripts: str, policy: str = "Never", **spec: Any) -> str:
    """A file with a Pod `p` whose containers c0, c1, … run *scripts* beside one emptyDir at /s; the file's name."""
    containers = [
        {
            "name": f"c{i}",
            "image": "busybox",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "s", "mountPath": "/s"}],
        }
        for i, script in enumerate(scripts)
    ]
    spec = {"containers": containers, "restartPolicy": policy, "volumes": [{"name": "s", "emptyDir": {}}], **spec}
    file = agent.directory / "p.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}))
    return str(file)


def test_foreground_of_one(pod_agent: Agent) -> None:
    """One container's output is printed as it is, stdout and stderr apart; the exit code is 0 when it succeeds."""
    done = pod_agent.cli("run", "-f", write(pod_agent, "echo out; echo err >&2; echo end"))

    assert (done.returncode, done.stdout, done.stderr) == (0, "out\nend\n", "err\n")


def test_foreground_of_several(pod_agent: Agent) -> None:
    """Lines of several containers carry their name; one that fails makes the exit code 1 with a sentence."""
    done = pod_agent.cli("run", "-f", write(pod_agent, "echo a; exit 3", "echo b"))

    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == ["[c0] a", "[c1] b"]
    assert done.stderr == 'Error: Container "c0" ended with exit code 3; what it printed says why.\n'


def test_on_failure(pod_agent: Agent, podman: Podman) -> None:
    """restartPolicy OnFailure: a failing container is started again until it succeeds, first at once, then after a
    back-off, of which a word is said; and all its output is shown."""
    script = "echo x >> /s/f; n=$(wc -l < /s/f); echo try $n; [ $n = 3 ]"
    done = pod_agent.cli("run", "--max-restart-period", "2s", "-f", write(pod_agent, script, policy="OnFailure"))

    assert (done.returncode, done.stderr) == (0, "back-off 2s restarting failed container=p-c0 (exit code 1)\n")
    assert done.stdout == "try 1\ntry 2\ntry 3\n"


def test_init_containers_run_first(pod_agent: Agent) -> None:
    """Init containers run one after the other before the others start, on the same volumes."""
    init = [
        {
            "name": name,
            "image": "busybox",
            "command": ["sh", "-c", f"echo {name} >> /s/f"],
            "volumeMounts": [{"name": "s", "mountPath": "/s"}],
        }
        for name in ("i0", "i1")
    ]
    done = pod_agent.cli("run", "-f", write(pod_agent, "cat /s/f", initContainers=init))

    assert (done.returncode, done.stdout, done.stderr) == (0, "i0\ni1\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_the_containers(pod_agent: Agent, podman: Podman, number: signal.Signals) -> None:
    """Ctrl-C (or SIGTERM) stops the containers before the command ends; they are not started again."""
    file = write(pod_agent, FOREVER, policy="Always")
    process = subprocess.Popen(
        pod_agent.command("run", "-f", file),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=pod_agent.environment,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()

    assert (process.returncode, err) == (130, "Stopping the containers.\n")
    assert podman.inspect("p-c0")["State"]["Running"] is False


def test_detach_and_delete(pod_agent: Agent, podman: Podman) -> None:
    """-d prints the containers' names and returns; deleting the Pod removes containers, then volumes."""
    out = pod_agent.ok("run", "-d", "-f", write(pod_agent, FOREVER, FOREVER))
    source = pod_agent.get("pod", "p")["status"]["volumeMounts"][0]["hostPath"]
    names = podman.names()
    pod_agent.ok("delete", "pod", "p", "--now")

    assert out.split() == names == ["p-c0", "p-c1"]
    assert podman.names() == []
    assert not Path(source).exists()


def test_remove_when_ended(pod_agent: Agent, podman: Podman) -> None:
    """--rm leaves neither containers nor the Pod behind."""
    pod_agent.ok("run", "--rm", "-f", write(pod_agent, "true"))

    assert podman.names() == []
    assert pod_agent.get("pods")["items"] == []


def test_prepare(pod_agent: Agent, podman: Podman) -> None:
    """--prepare mounts, starts nothing, and prints arguments that a podman run understands."""
    words = pod_agent.ok("run", "--prepare", "-f", write(pod_agent, "true")).split()
    assert podman.names() == []
    podman.run("run", "--rm", *words, "busybox", "touch", "/s/by-hand")

    assert words[0] == "-v"
    assert (Path(words[1].split(":")[0]) / "by-hand").exists()


def test_other_pod_of_that_name(pod_agent: Agent) -> None:
    """A Pod of the same name with another specification is not touched."""
    pod_agent.ok("run", "--prepare", "-f", write(pod_agent, "true"))
    done = pod_agent.cli("run", "-f", write(pod_agent, "false"))

    assert done.returncode == 1
    assert done.stderr.startswith('Error: A Pod "p" with another specification exists: run `fusevol delete pod p')


def test_foreign_container_of_that_name(pod_agent: Agent, podman: Podman) -> None:
    """A container that happens to have the name is somebody's: it is refused, not replaced."""
    podman.run("create", "--name", "p-c0", "busybox", "true")
    done = pod_agent.cli("run", "-f", write(pod_agent, "true"))

    assert done.returncode == 1
    assert 'A container "p-c0" that is not of a Pod exists' in done.stderr
    assert podman.names() == ["p-c0"]


def test_container_that_cannot_start(pod_agent: Agent, podman: Podman) -> None:
    """A command that the image does not have: podman's reason in one sentence, no half container left."""
    file = write(pod_agent, "true")
    Path(file).write_text(Path(file).read_text().replace("- sh\n", "- no-such-program\n"))
    done = pod_agent.cli("run", "-f", file)

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no-such-program" in done.stderr
    assert podman.names() == []


def test_without_podman(pod_agent: Agent) -> None:
    """Without podman: one sentence with the remedy, and no Pod was created."""
    pod_agent.environment["FUSEVOL_PODMAN"] = "no-such-podman --root /x"
    done = pod_agent.cli("run", "-f", write(pod_agent, "true"))

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is not installed: run `apt-get install podman`" in done.stderr
    assert pod_agent.get("pods")["items"] == []
