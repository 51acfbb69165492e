"""What tests ask of an agent over its API: faster than the command line, which has tests of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusevol.errors import NotFoundError
from tests.support.agent import Agent
from tests.support.polling import eventually

Obj = dict[str, Any]


def path(kind: str, name: str = "") -> str:
    """The path of ``pvc``, ``pv`` or ``pod`` objects, or of the one with *name*."""
    plural = {"pvc": "persistentvolumeclaims", "pv": "persistentvolumes", "pod": "pods"}[kind]
    return "/".join(["/v1", *(["namespaces/default"] if kind != "pv" else []), plural, *([name] if name else [])])


def find(agent: Agent, kind: str, name: str) -> Obj | None:
    """An object, None if there is none."""
    try:
        found: Obj = agent.client.request("GET", path(kind, name))
    except NotFoundError:
        return None
    return found


def everything(agent: Agent, kind: str) -> list[Obj]:
    """All objects of a kind."""
    found: list[Obj] = agent.client.request("GET", path(kind))["items"]
    return found


def delete(agent: Agent, kind: str, name: str) -> None:
    """Delete an object; one that is gone already is fine."""
    try:
        agent.client.request("DELETE", path(kind, name))
    except NotFoundError:
        return


def claim(name: str, size: str = "1Gi", **spec: Any) -> Obj:
    """A claim, ReadWriteOnce unless *spec* says otherwise."""
    fields = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **spec}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": fields}


def volume(name: str, size: str = "1Gi", **spec: Any) -> Obj:
    """A PersistentVolume without a class, which nobody can write to, unless *spec* says otherwise."""
    fields = {
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": size},
        "storageClassName": "",
        "hostPath": {"path": "/proc/self"},
        **spec,
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": fields}


def apply(agent: Agent, *objects: Obj) -> None:
    """Create objects, or change them to what is given."""
    for obj in objects:
        agent.client.request("POST", "/v1/apply", obj)


def make_claim(agent: Agent, name: str) -> None:
    """Create a claim of 64 MiB."""
    agent.client.request(
        "POST",
        path("pvc"),
        {
            "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}},
        },
    )


def is_bound(agent: Agent, name: str) -> str:
    """The volume of a claim when both are Bound; else an empty text."""
    claim = find(agent, "pvc", name)
    if claim is None or claim.get("status", {}).get("phase") != "Bound":
        return ""
    volume = find(agent, "pv", claim["spec"]["volumeName"])
    return str(claim["spec"]["volumeName"]) if volume and volume["status"]["phase"] == "Bound" else ""


def bound_claim(agent: Agent, name: str) -> str:
    """Create a claim and wait until it is bound; its volume."""
    make_claim(agent, name)
    return eventually(lambda: is_bound(agent, name), 20.0, what=f"claim {name} is bound")


def mount(agent: Agent, claim: str, target: Path, *, read_only: bool = False) -> None:
    """``fusevol mount``."""
    agent.client.request("POST", "/v1/mounts", {"claim": claim, "target": str(target), "readOnly": read_only})


def unmount(agent: Agent, target: Path) -> None:
    """``fusevol umount``."""
    agent.client.request("DELETE", "/v1/mounts", {"target": str(target)})


def call_out(agent: Agent, kind: str, target: Path, **options: str) -> None:
    """``fusevol flexvolume mount``: an ``emptyDir`` or ``hostPath`` at a target."""
    agent.client.request("POST", "/v1/ephemeral", {"kind": kind, "target": str(target), "options": options})


def servers(agent: Agent) -> dict[str, int]:
    """The volume servers that the agent knows: process ids by mount id."""
    return {s["mount_id"]: s["pid"] for s in agent.client.request("GET", "/v1/servers")["items"]}


def make_pod(agent: Agent, name: str, claim: str) -> None:
    """Create a Pod with an emptyDir ``scratch`` and the *claim* as ``data``, of which the container has a part."""
    mounts = [
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "data", "mountPath": "/data", "subPath": "part"},
    ]
    volumes = [
        {"name": "scratch", "emptyDir": {"sizeLimit": "8Mi"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
    ]
    containers = [{"name": "main", "image": "busybox", "volumeMounts": mounts}]
    spec = {"containers": containers, "volumes": volumes}
    agent.client.request("POST", path("pod"), {"metadata": {"name": name}, "spec": spec})


def is_ready(agent: Agent, name: str) -> list[Path]:
    """Where a Pod's volumes are on the host (``scratch``, then the part of ``data``); empty before they are mounted."""
    pod = find(agent, "pod", name)
    status = (pod or {}).get("status", {})
    if not any(c["type"] == "VolumesReady" and c["status"] == "True" for c in status.get("conditions", [])):
        return []
    return [Path(m["hostPath"]) for m in status["volumeMounts"]]
