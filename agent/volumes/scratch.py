"""Volumes that begin empty and end with their Pod: emptyDir, and inline csi of the driver fusevol.io. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from agent.config import DRIVER
from agent.controllers.provisioning import PARAMETERS, read_parameters
from agent.volumes import emptydir, hugepages, memory
from agent.volumes.attachments import Attachment, AttachmentKind
from agent.volumes.wanted import Context, Wanted, group_of, owner, uid_of
from fusevol import quantity
from fusevol.errors import InvalidError
from fusevol.pool import VolumeRequest

Obj = dict[str, Any]

ATTRIBUTES: Final = ("kind", "size", *sorted(PARAMETERS))
"""Those of the CSI driver (agent.csi.inline): what works here works there."""
_RESERVED: Final = "csi.storage.k8s.io/"


def volume_id(pod_uid: str, name: str) -> str:
    """The id of a Pod's volume; the same one at every try."""
    return f"{pod_uid}.{name}"


def empty_dir(pod: Obj, name: str, source: Obj, context: Context) -> Wanted:
    """An ``emptyDir``. Raises :class:`InvalidError`."""
    emptydir.check_medium(source)
    target = str(context.volumes(pod) / "kubernetes.io~empty-dir" / name)
    group = group_of(pod, always=True)
    medium = str(source.get("medium") or "")
    if medium:
        gid = group.gid if group else None
        if medium == emptydir.MEMORY:
            limit = memory.size(pod, emptydir.size_of(source), context.node)
            mode = int(source.get("mode", emptydir.MEMORY_MODE))
            options = memory.options(limit, mode=mode, gid=gid)
        else:
            mode = int(source.get("mode", hugepages.MODE))
            size = emptydir.size_of(source)
            options = hugepages.options(pod, medium, size, mode=mode, gid=gid, node=context.node)
        uid = uid_of(pod)
        row = Attachment(target=target, kind="emptyDir", medium="Memory", options=options, pod=uid, user=uid)
        return Wanted(name, attachment=context.existing.get(target, row), source=target)
    request = emptydir.request(volume_id(uid_of(pod), name), source, owner(pod))
    return made(pod, name, "emptyDir", target, context.pool, request, context)


def made(
    pod: Obj, name: str, kind: AttachmentKind, target: str, pool: str, request: VolumeRequest, context: Context
) -> Wanted:
    """A volume that is made for this Pod, and ends with it."""
    uid = uid_of(pod)
    row = Attachment(target=target, kind=kind, pool=pool, volume=request.id, pod=uid, user=uid, owned=True)
    return Wanted(
        name,
        request=request,
        attachment=context.existing.get(target, row),
        source=target,
        group=group_of(pod, always=True),
    )


def csi(pod: Obj, name: str, source: Obj, context: Context) -> Wanted:
    """An inline ``csi`` volume, at most as large as its attribute ``size`` says. Raises :class:`InvalidError`."""
    driver = str(source.get("driver") or "")
    if driver != DRIVER:
        raise InvalidError(f"driver name {driver} not found in the list of registered CSI drivers: only {DRIVER} is.")
    attributes = {k: str(v) for k, v in (source.get("volumeAttributes") or {}).items() if not k.startswith(_RESERVED)}
    if attributes.get("kind", "emptyDir") != "emptyDir":
        raise InvalidError(
            f"an inline volume of kind {attributes['kind']} is for clusters: use a hostPath volume here."
        )
    unknown = sorted(set(attributes) - set(ATTRIBUTES))
    if unknown:
        raise InvalidError(f'there is no volume attribute "{unknown[0]}": the attributes are {", ".join(ATTRIBUTES)}.')
    read = read_parameters({k: v for k, v in attributes.items() if k not in {"kind", "size"}}, "the inline volume")
    request = VolumeRequest(
        id=volume_id(uid_of(pod), name),
        capacity_bytes=_size(attributes),
        inode_limit=read.inodes,
        enforced=read.enforced,
        owner=owner(pod),
        mode=read.mode,
        labels={"kind": "csi"},
    )
    target = str(context.volumes(pod) / "kubernetes.io~csi" / name / "mount")
    found = made(pod, name, "csi", target, attributes.get("pool") or context.pool, request, context)
    return dataclasses.replace(found, read_only=bool(source.get("readOnly")))


def _size(attributes: dict[str, str]) -> int | None:
    text = attributes.get("size")
    if text is None:
        return None
    count = quantity.parse(text)
    if count <= 0:
        raise InvalidError(f'the volume attribute size is "{text}": it must be more than zero.')
    return count


def leftovers(pod: Obj) -> list[str]:
    """Ids of the volumes that may have been made for the Pod, attached or not."""
    uid = uid_of(pod)
    kinds = {"emptyDir", "csi", "flexVolume"}
    return [volume_id(uid, str(v["name"])) for v in pod["spec"].get("volumes") or [] if kinds & set(v)]
