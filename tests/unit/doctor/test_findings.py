"""What is made of what was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.doctor.findings import Finding, all_needed, as_objects, of_mount, of_pool

_ALL = ["handle-killpriv-v2", "setxattr-ext", "init-ext", "passthrough", "has-resend", "allow-idmap", "request-timeout"]


def _kernel(features: list[str] = _ALL, **other: Any) -> dict[str, Any]:
    stats = {"features": features, "protocol": "7.45"}
    found = {"stats": stats, "io_uring": False, "why_not": {}, "passed_by": True, "waiting": 0, "idmapped": ""}
    return found | other


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {f.name: f for f in findings}


def test_one_transport_is_enough() -> None:
    """Nothing is needed that another way makes up for."""
    broken = {"error": "no"}
    pyfuse3 = {"stats": {}, "waiting": 1}
    both = of_mount({"kernel": _kernel(), "pyfuse3": pyfuse3}, privileged=True)
    one = of_mount({"kernel": _kernel(), "pyfuse3": broken}, privileged=True)
    other = of_mount({"kernel": broken, "pyfuse3": pyfuse3}, privileged=True)
    user = of_mount({"pyfuse3": pyfuse3}, privileged=False)
    none = of_mount({"kernel": broken, "pyfuse3": broken}, privileged=True)

    assert [all_needed(f) for f in (both, one, other, user, none)] == [True, True, True, True, False]
    assert _by_name(one)["transport pyfuse3"].state == "missing"
    assert _by_name(none)["transport kernel"].state == "needed"


def test_what_is_given_up_is_said() -> None:
    """A kernel that offers less: each thing with what is lost and the Linux that has it."""
    found = _by_name(of_mount({"kernel": _kernel(["init-ext"]), "pyfuse3": {}}, privileged=True))

    assert found["passthrough"].state == "missing"
    assert found["passthrough"].found == "without it all file data goes through the volume server"
    assert found["passthrough"].remedy == "Linux 6.9."
    assert found["init-ext"].state == "ok"


@pytest.mark.parametrize(
    ("name", "trial"),
    [
        ("passthrough", _kernel(passed_by=False)),
        ("allow-idmap", _kernel(idmapped="Invalid argument")),
        ("connection control", _kernel(waiting=None)),
    ],
)
def test_what_is_offered_must_also_work(name: str, trial: dict[str, Any]) -> None:
    """The kernel's word is not taken: what failed when it was tried is missing."""
    found = _by_name(of_mount({"kernel": trial, "pyfuse3": {}}, privileged=True))

    assert found[name].state == "missing"
    assert found[name].remedy


def test_io_uring_has_the_remedy_for_its_obstacle() -> None:
    """Why requests did not come over it is told."""
    trial: dict[str, Any] = {"kernel": _kernel(), "pyfuse3": {}, "io_uring": "echo Y > somewhere"}
    trial["kernel"]["why_not"] = {"io_uring": "the parameter is N"}
    used = {"kernel": _kernel(io_uring=True), "pyfuse3": {}}
    missing = _by_name(of_mount(trial, privileged=True))["io_uring"]

    assert missing.found.startswith("the parameter is N: ")
    assert missing.remedy == "echo Y > somewhere"
    assert _by_name(of_mount(used, privileged=True))["io_uring"].state == "ok"


def test_a_pool() -> None:
    """What its filesystem cannot do, and what the ledger then does; one that cannot be written to is no pool."""
    trial: dict[str, Any] = dict.fromkeys(
        ("written", "handles", "xattrs", "trusted xattrs", "acls", "reflink", "unnamed files", "holes"), ""
    )
    trial |= {"type": "nfs", "fsync_ms": 3.5, "quotas": [], "passed_by": False, "handles": "Operation not supported"}
    found = _by_name(of_pool("pool p", Path("/p"), trial))
    full = of_pool("pool p", Path("/p"), trial | {"written": "No space left on device"})

    assert found["file handles"].state == found["quotas"].state == found["passthrough"].state == "missing"
    assert found["reflink"].state == "ok"
    assert all(f.remedy for f in found.values() if f.state != "ok")
    assert [f.state for f in full] == ["needed"]


def test_objects_have_all_fields() -> None:
    """JSON has the same five words for each check."""
    objects = as_objects(of_mount({"kernel": _kernel(), "pyfuse3": {}}, privileged=True))

    assert all(set(o) == {"area", "name", "state", "found", "remedy"} for o in objects)
