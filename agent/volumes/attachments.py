"""What is mounted where, remembered on disk: a restarted agent makes the same mounts again, and undoes the others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from agent.index import Index
from agent.store import Database
from fusevol.errors import CorruptError
from fusevol.server.spec import CacheMode, TransportChoice

CallOutKind = Literal["persistent", "emptyDir", "hostPath"]
AttachmentKind = CallOutKind | Literal["secret", "configMap", "downwardAPI", "projected", "csi"]
CALL_OUT_KINDS: tuple[str, ...] = get_args(CallOutKind)
_LONGEST = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One target and what belongs there. Written before the first step of mounting, removed after the last of
    unmounting."""

    target: str
    """Absolute path."""
    kind: AttachmentKind
    pool: str = ""
    volume: str = ""
    """Volume id in the pool; empty for a hostPath."""
    path: str = ""
    """The host's path that is shown; empty for a volume of a pool, and for one in memory as a whole."""
    sub_path: str = ""
    """The part of the volume that is shown at the target; empty: all of it."""
    read_only: bool = False
    recursive: bool = False
    """Whether the mounts inside come along, read-only too."""
    medium: Literal["", "Memory"] = ""
    """``Memory``: a tmpfs of its own, or a part of one."""
    options: str = ""
    """How the tmpfs is mounted."""
    alone: bool = False
    """Whether one node at a time may have the volume (ReadWriteOnce), where several have its pool."""
    cache: CacheMode = "exclusive"
    transport: TransportChoice | None = None
    """Its own; None: the agent's."""
    passthrough: bool = True
    """Whether file data may go past the server, where it can."""
    namespace: str = ""
    claim: str = ""
    claim_uid: str = ""
    user: str = ""
    """Who uses it, as far as ReadWriteOncePod is concerned; of the volume plugin's, its callers' ids, one per line."""
    pod: str = ""
    """Uid of the Pod object whose volume this is; empty for a mount by hand."""
    owned: bool = False
    """Whether the volume ends with this attachment (emptyDir)."""
    created: bool = False
    """Whether the target was made for it, and goes with it."""
    bare: bool = False
    """Whether the volume is served for it and shown nowhere: the target is its name alone."""
    csi: str = ""
    """What a CSI call said of it beside the rest; empty: it is no CSI driver's."""
    boot: str = ""
    """The boot of the machine that it ends with, since whoever asked for it asks again; empty: it outlives them all."""
    managed: bool = True
    """Whether it may be given to a Pod's group."""
    prepared: bool = False
    """Whether the volume was given to the Pod's group, if it has to be."""

    @property
    def mount_id(self) -> str:
        """Names the volume's one FUSE mount; empty for a hostPath."""
        return mount_id(self.pool, self.volume) if self.volume else ""

    @property
    def dependent(self) -> bool:
        """Whether it cannot be made again by itself: it needs content, or another attachment of its Pod."""
        return bool(self.medium) or self.recursive

    @property
    def partial(self) -> bool:
        """Whether it shows what another attachment of the same Pod shows already."""
        return bool(self.sub_path) or self.recursive

    def same(self, other: Attachment) -> bool:
        """Whether *other* wants the same thing at the same place."""
        unlike = dataclasses.replace(
            self, created=other.created, user=other.user, boot=other.boot, prepared=other.prepared
        )
        return unlike == other


def boot_id() -> str:
    """Names the time since the machine was started (proc_sys_kernel(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def mount_id(pool: str, volume: str) -> str:
    """The mount's name: short, since it is part of a unix socket's path, which ends at 107 bytes."""
    name = volume if pool == "default" else f"{pool}_{volume}"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class Attachments:
    """All attachments by target. For the trio loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: dict[str, Attachment] = {}
        self._by_mount: Index[str, Attachment, str] = Index(lambda row: [row.mount_id])
        self._by_pod: Index[str, Attachment, str] = Index(lambda row: [row.pod])
        self._by_claim: Index[str, Attachment, str] = Index(lambda row: [row.claim_uid])
        for target, body in database.read("SELECT target, body FROM attachments"):
            try:
                self._hold(Attachment(**json.loads(body)))
            except (ValueError, TypeError) as e:
                raise CorruptError(f"The mount record of {target} in {database.path} cannot be read: {e}.") from e

    def __iter__(self) -> Iterator[Attachment]:
        return iter(list(self._rows.values()))

    def find(self, target: str) -> Attachment | None:
        """The attachment of a target, if there is one."""
        return self._rows.get(target)

    def of_mount(self, name: str) -> list[Attachment]:
        """All attachments of one mount; the whole volume before its parts."""
        return sorted(self._by_mount.of(name), key=lambda a: (a.partial, a.target))

    def of_pod(self, uid: str) -> list[Attachment]:
        """All attachments of a Pod's volumes, parts of volumes first: the order in which they are undone."""
        return sorted(self._by_pod.of(uid), key=lambda a: (not a.partial, a.target))

    def of_claim(self, uid: str) -> list[Attachment]:
        """All attachments of a claim."""
        return self._by_claim.of(uid)

    @property
    def claims(self) -> Container[str]:
        """Uids of the claims that are mounted somewhere; always as of now."""
        return self._by_claim.words

    def _hold(self, row: Attachment) -> None:
        self._rows[row.target] = row
        for index in (self._by_mount, self._by_pod, self._by_claim):
            index.put(row.target, row)

    async def put(self, row: Attachment) -> None:
        """Remember *row*."""
        body = json.dumps(dataclasses.asdict(row))
        await self._database.write(("INSERT OR REPLACE INTO attachments VALUES (?, ?)", (row.target, body)))
        self._hold(row)

    async def remove(self, target: str) -> None:
        """Forget a target."""
        await self._database.write(("DELETE FROM attachments WHERE target = ?", (target,)))
        self._rows.pop(target, None)
        for index in (self._by_mount, self._by_pod, self._by_claim):
            index.drop(target)
