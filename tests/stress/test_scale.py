"""Many claims and Pods applied at once: how long until all are served, what the agent needs for it, how fast it tells.

``FUSEVOL_CLAIMS=1000`` (``make scale``) is what is promised; the default is short. The numbers are printed.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusevol.transport import mount
from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually
from tests.support.processes import cpu_seconds, private_bytes

pytestmark = [pytest.mark.root, pytest.mark.slow]

CLAIMS = int(os.environ.get("FUSEVOL_CLAIMS", "100"))
PODS = CLAIMS // 2
REFUSED = range(0, PODS, 25)
"""Pods whose first claim asks for a class that there is not."""
MIB = 1 << 20
Obj = dict[str, Any]


def _claim(number: int) -> Obj:
    spec: Obj = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}}
    if number % 2 == 0 and number // 2 in REFUSED:
        spec["storageClassName"] = "nobodys"
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": f"c{number}"}, "spec": spec}


def _pod(number: int) -> Obj:
    """A Pod with two claims."""
    names = [f"c{2 * number}", f"c{2 * number + 1}"]
    container = {
        "name": "main",
        "image": "busybox",
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in names],
    }
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in names]
    spec = {"containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"}, "spec": spec}


def _ready(pod: Obj) -> Obj:
    """The Pod's condition of its volumes."""
    return next((c for c in pod.get("status", {}).get("conditions", []) if c["type"] == "VolumesReady"), {})


def _peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def _cpu(agent: Agent) -> float:
    """Seconds of CPU that the agent has used, and all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cpu_seconds(agent.pid) + used.ru_utime + used.ru_stime


def _seconds(agent: Agent, *words: str) -> tuple[float, float]:
    """What a command takes, and how much of that is work: on a machine that does nothing else, all of it.

    The least of five: other work on the machine only ever adds to it.
    """
    times, work = [], []
    for _ in range(5):
        began, cpu = time.perf_counter(), _cpu(agent)
        agent.ok(*words)
        times.append(time.perf_counter() - began)
        work.append(_cpu(agent) - cpu)
    return min(times), min(work)


def test_all_at_once(agent: Agent) -> None:
    """Claims and Pods of one file are bound and mounted, or say what they wait for; the agent stays small and quick."""
    file = agent.directory / "all.yaml"
    file.write_text(yaml.safe_dump_all([*map(_claim, range(CLAIMS)), *map(_pod, range(PODS))]))
    small = private_bytes(agent.pid)

    def settled() -> dict[str, Obj]:
        found = {pod["metadata"]["name"]: pod for pod in api.everything(agent, "pod")}
        for number in range(PODS):
            condition = _ready(found[f"p{number}"])
            wanted = "False" if number in REFUSED else "True"
            assert condition.get("status") == wanted, (number, condition)
        return found

    began, before = time.perf_counter(), cpu_seconds(agent.pid)
    agent.ok("apply", "-f", str(file), timeout=120)
    applied = time.perf_counter() - began
    pods = eventually(settled, 30 + 0.1 * CLAIMS, what="all Pods are served or say why not", interval=0.2)
    served = time.perf_counter() - began

    idle = [private_bytes(pid) for pid in agent.processes()[:: max(1, CLAIMS // 50)]]
    claims = {claim["metadata"]["name"]: claim for claim in api.everything(agent, "pvc")}
    phases = {name: claim["status"]["phase"] for name, claim in claims.items()}
    places = [Path(m["hostPath"]) for pod in pods.values() for m in pod["status"].get("volumeMounts", [])]
    for place in places:
        (place / "name").write_text(str(place))
    minors = {found.mountpoint: found.minor for found in mount.below(agent.directory) if found.is_fuse}
    names = ["pvc", "pods", "pv"]
    answers = {what: _seconds(agent, "get", what, "-A") for what in names}
    answers["pvc c1"] = _seconds(agent, "get", "pvc", "c1")
    shown = agent.ok("get", "pvc", "c1")
    used = cpu_seconds(agent.pid) - before
    large, peak = private_bytes(agent.pid), _peak(agent.pid)

    numbers = {
        "claims, Pods": f"{CLAIMS}, {PODS}",
        "applied, s": applied,
        "all served, s": served,
        "CPU of the agent for all this, s": used,
        **{f"get {what}, s": seconds for what, (seconds, _) in answers.items()},
        **{f"get {what}, CPU s": work for what, (_, work) in answers.items()},
        "private memory of the agent, MiB: before": small / MIB,
        "private memory of the agent, MiB: with all": large / MIB,
        "most memory of the agent, shared with others too, MiB": peak / MIB,
        "private memory of an idle volume, MiB": statistics.median(idle) / MIB,
        "private memory of the largest idle volume, MiB": max(idle) / MIB,
    }
    for name, value in numbers.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")

    waiting = {f"c{2 * number}" for number in REFUSED}
    assert {name for name, phase in phases.items() if phase == "Pending"} == waiting
    assert {name for name, phase in phases.items() if phase == "Bound"} == set(phases) - waiting
    for number in REFUSED:
        assert f"c{2 * number}" in _ready(pods[f"p{number}"])["message"]
    assert len(places) == len({minors[str(place)] for place in places}) == 2 * (PODS - len(REFUSED))
    assert "4Ki" in shown
    assert served < 10 + 0.05 * CLAIMS
    assert used < 2 + 0.018 * CLAIMS
    assert max(large, peak) < 100 * MIB
    assert large - small < 10 * MIB + 50 * MIB * CLAIMS / 1000
    for seconds, work in answers.values():
        assert work < 0.3
        assert seconds < 1  # machines may be busy
    assert max(idle) < 4.75 * MIB
