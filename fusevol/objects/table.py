"""Objects as rows, with the columns of kubectl (``k8s.io/kubernetes/pkg/printers/internalversion``) and USED."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence

from fusevol.objects import claim, payload, snapshot, storageclass, volume
from fusevol.objects.kinds import Kind, Obj

Row = list[str]

_SHORT_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
UNKNOWN = "<unknown>"
UNSET = "<unset>"


class _View:
    """What rows need beside the objects."""

    def __init__(self, now: dt.datetime, usage: Mapping[str, int] | None) -> None:
        self._now = now
        self._usage = usage or {}

    @property
    def now(self) -> dt.datetime:
        """When the table is made."""
        return self._now

    def age(self, obj: Obj) -> str:
        """Time since the object was made."""
        return age(obj["metadata"].get("creationTimestamp"), self._now)

    def used(self, obj: Obj) -> str:
        """Bytes in the volume; empty if nobody knows."""
        count = self._usage.get(str(obj["metadata"].get("uid")))
        return "" if count is None else size(count)


def table(
    kind: Kind, objs: Iterable[Obj], *, now: dt.datetime, wide: bool = False, usage: Mapping[str, int] | None = None
) -> tuple[Sequence[str], list[Row]]:
    """Headers and one row per object. *usage*: bytes by the uid of a claim or volume; *now* must know its time zone."""
    columns = _COLUMNS[kind.name]
    view = _View(now, usage)
    chosen = [(header, cell) for header, cell, only_wide in columns if wide or not only_wide]
    return [header for header, _ in chosen], [[cell(obj, view) for _, cell in chosen] for obj in objs]


def age(since: object, now: dt.datetime) -> str:
    """How long ago *since* (RFC 3339) was, as kubectl prints it: ``5s``, ``3m20s``, ``2d3h``; ``<unknown>`` without."""
    try:
        start = dt.datetime.fromisoformat(str(since))
    except ValueError:
        return UNKNOWN
    if start.tzinfo is None:
        start = start.replace(tzinfo=dt.UTC)
    return duration(int((now - start).total_seconds() // 1))


def duration(seconds: int) -> str:
    """A time span with at most two units (``HumanDuration`` of ``k8s.io/apimachinery/pkg/util/duration``)."""
    if seconds < -1:
        return "<invalid>"
    seconds = max(seconds, 0)
    minutes, hours = seconds // 60, seconds // 3600
    days = hours // 24
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"


def size(count: int) -> str:
    """Bytes for a person, with one decimal at most and never more than is there: ``512Mi``, ``1.5Gi``, ``0``."""
    tenths, unit = count * 10, 0
    while tenths >= 10240 and unit < 6:
        tenths, unit = tenths // 1024, unit + 1
    whole, tenth = divmod(tenths, 10)
    return f"{whole}{f'.{tenth}' if tenth else ''}{('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[unit]}"


def short_modes(modes: Iterable[str]) -> str:
    """Access modes as kubectl shortens them: ``RWO,RWX``."""
    return ",".join(_SHORT_MODES.get(m, m) for m in dict.fromkeys(modes))


def _name(obj: Obj, _view: _View) -> str:
    return str(obj["metadata"]["name"])


def _age(obj: Obj, view: _View) -> str:
    return view.age(obj)


def _used(obj: Obj, view: _View) -> str:
    return view.used(obj)


def _status(obj: Obj) -> Obj:
    return obj.get("status") or {}


def _phase(obj: Obj, _view: _View) -> str:
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return str(_status(obj).get("phase") or "Pending")


def _volume_mode(obj: Obj, _view: _View) -> str:
    return str(obj["spec"].get("volumeMode") or UNSET)


# -- StorageClass


def _class_name(obj: Obj, view: _View) -> str:
    return _name(obj, view) + (" (default)" if storageclass.is_default(obj) else "")


# -- PersistentVolume


def _claim_of(obj: Obj, _view: _View) -> str:
    reference = obj["spec"].get("claimRef")
    return f"{reference.get('namespace', '')}/{reference.get('name', '')}" if reference else ""


# -- PersistentVolumeClaim: capacity and modes are those that it was given


def _granted(obj: Obj, _view: _View) -> str:
    return str((_status(obj).get("capacity") or {}).get("storage") or "") if claim.volume_name(obj) else ""


def _granted_modes(obj: Obj, _view: _View) -> str:
    return short_modes(_status(obj).get("accessModes") or ()) if claim.volume_name(obj) else ""


# -- Pod


def _ready(obj: Obj, _view: _View) -> str:
    states = _status(obj).get("containerStatuses") or []
    return f"{sum(s.get('ready') is True for s in states)}/{len(obj['spec'].get('containers') or [])}"


def _pod_status(obj: Obj, view: _View) -> str:
    status = _status(obj)
    told = str(status.get("reason") or "")
    for state in status.get("containerStatuses") or []:
        current = state.get("state") or {}
        for word in ("waiting", "terminated"):
            told = str((current.get(word) or {}).get("reason") or "") or told
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return told or _phase(obj, view)


def _restarts(obj: Obj, _view: _View) -> str:
    return str(sum(int(s.get("restartCount") or 0) for s in _status(obj).get("containerStatuses") or []))


def _node(obj: Obj, _view: _View) -> str:
    return str(obj["spec"].get("nodeName") or "<none>")


def _ip(obj: Obj, _view: _View) -> str:
    return str(_status(obj).get("podIP") or "<none>")


# -- VolumeSnapshot and its content: the columns of the CRDs (``additionalPrinterColumns``)


def _usable(obj: Obj, _view: _View) -> str:
    ready = _status(obj).get("readyToUse")
    return "" if ready is None else str(ready).lower()


def _restore_size(obj: Obj, _view: _View) -> str:
    return str(_status(obj).get("restoreSize") or "")


def _taken(obj: Obj, view: _View) -> str:
    when = _status(obj).get("creationTime")
    return age(when, view.now) if when else ""


_COLUMNS: dict[str, tuple[tuple[str, Callable[[Obj, _View], str], bool], ...]] = {
    "StorageClass": (
        ("NAME", _class_name, False),
        ("PROVISIONER", lambda o, _: str(o.get("provisioner", "")), False),
        ("RECLAIMPOLICY", lambda o, _: str(o.get("reclaimPolicy") or "Delete"), False),
        ("VOLUMEBINDINGMODE", lambda o, _: str(o.get("volumeBindingMode") or UNSET), False),
        ("ALLOWVOLUMEEXPANSION", lambda o, _: "true" if o.get("allowVolumeExpansion") else "false", False),
        ("AGE", _age, False),
    ),
    "PersistentVolume": (
        ("NAME", _name, False),
        ("CAPACITY", lambda o, _: str((o["spec"].get("capacity") or {}).get("storage", "")), False),
        ("ACCESS MODES", lambda o, _: short_modes(volume.access_modes(o)), False),
        ("RECLAIM POLICY", lambda o, _: str(o["spec"].get("persistentVolumeReclaimPolicy", "")), False),
        ("STATUS", _phase, False),
        ("CLAIM", _claim_of, False),
        ("STORAGECLASS", lambda o, _: volume.storage_class(o), False),
        ("REASON", lambda o, _: str(_status(o).get("reason") or ""), False),
        ("AGE", _age, False),
        ("USED", _used, False),
        ("VOLUMEMODE", _volume_mode, True),
    ),
    "PersistentVolumeClaim": (
        ("NAME", _name, False),
        ("STATUS", _phase, False),
        ("VOLUME", lambda o, _: claim.volume_name(o), False),
        ("CAPACITY", _granted, False),
        ("ACCESS MODES", _granted_modes, False),
        ("STORAGECLASS", lambda o, _: claim.storage_class(o) or "", False),
        ("AGE", _age, False),
        ("USED", _used, False),
        ("VOLUMEMODE", _volume_mode, True),
    ),
    "Pod": (
        ("NAME", _name, False),
        ("READY", _ready, False),
        ("STATUS", _pod_status, False),
        ("RESTARTS", _restarts, False),
        ("AGE", _age, False),
        ("IP", _ip, True),
        ("NODE", _node, True),
        ("NOMINATED NODE", lambda o, _: str(_status(o).get("nominatedNodeName") or "<none>"), True),
        ("READINESS GATES", lambda _o, _: "<none>", True),
    ),
    "Secret": (
        ("NAME", _name, False),
        ("TYPE", lambda o, _: str(o.get("type") or ""), False),
        ("DATA", lambda o, _: str(payload.count(o)), False),
        ("AGE", _age, False),
    ),
    "ConfigMap": (
        ("NAME", _name, False),
        ("DATA", lambda o, _: str(payload.count(o)), False),
        ("AGE", _age, False),
    ),
    "VolumeSnapshot": (
        ("NAME", _name, False),
        ("READYTOUSE", _usable, False),
        ("SOURCEPVC", lambda o, _: snapshot.claim_name(o), False),
        ("SOURCESNAPSHOTCONTENT", lambda o, _: snapshot.content_name(o), False),
        ("RESTORESIZE", _restore_size, False),
        ("SNAPSHOTCLASS", lambda o, _: str(o["spec"].get("volumeSnapshotClassName") or ""), False),
        ("SNAPSHOTCONTENT", lambda o, _: str(_status(o).get("boundVolumeSnapshotContentName") or ""), False),
        ("CREATIONTIME", _taken, False),
        ("AGE", _age, False),
    ),
    "VolumeSnapshotClass": (
        ("NAME", _name, False),
        ("DRIVER", lambda o, _: str(o["driver"]), False),
        ("DELETIONPOLICY", lambda o, _: str(o["deletionPolicy"]), False),
        ("AGE", _age, False),
    ),
    "VolumeSnapshotContent": (
        ("NAME", _name, False),
        ("READYTOUSE", _usable, False),
        ("RESTORESIZE", _restore_size, False),
        ("DELETIONPOLICY", lambda o, _: str(o["spec"]["deletionPolicy"]), False),
        ("DRIVER", lambda o, _: str(o["spec"]["driver"]), False),
        ("VOLUMESNAPSHOTCLASS", lambda o, _: str(o["spec"].get("volumeSnapshotClassName") or ""), False),
        ("VOLUMESNAPSHOT", lambda o, _: str(o["spec"]["volumeSnapshotRef"].get("name") or ""), False),
        ("VOLUMESNAPSHOTNAMESPACE", lambda o, _: str(o["spec"]["volumeSnapshotRef"].get("namespace") or ""), False),
        ("AGE", _age, False),
    ),
}
"""Header, cell, and whether only the wide table has it."""
