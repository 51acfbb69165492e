"""What is known of a Pod's containers (``status.containerStatuses``), and the Pod's phase that follows. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fusevol.errors import InvalidError

Obj = dict[str, Any]

_STATES: Final = frozenset({"waiting", "running", "terminated"})
_FIELDS: Final = {
    "name": str, "image": str, "containerID": str, "ready": bool, "started": bool, "restartCount": int,
    "state": dict, "lastState": dict,
}  # fmt: skip
_LISTS: Final = {"containerStatuses": "containers", "initContainerStatuses": "initContainers"}


def enter(pod: Obj, told: Mapping[str, Any]) -> None:
    """Write the lists of statuses that *told* has into *pod*, and its phase. Raises :class:`InvalidError`."""
    new = {}
    for field, of in _LISTS.items():
        names = [c["name"] for c in pod["spec"].get(of) or []]
        new[field] = _checked(field, told.get(field) or [], names)
    status = pod.setdefault("status", {})
    status.update({field: found for field, found in new.items() if found or field in status})
    status["phase"] = phase(pod)


def _checked(field: str, found: object, names: Sequence[str]) -> list[Obj]:
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidError(f"{field} must be a list of statuses.")
    for entry in found:
        for key, value in entry.items():
            kind = _FIELDS.get(str(key))
            if kind is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise InvalidError(f"{field} has a status whose field {key} is unknown or of the wrong type.")
        if entry.get("name") not in names:
            raise InvalidError(f'{field} has a status of "{entry.get("name")}", which is no container of the Pod.')
        for state in (entry.get("state") or {}, entry.get("lastState") or {}):
            if len(state) > 1 or not state.keys() <= _STATES:
                raise InvalidError(f"{field}: a container is waiting, running or terminated, and no two of them.")
    return found


def phase(pod: Obj) -> str:
    """Pending, Running, Succeeded or Failed, by the Pod's restartPolicy and how its containers are."""
    policy = pod["spec"].get("restartPolicy") or "Always"
    known = {entry["name"]: entry.get("state") or {} for entry in pod["status"].get("containerStatuses") or []}
    states = [known.get(c["name"], {}) for c in pod["spec"].get("containers") or []]
    ends = [state["terminated"] for state in states if "terminated" in state]
    over = [end for end in ends if policy == "Never" or (policy == "OnFailure" and end.get("exitCode") == 0)]
    if len(over) == len(states):
        return "Failed" if any(end.get("exitCode") for end in over) else "Succeeded"
    begun = ends or any(entry.get("restartCount") for entry in pod["status"].get("containerStatuses") or [])
    return "Running" if begun or any("running" in state for state in states) else "Pending"


def lost(pod: Obj, boot: dt.datetime, now: str) -> bool:
    """End the containers in *pod*'s status that ran, or waited, before the machine's *boot*; whether there were any.

    As a kubelet says it of a container that it cannot find any more (``ContainerStatusUnknown``, exit code 137).
    """
    found = False
    for field in _LISTS:
        for entry in pod.get("status", {}).get(field) or []:
            state = entry.get("state") or {}
            last = (entry.get("lastState") or {}).get("terminated") or {}
            began = str((state.get("running") or last).get("startedAt") or "")
            seen = began if "running" in state else str(last.get("finishedAt") or "")
            if "terminated" not in state and state and not _since(seen, boot):
                end = {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": began, "finishedAt": now}
                entry.update(state={"terminated": end}, ready=False, started=False)
                found = True
    if found:
        pod["status"]["phase"] = phase(pod)
    return found


def _since(moment: str, boot: dt.datetime) -> bool:
    try:
        return dt.datetime.fromisoformat(moment) >= boot
    except (ValueError, TypeError):  # the latter: it has no zone
        return False
