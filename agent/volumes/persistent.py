"""persistentVolumeClaim: when a claim may be mounted, and what then (volume-semantics 4.15, 4.17). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from agent.config import DRIVER
from agent.controllers.matching import mode_of
from agent.controllers.provisioning import handle_of, parse_handle
from agent.controllers.view import being_deleted, phase
from agent.volumes import affinity
from agent.volumes.node import Node
from fusevol.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from fusevol.server.spec import CacheMode, TransportChoice

Obj = dict[str, Any]

SINGLE_POD = "ReadWriteOncePod"
READERS = "ReadOnlyMany"
_IGNORED = {"rw", "debug", "defaults", "noatime", "nodiratime", "relatime", "nodev", "nosuid"}
_CACHE: dict[str, CacheMode] = {"cache=exclusive": "exclusive", "cache=shared": "shared", "cache=none": "none"}
_TRANSPORT: dict[str, TransportChoice] = {
    "transport=auto": "auto",
    "transport=kernel": "kernel",
    "transport=pyfuse3": "pyfuse3",
}
_PASSTHROUGH = {"passthrough=auto": True, "passthrough=off": False}


@dataclass(frozen=True, slots=True)
class Source:
    """What is behind a bound claim: a volume of a pool, or a path of the host."""

    pool: str = ""
    volume: str = ""
    path: str = ""
    path_type: str = ""
    read_only: bool = False
    cache: CacheMode = "exclusive"
    alone: bool = False
    """Whether one node at a time may have it."""
    transport: TransportChoice | None = None
    """None: as the agent is configured."""
    passthrough: bool = True
    """Whether file data may go past the server, where it can."""
    managed: bool = True
    """Whether it may be given to a Pod's group: never a hostPath (6.3)."""


def gate(claim: Obj | None, name: str, volume: Obj | None, node: Node) -> Source:
    """What to mount for a claim on *node*. Raises the reason why it may not be mounted now (4.17)."""
    if claim is None:
        raise NotFoundError(f'persistentvolumeclaim "{name}" not found')
    if being_deleted(claim):
        raise ConflictError(f'persistentvolumeclaim "{name}" is being deleted')
    bound_to = claim["spec"].get("volumeName")
    if phase(claim) != "Bound" or not bound_to:
        raise UnavailableError(
            f'persistentvolumeclaim "{name}" is not bound (phase {phase(claim) or "Pending"}): '
            f"`fusevol describe pvc {name}` shows what it waits for."
        )
    if volume is None:
        raise NotFoundError(f'persistentvolume "{bound_to}" of persistentvolumeclaim "{name}" not found')
    if not affinity.fits(volume, node):
        raise UnavailableError(
            f"0/1 nodes are available: 1 {affinity.CONFLICT} "
            f'(persistentvolume "{bound_to}", this node is "{node.name}").'
        )
    ref = volume["spec"].get("claimRef") or {}
    if ref.get("uid") != claim["metadata"]["uid"]:
        raise ConflictError(
            f'persistentvolume "{bound_to}": its ClaimRef.UID {ref.get("uid") or "(none)"} does not point to '
            f'claim.UID {claim["metadata"]["uid"]} of persistentvolumeclaim "{name}"'
        )
    if mode_of(claim) != "Filesystem":
        raise InvalidError(
            f'persistentvolumeclaim "{name}" has volumeMode Block: block devices are not served here, '
            "ask for volumeMode Filesystem."
        )
    behind = source_of(volume)
    # Kubernetes takes modes for labels; whoever asks for nothing but reading is held to it here
    return replace(behind, read_only=True) if set(claim["spec"].get("accessModes") or ()) == {READERS} else behind


def source_of(volume: Obj) -> Source:
    """What a PersistentVolume stands for. Raises :class:`InvalidError` for a source that is not served here."""
    spec = volume["spec"]
    name = volume["metadata"]["name"]
    options = _options(volume)
    handle = handle_of(volume)
    if handle is not None:
        pool, volume_id = parse_handle(handle)
        read_only = any(bool((spec.get(kind) or {}).get("readOnly")) for kind in ("csi", "cephfs"))
        return replace(options, pool=pool, volume=volume_id, read_only=options.read_only or read_only)
    if csi := spec.get("csi"):
        raise InvalidError(f'persistentvolume "{name}" belongs to the CSI driver {csi.get("driver")}, not to {DRIVER}')
    if host_path := spec.get("hostPath"):
        path_type = str(host_path.get("type") or "")
        return Source(path=str(host_path["path"]), path_type=path_type, read_only=options.read_only, managed=False)
    if local := spec.get("local"):
        return Source(path=str(local["path"]), path_type="Directory", read_only=options.read_only)
    sources = sorted(
        k for k, v in spec.items() if isinstance(v, dict) and k not in {"capacity", "claimRef", "nodeAffinity"}
    )
    raise InvalidError(
        f'persistentvolume "{name}" has the source {", ".join(sources) or "(none)"}, which cannot be mounted here: '
        "use csi with the driver fusevol.io, hostPath or local."
    )


def _options(volume: Obj) -> Source:
    """What the volume's mount options say; other users of the data need a short cache."""
    shared = {"ReadWriteMany", "ReadOnlyMany"} & set(volume["spec"].get("accessModes") or ())
    whose = f'persistentvolume "{volume["metadata"]["name"]}"'
    found = mount_options(volume["spec"].get("mountOptions") or [], whose, cache="shared" if shared else "exclusive")
    return replace(found, alone=not shared)


def mount_options(given: Iterable[str], whose: str, cache: CacheMode = "exclusive") -> Source:
    """What mount options say; *cache* where they say nothing. Raises :class:`InvalidError` for one that is unknown."""
    found = Source(cache=cache)
    for option in given:
        if option == "ro":
            found = replace(found, read_only=True)
        elif option in _CACHE:
            found = replace(found, cache=_CACHE[option])
        elif option in _TRANSPORT:
            found = replace(found, transport=_TRANSPORT[option])
        elif option in _PASSTHROUGH:
            found = replace(found, passthrough=_PASSTHROUGH[option])
        elif option not in _IGNORED:
            known = ", ".join([*sorted(_CACHE), *sorted(_TRANSPORT), *sorted(_PASSTHROUGH)])
            raise InvalidError(
                f'{whose} has the mount option "{option}", which is not known: '
                f"known are ro, {known} and {', '.join(sorted(_IGNORED))}."
            )
    return found


def check_single(claim: Obj, user: str, others: Collection[str]) -> None:
    """Raise :class:`ConflictError` when the claim allows one Pod only and another one has it (4.15)."""
    if claim["spec"].get("accessModes") == [SINGLE_POD] and any(o != user for o in others):
        raise ConflictError("volume uses the ReadWriteOncePod access mode and is already in use by another pod")
