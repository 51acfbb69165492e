"""What an accepted Pod needs mounted, and what stands in the way. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.volumes import emptydir, persistent, places
from agent.volumes.attachments import Attachment
from fusevol.errors import FusevolError, InvalidError

Obj = dict[str, Any]
Lookup = Callable[[str], "tuple[Obj | None, Obj | None]"]
"""From a claim's name (in the Pod's namespace) to the claim and its volume."""

READY = "VolumesReady"
FINALIZER = "fusevol.io/pod-volumes"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One volume of the Pod: what is checked or made first, and what is attached (nothing for a hostPath)."""

    name: str
    check: tuple[str, str] | None = None
    """Path and type of a hostPath to check."""
    empty: Obj | None = None
    """The emptyDir source of a volume that must exist first."""
    attachment: Attachment | None = None
    source: str = ""
    """Where containers find it on the host."""
    read_only: bool = False
    claim: Obj | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a volume cannot be mounted now."""

    name: str
    message: str
    reason: Literal["FailedMount"] = "FailedMount"


def claims_of(pod: Obj) -> list[str]:
    """Names of the claims that a Pod's volumes name."""
    found = []
    for volume in pod["spec"].get("volumes") or []:
        source = volume.get("persistentVolumeClaim")
        if source:
            found.append(str(source["claimName"]))
    return found


def is_ready(pod: Obj) -> bool:
    """Whether the volumes have been prepared."""
    return any(c["type"] == READY and c["status"] == "True" for c in (pod.get("status") or {}).get("conditions") or [])


def directory(root: Path, pod: Obj) -> Path:
    """The Pod's directory below *root*."""
    return root / str(pod["metadata"]["uid"])


def plan(
    pod: Obj,
    *,
    root: Path,
    pool: str,
    lookup: Lookup,
    existing: Mapping[str, Attachment],
) -> tuple[list[Wanted], list[Problem]]:
    """What the Pod needs. What is attached already (*existing*, by target) stays as it is, whatever changed since."""
    wanted: list[Wanted] = []
    problems: list[Problem] = []
    for volume in pod["spec"].get("volumes") or []:
        try:
            wanted.append(_volume(pod, volume, root=root, pool=pool, lookup=lookup, existing=existing))
        except FusevolError as e:
            problems.append(Problem(volume["name"], str(e)))
    return wanted, problems


def _volume(
    pod: Obj, volume: Obj, *, root: Path, pool: str, lookup: Lookup, existing: Mapping[str, Attachment]
) -> Wanted:
    name, uid = str(volume["name"]), str(pod["metadata"]["uid"])
    volumes = directory(root, pod) / "volumes"
    if "hostPath" in volume:
        source = volume["hostPath"]
        kind = "" if is_ready(pod) else str(source.get("type") or "")
        return Wanted(name, check=(str(source["path"]), kind), source=str(source["path"]))
    if "emptyDir" in volume:
        source = volume["emptyDir"] or {}
        emptydir.check_medium(source)
        target = str(volumes / "kubernetes.io~empty-dir" / name)
        row = existing.get(target) or Attachment(
            target=target,
            kind="emptyDir",
            pool=pool,
            volume=emptydir.volume_id(uid, name),
            pod=uid,
            user=uid,
            owned=True,
        )
        return Wanted(name, empty=source, attachment=row, source=target)
    if "persistentVolumeClaim" in volume:
        source = volume["persistentVolumeClaim"]
        return _claim(pod, name, source, volumes=volumes, lookup=lookup, existing=existing)
    kinds = ", ".join(sorted(k for k in volume if k != "name")) or "nothing"
    raise InvalidError(
        f"volumes of type {kinds} are not supported here: use emptyDir, hostPath or persistentVolumeClaim."
    )


def _claim(
    pod: Obj, name: str, source: Obj, *, volumes: Path, lookup: Lookup, existing: Mapping[str, Attachment]
) -> Wanted:
    uid = str(pod["metadata"]["uid"])
    target = str(volumes / "kubernetes.io~csi" / name)
    if row := existing.get(target):
        return Wanted(name, attachment=row, source=target, read_only=row.read_only)
    claim_name = str(source["claimName"])
    claim, volume = lookup(claim_name)
    behind = persistent.gate(claim, claim_name, volume)
    assert claim is not None  # noqa: S101 - the gate lets no missing claim through
    read_only = bool(source.get("readOnly")) or behind.read_only
    row = attachment(target, claim, behind, read_only=read_only, user=uid, pod=uid)
    return Wanted(
        name,
        check=(behind.path, behind.path_type) if behind.path else None,
        attachment=row,
        source=target,
        read_only=read_only,
        claim=claim,
    )


def attachment(
    target: str, claim: Obj, behind: persistent.Source, *, read_only: bool, user: str, pod: str = ""
) -> Attachment:
    """The attachment of a claim's volume at *target*."""
    return Attachment(
        target=target,
        kind="persistent",
        pool=behind.pool,
        volume=behind.volume,
        path=behind.path,
        read_only=read_only,
        cache=behind.cache,
        transport=behind.transport,
        namespace=str(claim["metadata"].get("namespace") or "default"),
        claim=str(claim["metadata"]["name"]),
        claim_uid=str(claim["metadata"]["uid"]),
        user=user,
        pod=pod,
    )


def container_mounts(
    pod: Obj, wanted: Mapping[str, Wanted], root: Path
) -> tuple[list[Obj], list[tuple[str, Attachment]], list[Problem]]:
    """``status.volumeMounts``, the attachments (with their volumes' names) that subPaths need, and what is wrong."""
    shown: list[Obj] = []
    parts: list[tuple[str, Attachment]] = []
    problems: list[Problem] = []
    for container in [*(pod["spec"].get("initContainers") or []), *(pod["spec"].get("containers") or [])]:
        for index, request in enumerate(container.get("volumeMounts") or []):
            volume = wanted.get(request["name"])
            if volume is None:
                continue
            if request.get("subPathExpr"):
                message = "subPathExpr is not supported here: write the path itself as subPath."
                problems.append(Problem(volume.name, message))
                continue
            entry = {
                "container": container["name"],
                "name": volume.name,
                "hostPath": volume.source,
                "mountPath": request["mountPath"],
                "readOnly": bool(request.get("readOnly")) or volume.read_only,
            }
            if sub_path := str(request.get("subPath") or ""):
                try:
                    places.check_sub_path(sub_path)
                except InvalidError as e:
                    problems.append(Problem(volume.name, str(e)))
                    continue
                target = directory(root, pod) / "volume-subpaths" / volume.name / container["name"] / str(index)
                parts.append((volume.name, _part(pod, volume, sub_path, str(target))))
                entry |= {"hostPath": str(target), "subPath": sub_path}
            shown.append(entry)
    return shown, parts, problems


def _part(pod: Obj, volume: Wanted, sub_path: str, target: str) -> Attachment:
    uid = str(pod["metadata"]["uid"])
    whole = volume.attachment
    if whole is None:
        return Attachment(target=target, kind="hostPath", path=volume.source, sub_path=sub_path, pod=uid, user=uid)
    return Attachment(
        target=target,
        kind=whole.kind,
        pool=whole.pool,
        volume=whole.volume,
        path=whole.path,
        sub_path=sub_path,
        read_only=whole.read_only,
        cache=whole.cache,
        transport=whole.transport,
        namespace=whole.namespace,
        claim=whole.claim,
        claim_uid=whole.claim_uid,
        user=uid,
        pod=uid,
        owned=whole.owned,
    )
