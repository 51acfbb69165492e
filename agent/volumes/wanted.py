"""What a Pod needs mounted, as plain values: what the kinds of volumes plan, and what they may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent.volumes.atomicwriter import Payload
from agent.volumes.attachments import Attachment
from agent.volumes.node import Node
from agent.volumes.ownership import Group
from agent.volumes.projected import Find
from fusevol.pool import VolumeRequest

Obj = dict[str, Any]
Lookup = Callable[[str], "tuple[Obj | None, Obj | None]"]
"""From a claim's name (in the Pod's namespace) to the claim and its volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a plan may look at."""

    root: Path
    """Has a directory for each Pod."""
    pool: str
    """Where volumes are made that name no pool."""
    claims: Lookup
    find: Find
    node: Node = field(default_factory=Node)
    existing: Mapping[str, Attachment] = field(default_factory=dict)
    """The Pod's attachments by target: they stay as they are, whatever changed since."""

    def volumes(self, pod: Obj) -> Path:
        """Where the Pod's volumes are."""
        return directory(self.root, pod) / "volumes"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One volume of the Pod: what is checked or made first, and what is attached (nothing for a hostPath)."""

    name: str
    check: tuple[str, str] | None = None
    """Path and type of a hostPath to check."""
    request: VolumeRequest | None = None
    """The volume that must exist first, made for this one."""
    attachment: Attachment | None = None
    source: str = ""
    """Where containers find it on the host."""
    read_only: bool = False
    claim: Obj | None = None
    group: Group | None = None
    """To whom its files are given once it is mounted."""
    files: Payload | None = None
    """What it shows, if it is written by the agent."""
    places: tuple[str, ...] = ()
    """Directories that it must have for what is mounted inside."""
    failure: str = ""
    """Why there are no files now; what it shows already stays."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a volume cannot be mounted now, or cannot be brought up to date."""

    name: str
    message: str
    reason: Literal["FailedMount"] = "FailedMount"
    blocking: bool = True
    """Whether containers cannot run."""


def directory(root: Path, pod: Obj) -> Path:
    """The Pod's directory below *root*."""
    return root / str(pod["metadata"]["uid"])


def uid_of(pod: Obj) -> str:
    """The Pod's uid."""
    return str(pod["metadata"]["uid"])


def group_of(pod: Obj, *, always: bool = False) -> Group | None:
    """The Pod's fsGroup; *always*: whatever its change policy is (6.3)."""
    context = pod["spec"].get("securityContext") or {}
    if context.get("fsGroup") is None:
        return None
    once = not always and context.get("fsGroupChangePolicy") == "OnRootMismatch"
    return Group(int(context["fsGroup"]), "OnRootMismatch" if once else "Always")


def owner(pod: Obj) -> dict[str, str]:
    """Whom a volume is made for."""
    metadata = pod["metadata"]
    return {"namespace": metadata["namespace"], "pod": metadata["name"], "uid": metadata["uid"]}
