"""A directory of a CephFS as StorageClasses of ``ceph.com/cephfs`` name it (volume-semantics 9.2). Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Self

from fusevol.errors import InvalidError

PROVISIONER: Final = "ceph.com/cephfs"
"""The provisioner whose StorageClasses are understood here."""
PARAMETERS: Final = (
    "monitors",
    "adminId",
    "adminSecretName",
    "adminSecretNamespace",
    "cluster",
    "claimRoot",
    "deterministicNames",
)
POOL: Final = "fusevol"
"""The pool's directory in a share, beside which others may have theirs."""
_KNOWN: Final = {word.lower(): word for word in PARAMETERS}
_MONITOR: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z][0-9A-Za-z._-]*)(:[0-9]{1,5})?")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Where a pool on CephFS is, and who mounts it. Its key is in a Secret."""

    monitors: tuple[str, ...]
    user: str
    """The Ceph client, without ``client.``."""
    secret: str
    namespace: str
    """Of the Secret."""
    root: str
    """The directory in which the pool is, from the filesystem's root."""
    cluster: str = "ceph"

    @classmethod
    def of_class(cls, name: str, parameters: Mapping[str, str]) -> Self:
        """What the parameters of the StorageClass *name* say; others than :data:`PARAMETERS` are not looked at.

        Raises :class:`InvalidError`.
        """
        given = {_KNOWN[k.lower()]: v.strip() for k, v in parameters.items() if k.lower() in _KNOWN}
        if given.get("deterministicNames", "false").lower() not in {"false", "true"}:
            raise InvalidError(f'The parameter deterministicNames of StorageClass "{name}" must be true or false.')
        found = cls(
            monitors=tuple(m.strip() for m in given.get("monitors", "").split(",") if m.strip()),
            user=given.get("adminId", "admin"),
            secret=given.get("adminSecretName", ""),
            namespace=given.get("adminSecretNamespace", "default"),
            root=given.get("claimRoot", "/volumes/kubernetes"),
            cluster=given.get("cluster", "ceph"),
        )
        found.check(f'of StorageClass "{name}"')
        return found

    @classmethod
    def load(cls, text: str) -> Self:
        """What :meth:`dump` has written. Raises :class:`InvalidError`."""
        try:
            fields = json.loads(text)
            found = cls(**{**fields, "monitors": tuple(str(m) for m in fields["monitors"])})
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise InvalidError("The annotation with the volume's pool cannot be read: put it back as it was.") from e
        found.check("in the annotation with the volume's pool")
        return found

    def dump(self) -> str:
        """All of it as text; it has no secret."""
        return json.dumps(asdict(self), sort_keys=True)

    def check(self, where: str) -> None:
        """Raise :class:`InvalidError` for what names no CephFS, or might be taken for an option of a program."""
        if not self.monitors:
            raise InvalidError(f"The parameter monitors {where} is missing: write HOST:PORT, several with commas.")
        for monitor in self.monitors:
            if not _MONITOR.fullmatch(monitor):
                raise InvalidError(f'The parameter monitors {where} has "{monitor}": write HOST:PORT.')
        if not self.secret:
            raise InvalidError(f"The parameter adminSecretName {where} is missing: name the Secret with the key.")
        for word, value in (("adminId", self.user), ("cluster", self.cluster)):
            if not isinstance(value, str) or not _WORD.fullmatch(value):
                raise InvalidError(f'The parameter {word} {where} is "{value}": use letters, digits, ".", "_" and "-".')
        parts = str(self.root).split("/")
        if parts[0] or ".." in parts or "." in parts or "\0" in self.root:
            raise InvalidError(
                f'The parameter claimRoot {where} is "{self.root}": write a path from the root, without "..".'
            )

    @property
    def pool(self) -> str:
        """The name of the pool: the same for all that name the same place by the same client."""
        text = json.dumps([sorted(self.monitors), self.user, self.directory, self.cluster])
        return f"cephfs-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def directory(self) -> str:
        """:attr:`root` in its shortest form."""
        return "/" + "/".join(part for part in self.root.split("/") if part)

    def path_of(self, volume: str) -> str:
        """The directory of the volume *volume*, from the filesystem's root."""
        return f"{self.directory.rstrip('/')}/{POOL}/volumes/{volume}/data"

    def __str__(self) -> str:
        """For people."""
        return f"CephFS {self.directory} of {', '.join(self.monitors)}"


def is_share(provisioner: str, parameters: Mapping[str, str]) -> bool:
    """Whether a StorageClass is one of CephFS; one of its provisioner may name a local pool instead."""
    return any(k.lower() == "monitors" for k in parameters) or (provisioner == PROVISIONER and "pool" not in parameters)
