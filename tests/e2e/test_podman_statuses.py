"""What ``fusevol get pods`` shows of containers that ``fusevol run`` has started."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.test_podman_run import FOREVER, write
from tests.support.agent import Agent
from tests.support.podman import Podman
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.podman]


def _row(agent: Agent) -> list[str]:
    """READY, STATUS and RESTARTS of the Pod."""
    return agent.ok("get", "pod", "p").splitlines()[1].split()[1:4]


def _status(agent: Agent) -> dict[str, Any]:
    found: dict[str, Any] = agent.get("pod", "p")["status"]
    return found


def test_a_container_that_is_killed(pod_agent: Agent, podman: Podman) -> None:
    """It is counted, the end that it had is told, and so it is after the agent was restarted meanwhile."""
    pod_agent.ok("run", "-d", "-f", write(pod_agent, FOREVER, FOREVER, policy="Always"))
    eventually(lambda: _row(pod_agent) == ["2/2", "Running", "0"], what="both run")
    old = podman.kill("p-c0")
    eventually(lambda: _row(pod_agent) == ["2/2", "Running", "1"], what="it is counted")
    (first, second) = _status(pod_agent)["containerStatuses"]
    pod_agent.kill()
    podman.kill("p-c1")
    eventually(lambda: podman.restarted("p-c1", old), what="it is started again without an agent")
    pod_agent.start()
    eventually(lambda: _row(pod_agent) == ["2/2", "Running", "2"], 20.0, what="the agent is told later")

    assert first["lastState"]["terminated"]["exitCode"] == 137
    assert first["lastState"]["terminated"]["reason"] == "Error"
    assert first["state"]["running"]["startedAt"] > first["lastState"]["terminated"]["startedAt"]
    assert first["containerID"] == f"podman://{podman.inspect('p-c0')['Id']}"
    assert first["image"].endswith("busybox:latest")
    assert (second["restartCount"], second["lastState"]) == (0, {})


@pytest.mark.parametrize(
    ("policy", "script", "shown", "phase"),
    [
        ("Never", "exit 3", ["0/1", "Error", "0"], "Failed"),
        ("OnFailure", "exit 0", ["0/1", "Completed", "0"], "Succeeded"),
        ("Always", "exit 0", ["0/1", "CrashLoopBackOff", "1"], "Running"),
    ],
)
def test_a_container_that_ends(pod_agent: Agent, policy: str, script: str, shown: list[str], phase: str) -> None:
    """As the Pod's restartPolicy says, in the background and in the foreground."""
    pod_agent.ok("run", "-d", "-f", write(pod_agent, script, policy=policy))
    eventually(lambda: _row(pod_agent) == shown, 20.0, what=f"it is {shown}, not {_row(pod_agent)}")
    found = _status(pod_agent)["phase"]
    if policy != "Always":
        pod_agent.ok("delete", "pod", "p")
        pod_agent.cli("run", "-f", write(pod_agent, script, policy=policy))
        foreground = _row(pod_agent)

        assert foreground == shown

    assert found == phase


def test_init_containers(pod_agent: Agent) -> None:
    """They have a list of their own."""
    init = [{"name": "i", "image": "busybox", "command": ["true"]}]
    pod_agent.ok("run", "-d", "-f", write(pod_agent, FOREVER, policy="Always", initContainers=init))
    eventually(lambda: _row(pod_agent) == ["1/1", "Running", "0"], what="it runs")
    (found,) = _status(pod_agent)["initContainerStatuses"]

    assert found["state"]["terminated"]["reason"] == "Completed"
