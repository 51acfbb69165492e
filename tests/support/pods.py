"""Pods of tests: made over the API, looked at through the paths that the agent tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusevol.errors import NotFoundError
from tests.support.agent import Agent
from tests.support.polling import eventually

Obj = dict[str, Any]
_PLURALS = {
    "Pod": "pods",
    "Secret": "secrets",
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
}


def path(kind: str, name: str = "") -> str:
    """The path of the objects of *kind* in the namespace default, or of one."""
    return f"/v1/namespaces/default/{_PLURALS[kind]}" + (f"/{name}" if name else "")


def put(agent: Agent, kind: str, name: str, **fields: Any) -> Obj:
    """Create an object or change it to what is given; *fields* may have ``metadata``."""
    metadata = {"name": name, "namespace": "default", **fields.pop("metadata", {})}
    body = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}
    applied: Obj = agent.client.request("POST", "/v1/apply", body)["object"]
    return applied


def find(agent: Agent, kind: str, name: str) -> Obj | None:
    """An object, None if there is none."""
    try:
        found: Obj = agent.client.request("GET", path(kind, name))
    except NotFoundError:
        return None
    return found


def delete(agent: Agent, kind: str, name: str) -> None:
    """Delete an object and wait until it is gone."""
    agent.client.request("DELETE", path(kind, name))
    eventually(lambda: find(agent, kind, name) is None, 20.0, what=f"{kind} {name} is gone")


def pod(agent: Agent, name: str, volumes: Obj, mounts: list[Obj] | None = None, **fields: Any) -> Obj:
    """Create a Pod with *volumes* (name to source); its container ``main`` has *mounts*, or all volumes at /NAME.

    *fields*: ``container`` (more of the container), ``metadata``, and more of the spec.
    """
    mounts = mounts if mounts is not None else [{"name": n, "mountPath": f"/{n}"} for n in volumes]
    container = {"name": "main", "image": "ubuntu", "volumeMounts": mounts, **fields.pop("container", {})}
    metadata = fields.pop("metadata", {})
    spec = {"containers": [container], "volumes": [{"name": n, **s} for n, s in volumes.items()], **fields}
    return put(agent, "Pod", name, metadata=metadata, spec=spec)


def condition(agent: Agent, name: str) -> Obj:
    """The Pod's condition VolumesReady."""
    found = (find(agent, "Pod", name) or {}).get("status", {}).get("conditions") or []
    return next((c for c in found if c["type"] == "VolumesReady"), {})


def ready(agent: Agent, name: str) -> dict[str, Path]:
    """Where each ``mountPath`` of the Pod is on the host, once its volumes are ready."""
    eventually(lambda: condition(agent, name).get("status") == "True", 20.0, what=lambda: str(condition(agent, name)))
    status = (find(agent, "Pod", name) or {})["status"]
    return {m["mountPath"]: Path(m["hostPath"]) for m in status["volumeMounts"]}


def refused(agent: Agent, name: str, words: str) -> str:
    """The message with which the Pod's volumes wait, once it has *words*."""
    eventually(lambda: words in condition(agent, name).get("message", ""), 20.0, what=f"the refusal has {words}")
    return str(condition(agent, name)["message"])


def events(agent: Agent, name: str, kind: str = "Pod") -> list[str]:
    """Reason and message of the events of a Pod, or of an object of another kind."""
    uid = (find(agent, kind, name) or {})["metadata"]["uid"]
    found = agent.client.request("GET", f"/v1/events?regarding={uid}")["items"]
    return [f"{e['reason']}: {e['message']}" for e in found]
