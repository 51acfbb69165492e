"""What requests may say: each field checked by the specification's rules. Pure; raises :class:`Refused`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from agent.csi import csi_pb2 as pb
from agent.csi.refusal import Code, Refused, invalid
from agent.volumes import persistent
from fusevol.errors import InvalidError
from fusevol.quantity import MAX
from fusevol.server.spec import CacheMode, TransportChoice

TEXT_LIMIT: Final = 128
"""Bytes of a string, where the specification does not say otherwise."""
MAP_LIMIT: Final = 4096
"""Bytes of all keys and values of a map, and of all mount flags."""
PATH_LIMIT: Final = 4095
"""Bytes of a path (limits.h, without the final zero)."""
SMALLEST: Final = 1 << 20
"""Bytes of the smallest volume: its root directory and something in it."""
DEFAULT_SIZE: Final = 1 << 30
"""Bytes of a volume for which no size is asked."""
_NO_GROUP: Final = (1 << 32) - 1
"""The gid that chown(2) takes for "leave it"."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_FS_TYPES: Final = {"", "fusevol", "fuse.fusevol"}

Mode = pb.VolumeCapability.AccessMode
READERS: Final = {Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY}
SHARED: Final = {
    Mode.SINGLE_NODE_MULTI_WRITER,
    Mode.MULTI_NODE_READER_ONLY,
    Mode.MULTI_NODE_SINGLE_WRITER,
    Mode.MULTI_NODE_MULTI_WRITER,
}
"""Modes in which a volume may be published at several targets of a node."""
ONE_NODE: Final = {
    Mode.SINGLE_NODE_WRITER,
    Mode.SINGLE_NODE_READER_ONLY,
    Mode.SINGLE_NODE_SINGLE_WRITER,
    Mode.SINGLE_NODE_MULTI_WRITER,
}
MODES: Final = {Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_READER_ONLY, Mode.SINGLE_NODE_SINGLE_WRITER, *SHARED}


def text(value: str, what: str, limit: int = TEXT_LIMIT) -> str:
    """A required string."""
    if not value:
        raise invalid(f"The request lacks {what}.")
    if len(value.encode()) > limit:
        raise invalid(f"{what} is longer than {limit} bytes.")
    return value


def name(value: str) -> str:
    """The name that the CO suggests for a volume or snapshot: any Unicode but control characters."""
    text(value, "name")
    if _CONTROL.search(value):
        raise invalid("name has control characters.")
    return value


def mapping(value: Mapping[str, str], what: str) -> dict[str, str]:
    """A map of strings, not too large."""
    if sum(len(k.encode()) + len(v.encode()) for k, v in value.items()) > MAP_LIMIT:
        raise invalid(f"{what} has more than {MAP_LIMIT} bytes.")
    return dict(value)


def absolute(value: str, what: str) -> str:
    """A path of the CO's, normalised: absolute, without ``..``, not the root."""
    text(value, what, PATH_LIMIT)
    if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise invalid(f'{what} must be an absolute path without "..".')
    path = os.path.normpath(value)
    if path.strip("/") == "":
        raise invalid(f"{what} is the root directory.")
    return path


class Range(NamedTuple):
    """A capacity range in bytes; 0 where nothing is said."""

    required: int = 0
    limit: int = 0

    def allows(self, size: int) -> bool:
        """Whether a volume of *size* bytes is what was asked for."""
        return self.required <= size and (not self.limit or size <= self.limit)

    def choose(self, content: int = 0) -> int:
        """The size of a new volume, which begins with that of one of *content* bytes. Raises OUT_OF_RANGE."""
        if self.limit and self.limit < SMALLEST:
            raise Refused(Code.OUT_OF_RANGE, f"A volume has at least {SMALLEST} bytes; the limit is {self.limit}.")
        if (self.required and self.required < content) or (self.limit and self.limit < content):
            raise Refused(Code.OUT_OF_RANGE, f"What the volume is to begin with has {content} bytes.")
        if self.required or content:
            return max(self.required, content, SMALLEST)
        return min(DEFAULT_SIZE, self.limit or DEFAULT_SIZE)


def capacity_range(given: pb.CapacityRange, *, present: bool, required: bool = False) -> Range:
    """A range; one that is *present* says at least one thing. Raises also OUT_OF_RANGE when nothing can be in it."""
    if not present:
        if required:
            raise invalid("The request lacks capacity_range.")
        return Range()
    found = Range(given.required_bytes, given.limit_bytes)
    if min(found) < 0:
        raise invalid("capacity_range has a negative size.")
    if found == Range():
        raise invalid("capacity_range says neither required_bytes nor limit_bytes.")
    if found.limit and found.required > found.limit:
        raise Refused(Code.OUT_OF_RANGE, "capacity_range requires more than its limit.")
    if found.required > MAX - SMALLEST:
        raise Refused(Code.OUT_OF_RANGE, f"No volume can have {found.required} bytes.")
    return found


class Capability(NamedTuple):
    """How a volume is to be used."""

    mode: int
    flags: tuple[str, ...]
    group: int | None
    """The gid of whoever uses it (``volume_mount_group``)."""
    read_only: bool
    cache: CacheMode
    transport: TransportChoice | None
    passthrough: bool

    def terms(self, handle: str, role: str) -> str:
        """What an attachment remembers of it, to tell a repeated call from another one."""
        return json.dumps({"id": handle, "role": role, "mode": self.mode, "flags": self.flags, "group": self.group})


class Terms(NamedTuple):
    """What an attachment remembers (:meth:`Capability.terms`)."""

    id: str
    role: str
    mode: int

    @classmethod
    def read(cls, remembered: str) -> Terms | None:
        """None for an attachment that is not CSI's."""
        if not remembered:
            return None
        found = json.loads(remembered)
        return cls(found["id"], found["role"], found["mode"])


def capability(given: pb.VolumeCapability, *, present: bool = True, unsupported: Code) -> Capability:
    """One capability. What is well-formed and cannot be had is answered with the code *unsupported*."""
    if not present:
        raise invalid("The request lacks volume_capability.")
    kind = given.WhichOneof("access_type")
    if kind is None:
        raise invalid("A volume_capability lacks its access_type.")
    mode = int(given.access_mode.mode)
    if mode == Mode.UNKNOWN:
        raise invalid("A volume_capability lacks its access_mode.")
    if mode not in MODES:
        raise Refused(unsupported, f"The access mode {mode} is not known.")
    if kind == "block":
        raise Refused(unsupported, "Block volumes are not supported: ask for volumeMode Filesystem.")
    if given.mount.fs_type not in _FS_TYPES:
        raise Refused(
            unsupported, f"The fs_type \"{given.mount.fs_type}\" cannot be had: a volume's filesystem is its pool's."
        )
    flags = tuple(given.mount.mount_flags)
    if sum(len(f.encode()) for f in flags) > MAP_LIMIT:
        raise invalid(f"mount_flags have more than {MAP_LIMIT} bytes.")
    try:
        options = persistent.mount_options(flags, "the volume")
    except InvalidError as e:
        raise Refused(unsupported, e.message) from e
    return Capability(
        mode=mode,
        flags=flags,
        group=_group(given.mount.volume_mount_group),
        read_only=options.read_only or mode in READERS,
        cache=options.cache,
        transport=options.transport,
        passthrough=options.passthrough,
    )


def capabilities(given: Iterable[pb.VolumeCapability], unsupported: Code) -> list[Capability]:
    """All capabilities of a request, at least one."""
    found = [capability(one, unsupported=unsupported) for one in given]
    if not found:
        raise invalid("The request lacks volume_capabilities.")
    return found


def _group(value: str) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(_NO_GROUP)) and int(value) < _NO_GROUP):
        raise invalid("volume_mount_group is no gid.")
    return int(value)
