"""Tells the agent how a Pod's containers are, so that ``fusevol get pods`` shows it as kubectl does."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from agent.client import Client, path_of
from fusevol.errors import FusevolError, NotFoundError

Obj = dict[str, Any]
_AGAIN: Final = 2.0
"""Seconds until an agent that did not answer is told again."""


class Reporter:
    """Of one Pod. Thread-safe; nobody waits for an agent that is not there."""

    def __init__(
        self, client: Client, pod: Mapping[str, str], names: Mapping[str, str], inits: Mapping[str, str]
    ) -> None:
        """*pod*: its namespace, name and uid. *names* and *inits*: of its containers, by podman's names."""
        self._client = client
        self._pod = pod
        self._names = names
        self._inits = inits
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._known: dict[str, Obj] = {}
        try:
            found = client.request("GET", path_of("namespaces", pod["namespace"], "pods", pod["name"]), timeout=5)
        except FusevolError:
            return
        if found["metadata"]["uid"] == pod["uid"]:
            for field in ("containerStatuses", "initContainerStatuses"):
                self._known.update({e["name"]: e for e in found.get("status", {}).get(field) or []})

    def note(self, container: str, found: Obj, waiting: str = "") -> None:
        """*found* is what podman says of *container*; *waiting*: why it is not started again yet."""
        name = self._names.get(container) or self._inits.get(container)
        if name is None:
            return
        with self._lock:
            entry = status_of(name, found, waiting, self._known.get(name) or {})
            if entry != self._known.get(name):
                self._known[name] = entry
                self._send()

    def _again(self) -> None:
        with self._lock:
            self._send()

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lists = {
            field: [self._known[name] for name in names.values() if name in self._known]
            for field, names in (("containerStatuses", self._names), ("initContainerStatuses", self._inits))
        }
        path = path_of("containers", self._pod["namespace"], self._pod["name"])
        try:
            self._client.request("POST", path, {"uid": self._pod["uid"], **lists}, timeout=5)
        except NotFoundError:
            return  # the Pod is gone
        except FusevolError:
            self._timer = threading.Timer(_AGAIN, self._again)
            self._timer.daemon = True
            self._timer.start()


def status_of(name: str, found: Obj, waiting: str, before: Obj) -> Obj:
    """The status of the container *name* that podman has *found*; *before* is what it was. Pure."""
    state = found["State"]
    began, code = str(state.get("StartedAt") or ""), int(state.get("ExitCode") or 0)
    running = state.get("Running") is True
    reason = "OOMKilled" if state.get("OOMKilled") else "Error" if code else "Completed"
    end: Obj = {
        "terminated": {
            "exitCode": code, "reason": reason, "startedAt": began, "finishedAt": str(state.get("FinishedAt") or "")
        }
    }  # fmt: skip
    current: Obj = {"running": {"startedAt": began}} if running else end
    last = before.get("lastState") or {}
    if not running and waiting:
        current, last = {"waiting": {"reason": "CrashLoopBackOff", "message": waiting}}, end
    known = began_of(before)
    again = bool(known) and known != began
    if again and "terminated" in (before.get("state") or {}):
        last = before["state"]
    return {
        "name": name,
        "image": str(found.get("ImageName") or ""),
        "containerID": f"podman://{found.get('Id')}",
        "ready": running,
        "started": running,
        "restartCount": int(before.get("restartCount") or 0) + again,
        "state": current,
        "lastState": last,
    }


def began_of(status: Obj) -> str:
    """When the container was started last, as a status says it."""
    for state in (status.get("state") or {}, status.get("lastState") or {}):
        for kind in ("running", "terminated"):
            if kind in state:
                return str(state[kind].get("startedAt") or "")
    return ""
