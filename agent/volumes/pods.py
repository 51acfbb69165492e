"""What an accepted Pod needs mounted, and what stands in the way. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from agent.controllers.matching import mode_of
from agent.volumes import environment, ephemeral, flex, persistent, places, projected, scratch
from agent.volumes import memory as in_memory
from agent.volumes.attachments import Attachment
from agent.volumes.ownership import Group
from agent.volumes.wanted import Context, Problem, Wanted, directory, group_of, uid_of
from fusevol import objects
from fusevol.errors import FusevolError, InvalidError

Obj = dict[str, Any]

READY = "VolumesReady"
FINALIZER = "fusevol.io/pod-volumes"


def claims_of(pod: Obj) -> list[str]:
    """Names of the claims that a Pod's volumes use, also of those that are made for it."""
    flexible = [flex.claim_of(pod, v) for v in pod["spec"].get("volumes") or [] if "flexVolume" in v]
    return [*objects.pod.claims(pod), *(name for name in flexible if name)]


def objects_of(pod: Obj) -> list[tuple[str, str]]:
    """Kind and name of the Secrets and ConfigMaps that a Pod's volumes show."""
    return projected.mentioned(pod)


def is_ready(pod: Obj) -> bool:
    """Whether the volumes have been prepared."""
    return any(c["type"] == READY and c["status"] == "True" for c in (pod.get("status") or {}).get("conditions") or [])


def claims_to_make(pod: Obj, context: Context) -> list[Obj]:
    """The claims that the Pod brings along and that are not there yet."""
    found = []
    for volume in pod["spec"].get("volumes") or []:
        try:
            if "ephemeral" in volume:
                found.append(ephemeral.claim_for(pod, volume))
            elif "flexVolume" in volume and (claim := flex.claim_for(pod, volume["name"], volume["flexVolume"])):
                found.append(claim)
        except InvalidError:
            continue  # the plan tells
    return [claim for claim in found if context.claims(claim["metadata"]["name"])[0] is None]


def plan(pod: Obj, context: Context) -> tuple[list[Wanted], list[Problem]]:
    """What the Pod needs. What is attached already stays as it is, whatever changed since."""
    wanted: list[Wanted] = []
    problems: list[Problem] = []
    for volume in pod["spec"].get("volumes") or []:
        try:
            wanted.append(_volume(pod, volume, context))
        except FusevolError as e:
            problems.append(Problem(volume["name"], str(e)))
    return wanted, problems


def _volume(pod: Obj, volume: Obj, context: Context) -> Wanted:
    name = str(volume["name"])
    if "hostPath" in volume:
        source = volume["hostPath"]
        return _host_path(pod, name, str(source["path"]), str(source.get("type") or ""))
    if "emptyDir" in volume:
        return scratch.empty_dir(pod, name, volume["emptyDir"] or {}, context)
    if "persistentVolumeClaim" in volume:
        return _claim(pod, name, volume["persistentVolumeClaim"], context)
    if "ephemeral" in volume:
        claim_name = ephemeral.claim_name(pod, name)
        ephemeral.check_owner(pod, context.claims(claim_name)[0])
        return _claim(pod, name, {"claimName": claim_name}, context)
    if "csi" in volume:
        return scratch.csi(pod, name, volume["csi"] or {}, context)
    if "flexVolume" in volume:
        return _flex(pod, name, volume["flexVolume"] or {}, context)
    if projected.kind_of(volume):
        return _projected(pod, volume, context)
    kinds = ", ".join(sorted(k for k in volume if k != "name")) or "nothing"
    raise InvalidError(f"volumes of type {kinds} are not supported here: use {', '.join(objects.pod.SERVED)}.")


def _host_path(pod: Obj, name: str, path: str, kind: str, *, read_only: bool = False) -> Wanted:
    return Wanted(name, check=(path, "" if is_ready(pod) else kind), source=path, read_only=read_only)


def _flex(pod: Obj, name: str, source: Obj, context: Context) -> Wanted:
    kind, options = flex.asked(pod, name, source)
    read_only = bool(options.get("readOnly"))
    if kind == "hostPath":
        return _host_path(pod, name, str(options["path"]), str(options.get("type") or ""), read_only=read_only)
    if kind == "emptyDir":
        return dataclasses.replace(flex.empty_dir(pod, name, options, context), read_only=read_only)
    return _claim(pod, name, {"claimName": options["claim"], "readOnly": read_only}, context)


def _projected(pod: Obj, volume: Obj, context: Context) -> Wanted:
    kind, name = projected.kind_of(volume) or "projected", str(volume["name"])
    target = str(projected.target_of(context.volumes(pod), volume))
    group = group_of(pod, always=True)
    options = in_memory.options(
        in_memory.size(pod, None, context.node), mode=projected.root_mode(kind), gid=group.gid if group else None
    )
    uid = uid_of(pod)
    row = context.existing.get(target) or Attachment(
        target=target, kind=kind, medium="Memory", options=options, pod=uid, user=uid
    )
    files, failure = None, ""
    try:
        files = projected.payload(pod, volume, context.find, context.node)
    except FusevolError as e:
        if target not in context.existing:
            raise
        failure = str(e)
    places_inside = tuple(projected.places_inside(pod, name))
    return Wanted(
        name,
        attachment=row,
        source=target,
        read_only=True,
        group=group,
        files=files,
        places=places_inside,
        failure=failure,
    )


def _claim(pod: Obj, name: str, source: Obj, context: Context) -> Wanted:
    target = str(context.volumes(pod) / "kubernetes.io~csi" / name)
    if row := context.existing.get(target):
        return Wanted(name, attachment=row, source=target, read_only=row.read_only, group=_group(pod, row))
    claim_name = str(source["claimName"])
    claim, volume = context.claims(claim_name)
    if claim is not None:
        _check_mode(pod, name, claim)
    behind = persistent.gate(claim, claim_name, volume, context.node)
    assert claim is not None  # noqa: S101 - the gate lets no missing claim through
    read_only = bool(source.get("readOnly")) or behind.read_only
    uid = uid_of(pod)
    row = attachment(target, claim, behind, read_only=read_only, user=uid, pod=uid)
    return Wanted(
        name,
        check=(behind.path, behind.path_type) if behind.path else None,
        attachment=row,
        source=target,
        read_only=read_only,
        claim=claim,
        group=_group(pod, row),
    )


def _check_mode(pod: Obj, name: str, claim: Obj) -> None:
    """Raises :class:`InvalidError`, in kubelet's words, unless containers use volume *name* as what it is (4.17)."""
    mode = mode_of(claim)
    other = "volumeMounts" if mode == "Block" else "volumeDevices"
    containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    if any(use["name"] == name for c in containers for use in c.get(other) or []):
        raise InvalidError(f"volume {name} has volumeMode {mode}, but is specified in {other}")


def _group(pod: Obj, row: Attachment) -> Group | None:
    """The group that a claim's volume is given to: none if that cannot be or may not be."""
    return None if row.read_only or not row.managed else group_of(pod)


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
        alone=behind.alone,
        transport=behind.transport,
        passthrough=behind.passthrough,
        namespace=str(claim["metadata"].get("namespace") or "default"),
        claim=str(claim["metadata"]["name"]),
        claim_uid=str(claim["metadata"]["uid"]),
        user=user,
        pod=pod,
        managed=behind.managed,
    )


def container_mounts(
    pod: Obj, wanted: Mapping[str, Wanted], context: Context
) -> tuple[list[Obj], list[tuple[str, Attachment]], list[Problem]]:
    """``status.volumeMounts``, the attachments (with their volumes' names) that parts need, and what is wrong."""
    shown: list[Obj] = []
    parts: list[tuple[str, Attachment]] = []
    problems: list[Problem] = []
    for container in objects.pod.containers(pod):
        for index, request in enumerate(container.get("volumeMounts") or []):
            volume = wanted.get(request["name"])
            if volume is None:
                continue
            entry = {
                "container": container["name"],
                "name": volume.name,
                "hostPath": volume.source,
                "mountPath": request["mountPath"],
                "readOnly": bool(request.get("readOnly")) or volume.read_only,
            }
            try:
                part, more = _part(pod, container, index, request, volume, context)
            except FusevolError as e:
                problems.append(Problem(volume.name, str(e)))
                continue
            if part is not None:
                parts.append((volume.name, part))
                entry |= {"hostPath": part.target, **more}
            shown.append(entry)
    return shown, parts, problems


def _part(
    pod: Obj, container: Obj, index: int, request: Obj, volume: Wanted, context: Context
) -> tuple[Attachment | None, Obj]:
    """The attachment that a mount needs that is not just the whole volume, and what the status says of it."""
    if request.get("bindMountOptions"):
        raise InvalidError("bindMountOptions are not served here: leave them out.")
    recursive = request.get("recursiveReadOnly") in {"Enabled", "IfPossible"}
    place = directory(context.root, pod) / "volume-subpaths" / volume.name / str(container["name"]) / str(index)
    known = context.existing.get(str(place))
    sub_path = known.sub_path if known is not None else _sub_path(pod, container, request, context)
    if not sub_path and not recursive:
        return None, {}
    more = {**({"subPath": sub_path} if sub_path else {}), **({"recursiveReadOnly": "Enabled"} if recursive else {})}
    if known is not None:
        return known, more
    whole = volume.attachment or Attachment(target="", kind="hostPath", path=volume.source, user=uid_of(pod))
    path = whole.path if not whole.medium else whole.target
    return (
        dataclasses.replace(
            whole,
            target=str(place),
            path=volume.source if recursive else path,
            sub_path=sub_path,
            read_only=recursive or volume.read_only,
            recursive=recursive,
            options="",
            pod=uid_of(pod),
            created=False,
            prepared=False,
        ),
        more,
    )


def _sub_path(pod: Obj, container: Obj, request: Obj, context: Context) -> str:
    """The part of a volume that a container wants. Raises :class:`InvalidError` for one outside of it."""
    wanted = str(request.get("subPath") or "")
    if expression := str(request.get("subPathExpr") or ""):
        variables = environment.of(pod, container, context.find, context.node)
        wanted = environment.expand_path(expression, variables)
    places.check_sub_path(wanted)
    return wanted
