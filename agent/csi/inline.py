"""Volumes that a Pod has inline (CSI ephemeral volumes): an emptyDir with a hard limit, a path of the host by policy.

A kubelet only publishes and unpublishes them. What ``volumeAttributes`` of the Pod may say is read here; whoever writes
Pods writes them, so a host path is only what is below a directory that the configuration names, and never leads out of
it: it is opened beneath that directory, without symbolic links (``agent.volumes.places``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.csi import fields, parameters
from agent.csi.refusal import Code, Refused, invalid
from agent.csi.volumes import INLINE
from agent.volumes import places
from fusevol import quantity
from fusevol.errors import InvalidError
from fusevol.pool import VolumeRequest

EPHEMERAL: Final = f"{parameters.RESERVED}ephemeral"
_POD: Final = {"pod.name": "pod", "pod.namespace": "namespace", "pod.uid": "uid"}
_EMPTY: Final = {"kind", "size", "inodes", "pool", "mode", "quota"}
_HOST: Final = {"kind", "path", "type"}
_TYPES: Final = {
    "": None,
    "Directory": stat.S_ISDIR,
    "DirectoryOrCreate": stat.S_ISDIR,
    "File": stat.S_ISREG,
    "Socket": stat.S_ISSOCK,
    "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}


class HostPath(NamedTuple):
    """A path of the host: an allowed directory, what is beneath it, and of which kind that shall be."""

    root: Path
    inside: str
    """Empty for the directory itself."""
    kind: str


class Empty(NamedTuple):
    """A volume that begins empty and ends with its Pod."""

    pool: str
    """Empty: the preferred one."""
    request: VolumeRequest


def is_inline(context: Mapping[str, str]) -> bool:
    """Whether a NodePublishVolume request is about a volume of this kind."""
    return context.get(EPHEMERAL) == "true"


def read(handle: str, context: Mapping[str, str], allowed: Sequence[Path]) -> Empty | HostPath:
    """What a Pod asks for. Raises INVALID_ARGUMENT, and PERMISSION_DENIED for a path that is not *allowed*."""
    own = {k: v for k, v in context.items() if not k.startswith(parameters.RESERVED)}
    kind = own.get("kind", "emptyDir")
    known = {"emptyDir": _EMPTY, "hostPath": _HOST}.get(kind)
    if known is None:
        raise invalid(f'The attribute kind "{kind}" is not known: write emptyDir or hostPath.')
    unknown = sorted(set(own) - known)
    if unknown:
        raise invalid(
            f"The volume has unknown attributes {', '.join(unknown)}: known for {kind} are {', '.join(sorted(known))}."
        )
    return _host_path(own, allowed) if kind == "hostPath" else _empty(handle, own, context)


def _empty(handle: str, own: Mapping[str, str], context: Mapping[str, str]) -> Empty:
    size = None
    try:
        if "size" in own:
            size = quantity.parse(own["size"])
    except InvalidError as e:
        raise invalid(f"The attribute size: {e.message}") from e
    if size is not None and size < fields.SMALLEST:
        raise invalid(f"The attribute size is less than {fields.SMALLEST} bytes.")
    wanted = parameters.wanted({k: v for k, v in own.items() if k not in {"kind", "size"}}, {})
    owner = {
        word: context[parameters.RESERVED + key] for key, word in _POD.items() if parameters.RESERVED + key in context
    }
    request = VolumeRequest(
        id=parameters.inline_id(handle),
        capacity_bytes=size,
        inode_limit=wanted.inodes,
        enforced=wanted.enforced,
        owner=owner,
        mode=wanted.mode,
        labels={"kind": INLINE, "handle": handle},
    )
    return Empty(wanted.pool, request)


def _host_path(own: Mapping[str, str], allowed: Sequence[Path]) -> HostPath:
    path = Path(fields.absolute(own.get("path", ""), "the attribute path"))
    kind = own.get("type", "")
    if kind not in _TYPES:
        raise invalid(f'The attribute type "{kind}" is not known: known are {", ".join(filter(None, _TYPES))}.')
    # the innermost: nothing but its own name is trusted
    root = max((a for a in allowed if path.is_relative_to(a)), key=lambda a: len(a.parts), default=None)
    if root is None:
        raise Refused(
            Code.PERMISSION_DENIED, f"The configuration of the agent (csi.hostPaths) does not allow the path {path}."
        )
    inside = str(path.relative_to(root))
    return HostPath(root, "" if inside == "." else inside, kind)


def check(wanted: HostPath) -> None:
    """Whether what is there is of the kind that is wanted. Raises; for a thread that may hang."""
    shown = wanted.root / wanted.inside
    try:
        top = os.open(wanted.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = places.open_beneath(top, wanted.inside or ".")
        finally:
            os.close(top)
    except FileNotFoundError as e:
        if wanted.kind == "DirectoryOrCreate":
            return  # made where it is mounted
        raise Refused(Code.FAILED_PRECONDITION, f"hostPath {shown} doesn't exist") from e
    except OSError as e:
        raise Refused(Code.PERMISSION_DENIED, f"hostPath {shown} cannot be opened: {e.strerror}.") from e
    try:
        fits = _TYPES[wanted.kind]
        if fits is not None and not fits(os.fstat(found).st_mode):
            raise Refused(Code.FAILED_PRECONDITION, f"hostPath type check failed: {shown} is not a {wanted.kind}")
    finally:
        os.close(found)
