"""A Pod's phase, and what is refused of its containers' statuses."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from fusevol.errors import InvalidError
from fusevol.objects import containers

Obj = dict[str, Any]
RUNS: Obj = {"running": {"startedAt": "x"}}
WAITS: Obj = {"waiting": {"reason": "CrashLoopBackOff"}}


def ended(code: int) -> Obj:
    """A container that has ended."""
    return {"terminated": {"exitCode": code}}


def pod(policy: str | None = None) -> Obj:
    """A Pod of two containers."""
    spec: Obj = {"containers": [{"name": "a"}, {"name": "b"}]}
    return {"metadata": {"name": "p"}, "spec": {**spec, **({"restartPolicy": policy} if policy else {})}}


@pytest.mark.parametrize(
    ("policy", "states", "phase"),
    [
        (None, [], "Pending"),
        (None, [RUNS], "Running"),
        (None, [ended(0), ended(0)], "Running"),
        (None, [WAITS, WAITS], "Running"),
        ("Never", [ended(0), RUNS], "Running"),
        ("Never", [ended(0), ended(0)], "Succeeded"),
        ("Never", [ended(0), ended(3)], "Failed"),
        ("OnFailure", [ended(0), ended(3)], "Running"),
        ("OnFailure", [ended(0), ended(0)], "Succeeded"),
    ],
)
def test_phase(policy: str | None, states: list[Obj], phase: str) -> None:
    """Who is not started again counts as over; one that is started again, or waits for that, as running."""
    found = pod(policy)
    told = [
        {"name": name, "state": state, "restartCount": int("waiting" in state)}
        for name, state in zip("ab", states, strict=False)
    ]
    containers.enter(found, {"containerStatuses": told})

    assert found["status"]["phase"] == phase
    assert found["status"].get("containerStatuses", []) == told


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"containerStatuses": {"a": 1}}, "must be a list"),
        ({"containerStatuses": ["a"]}, "must be a list"),
        ({"containerStatuses": [{"name": "c"}]}, '"c", which is no container'),
        ({"initContainerStatuses": [{"name": "a"}]}, '"a", which is no container'),
        ({"containerStatuses": [{"name": "a", "restartCount": True}]}, "restartCount is unknown or of the wrong type"),
        ({"containerStatuses": [{"name": "a", "evil": 1}]}, "evil is unknown"),
        ({"containerStatuses": [{"name": "a", "state": {**RUNS, **WAITS}}]}, "no two of them"),
        ({"containerStatuses": [{"name": "a", "lastState": {"gone": {}}}]}, "no two of them"),
    ],
)
def test_what_is_refused(told: Obj, why: str) -> None:
    """And nothing is written then."""
    found = pod()
    with pytest.raises(InvalidError, match=why):
        containers.enter(found, told)

    assert "status" not in found


BOOT = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
OLD, NEW = "2026-05-01T11:59:59.123456789Z", "2026-05-01T12:00:01Z"


@pytest.mark.parametrize(
    ("state", "last", "lost"),
    [
        ({"running": {"startedAt": OLD}}, {}, True),
        ({"running": {"startedAt": NEW}}, {}, False),
        ({"running": {"startedAt": "nonsense"}}, {}, True),
        (WAITS, {"terminated": {"finishedAt": OLD}}, True),
        (WAITS, {"terminated": {"finishedAt": NEW}}, False),
        ({"terminated": {"exitCode": 0, "finishedAt": OLD}}, {}, False),
    ],
)
def test_after_a_reboot(state: Obj, last: Obj, lost: bool) -> None:
    """What ran or waited before it has ended, and nobody knows how; what has ended stays as it is."""
    found = pod("Never")
    told = [{"name": "a", "ready": True, "state": state, "lastState": last}, {"name": "b", "state": ended(0)}]
    containers.enter(found, {"containerStatuses": told})
    changed = containers.lost(found, BOOT, NEW)
    a, b = found["status"]["containerStatuses"]

    assert changed == lost
    assert a["ready"] is not lost
    assert ("ContainerStatusUnknown" in str(a)) == lost
    assert b["state"] == ended(0)
    assert (found["status"]["phase"] == "Failed") == lost
