"""What a StorageClass or a VolumeAttributesClass says of a volume. Pure; raises :class:`Refused`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.controllers import provisioning
from agent.csi import fields
from agent.csi.refusal import invalid
from fusevol.errors import InvalidError

RESERVED: Final = "csi.storage.k8s.io/"
"""Keys of Kubernetes' own; those below say for whom a volume is (external-provisioner, --extra-create-metadata)."""
_OWNER: Final = {"pvc/name": "claim", "pvc/namespace": "namespace", "pv/name": "volume"}
_MUTABLE: Final = {"inodes"}
_PLAIN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
"""As long as a pool's name may be, too: both make a handle, which has at most 128 bytes."""


class Wanted(NamedTuple):
    """What a new volume shall be, beside its size."""

    pool: str
    """Empty: the preferred one."""
    inodes: int | None
    mode: int
    enforced: bool
    retention: int
    """Seconds that it stays in the trash when it is deleted."""
    owner: dict[str, str]
    asked: str
    """The parameters as they were given: what a repeated call has to say again."""


def wanted(parameters: Mapping[str, str], mutable: Mapping[str, str]) -> Wanted:
    """From a CreateVolume request; *mutable* parameters go over the others."""
    given = fields.mapping(parameters, "parameters")
    limits = mutable_limits(mutable)
    own = {k: v for k, v in given.items() if not k.startswith(RESERVED)} | dict(mutable)
    own = {k: v for k, v in own.items() if not (k in limits and limits[k] is None)}
    if unknown := sorted(set(own) - provisioning.PARAMETERS):
        known = ", ".join(sorted(provisioning.PARAMETERS))
        raise invalid(f"The volume has unknown parameters {', '.join(unknown)}: known are {known}.")
    try:
        read = provisioning.read_parameters(own, "The volume")
    except InvalidError as e:
        raise invalid(e.message) from e
    owner = {word: given[RESERVED + key] for key, word in _OWNER.items() if given.get(RESERVED + key)}
    asked = json.dumps(own, sort_keys=True)
    return Wanted(own.get("pool", ""), read.inodes, read.mode, read.enforced, read.retention, owner, asked)


def mutable_limits(given: Mapping[str, str]) -> dict[str, int | None]:
    """Limits that can change while the volume is in use: ``inodes``, a number or ``none``."""
    unknown = sorted(set(fields.mapping(given, "mutable_parameters")) - _MUTABLE)
    if unknown:
        raise invalid(f"mutable_parameters has unknown keys: {', '.join(unknown)}; known are inodes.")
    found: dict[str, int | None] = {}
    for key, value in given.items():
        if value != "none" and not (value.isascii() and value.isdigit() and 0 < len(value) < 19 and int(value) > 0):
            raise invalid(f'The mutable parameter {key} "{value}" is neither a positive number nor none.')
        found[key] = None if value == "none" else int(value)
    return found


def volume_id(name: str) -> str:
    """The id of the volume with a CO's *name*: that itself where it can be one, so that people find it."""
    if _PLAIN.fullmatch(name):
        return name
    return f"csi-{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def inline_id(handle: str) -> str:
    """The id of the volume that a Pod has inline; *handle* is the CO's, and may be anything."""
    return f"inline-{hashlib.sha256(handle.encode()).hexdigest()[:40]}"
