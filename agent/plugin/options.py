"""What ``volume create`` says of a volume. Pure; raises :class:`InvalidError`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.controllers import provisioning
from fusevol import quantity
from fusevol.errors import InvalidError

OPTIONS: Final = {"size", "class", *provisioning.PARAMETERS}
SMALLEST: Final = 1 << 20
"""Bytes of the smallest volume. More than that is meant by whoever writes ``64m``, which is less than one byte."""
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}", re.ASCII)
_PLAIN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)


class Wanted(NamedTuple):
    """What a new volume shall be."""

    capacity: int | None
    """Bytes; None: no limit."""
    pool: str
    """Empty: the preferred one."""
    inodes: int | None
    mode: int
    enforced: bool
    asked: str
    """The options as they were given: what a repeated call has to say again."""


def check_name(name: object) -> str:
    """*name*, if a volume can have it."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidError(
            f"{str(name)[:80]!r} cannot be the name of a volume: use at most 255 letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit."
        )
    return name


def volume_id(name: str) -> str:
    """The id of the volume *name* in its pool: one that people recognise, where that can be, and no other door gives.

    With a dot, since CSI takes any name without one as it is.
    """
    if _PLAIN.fullmatch(name):
        return f"plugin.{name}"
    return f"plugin.h.{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def check(options: object) -> dict[str, str]:
    """The options of a request, known ones only."""
    given = {} if options is None else options
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise InvalidError("The options of a volume must be words with texts, such as size=1Gi.")
    if unknown := sorted(set(given) - OPTIONS):
        raise InvalidError(
            f"The volume has unknown options {', '.join(unknown)}: known are {', '.join(sorted(OPTIONS))}."
        )
    return given


def wanted(options: Mapping[str, str], of_class: Mapping[str, str]) -> Wanted:
    """What checked *options* ask for; they go over *of_class*, the parameters of the class that they name."""
    own = {k: v for k, v in options.items() if k in provisioning.PARAMETERS}
    parameters = {**{k: v for k, v in of_class.items() if k in provisioning.PARAMETERS}, **own}
    read = provisioning.read_parameters(parameters, "the volume")
    capacity = None
    if "size" in options:
        capacity = quantity.parse(options["size"])
        if capacity < SMALLEST:
            raise InvalidError(f"The size {options['size']} is less than 1Mi, the least: units are Mi, Gi and so on.")
    elif read.enforced:
        raise InvalidError("The volume has no size: add -o size=1Gi, or -o quota=none for a volume without limits.")
    return Wanted(
        capacity,
        parameters.get("pool", ""),
        read.inodes,
        read.mode,
        read.enforced,
        json.dumps(dict(options), sort_keys=True),
    )
