"""Volumes that docker or podman names: made in a pool, mounted once for all who use them, counted by their callers.

A volume is known by its label in its pool, and its mount is an attachment as all others are, so both outlive the agent.
Who uses a mount is on the attachment's record: one id of a caller per line. An id is put there when its mount is
there, and the mount goes with the last one; so a mount that the agent died over before it answered counts for nobody,
and is undone at the next start. What was mounted before the machine's last start is forgotten: its users start anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import trio

from agent.config import ALIASES, PROVISIONER
from agent.controllers.provisioning import share_of
from agent.plugin import options
from agent.pools import Pools
from agent.steps import Step, no_step
from agent.store import Key, Store
from agent.volumes.attachments import Attachment, boot_id
from agent.volumes.mounter import Mounter
from fusevol.errors import (
    AlreadyExistsError,
    ConflictError,
    FusevolError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from fusevol.pool import Volume, VolumeRequest

Obj = dict[str, Any]
KIND: Final = "plugin"
"""The label ``kind`` of the volumes."""
_LOOK: Final = 3.0
"""Seconds in which a pool has to say whether it has a volume."""
_PATIENCE: Final = 30.0
"""Seconds that a call waits for another one on the same volume."""
_LONGEST: Final = 255
"""Characters of a caller's id."""

log = logging.getLogger(__name__)


class Driver:
    """The calls of a volume plugin. For the trio loop. They raise a :class:`FusevolError`."""

    def __init__(
        self, *, directory: Path, store: Store, pools: Pools, mounter: Mounter, provisioners: tuple[str, ...],
        step: Step = no_step,
    ) -> None:  # fmt: skip
        """*directory* takes the mount points that users see; *provisioners*: those whose classes are served here."""
        self._directory = directory
        self._store = store
        self._pools = pools
        self._mounter = mounter
        self._provisioners = {PROVISIONER, *provisioners} - set(ALIASES)
        self._step = step
        self._boot = boot_id()
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def tidy(self) -> None:
        """Undo mounts that count for nobody, and those of before the machine was started."""
        for row in self._mounter.attachments:
            if not row.target.startswith(f"{self._directory}/"):
                continue
            async with self._hold(Path(row.target).name):
                current = self._mounter.attachments.find(row.target)
                if current is None or (current.boot == self._boot and current.user):
                    continue
                try:
                    await self._mounter.detach(row.target)
                except (FusevolError, OSError) as e:
                    log.warning("What is left at %s cannot be undone yet: %s", row.target, e)

    async def create(self, name: object, given: object) -> None:
        """Make a volume; the same again finds it made."""
        name, asked = options.check_name(name), options.check(given)
        wanted = options.wanted(asked, self._class(asked["class"]) if "class" in asked else {})
        pool = wanted.pool or self._pools.preferred
        self._pools.path(pool)
        volume = options.volume_id(name)
        async with self._hold(volume):
            with contextlib.suppress(UnavailableError):  # another pool that hangs is no reason to make none in this one
                found = await self._find(name)
                if found is not None:
                    if found[1].labels.get("asked") != wanted.asked:
                        raise AlreadyExistsError(f'There is a volume "{name}" with other options: remove that first.')
                    return
            await self._pools.provision(
                pool,
                VolumeRequest(
                    id=volume,
                    capacity_bytes=wanted.capacity,
                    inode_limit=wanted.inodes,
                    enforced=wanted.enforced,
                    owner={"volume": name},
                    mode=wanted.mode,
                    labels={"kind": KIND, "name": name, "asked": wanted.asked},
                ),
            )

    async def remove(self, name: object) -> None:
        """Remove a volume that nobody uses."""
        name = options.check_name(name)
        volume = options.volume_id(name)
        async with self._hold(volume):
            pool, _ = await self._get(name)
            async with self._mounter.lock(self._attachment(pool, volume)):
                row = self._mounter.attachments.find(self._target(volume))
                if row is not None:
                    raise ConflictError(
                        f'The volume "{name}" is in use by {len(row.user.split())} of its callers: end their '
                        f"containers, or have `fusevol umount {row.target}` end what is left of them."
                    )
                await self._pools.discard(pool, volume)

    async def mount(self, name: object, caller: object) -> str:
        """Have a volume mounted for a caller; where. The same caller counts once."""
        name, caller = options.check_name(name), _caller(caller)
        volume = options.volume_id(name)
        async with self._hold(volume):
            row = self._mounter.attachments.find(self._target(volume))
            if row is not None and row.boot != self._boot:
                await self._mounter.detach(row.target)  # and with it the callers of that time
                row = None
            pool = row.pool if row is not None else (await self._get(name))[0]
            row = await self._mounter.attach(self._attachment(pool, volume))
            if caller not in row.user.split("\n"):
                users = "\n".join(filter(None, [row.user, caller]))
                await self._mounter.attachments.put(dataclasses.replace(row, user=users, boot=self._boot))
                self._step("caller counted")
            return row.target

    async def unmount(self, name: object, caller: object) -> None:
        """A caller uses a volume no longer; with the last one the mount goes. Nothing to do for an unknown caller."""
        name, caller = options.check_name(name), _caller(caller)
        volume = options.volume_id(name)
        async with self._hold(volume):
            row = self._mounter.attachments.find(self._target(volume))
            if row is None:
                return
            others = [user for user in row.user.split("\n") if user and user != caller]
            if not others:
                await self._mounter.detach(row.target)
            elif caller in row.user.split("\n"):
                await self._mounter.attachments.put(dataclasses.replace(row, user="\n".join(others)))
                self._step("caller discounted")

    async def get(self, name: object) -> Obj:
        """A volume: name, mount point if it is mounted, when it was made, and its options."""
        name = options.check_name(name)
        pool, volume = await self._get(name)
        status: Obj = {"pool": pool, "quota": volume.quota}
        if volume.capacity_bytes is not None:
            status["size"] = volume.capacity_bytes
        if volume.inode_limit is not None:
            status["inodes"] = volume.inode_limit
        return {**self._shown(volume), "CreatedAt": volume.created, "Status": status}

    async def path(self, name: object) -> str:
        """Where a volume is mounted; empty if it is not."""
        name = options.check_name(name)
        row = self._mounter.attachments.find(self._target(options.volume_id(name)))
        if row is None:
            await self._get(name)
            return ""
        return row.target

    async def list(self) -> list[Obj]:
        """All volumes. One that is not listed would be taken for gone, so all pools have to answer."""
        found: list[Obj] = []
        for pool in self._pools.names:
            listed = await self._pools.volumes(pool)
            found += [self._shown(v) for v in listed if v.labels.get("kind") == KIND]
        return found

    def _shown(self, volume: Volume) -> Obj:
        row = self._mounter.attachments.find(self._target(volume.id))
        return {"Name": volume.labels["name"], "Mountpoint": row.target if row is not None else ""}

    def _target(self, volume: str) -> str:
        return str(self._directory / volume)

    def _attachment(self, pool: str, volume: str) -> Attachment:
        return Attachment(
            target=self._target(volume), kind="persistent", pool=pool, volume=volume, boot=self._boot
        )  # fmt: skip

    async def _get(self, name: str) -> tuple[str, Volume]:
        found = await self._find(name)
        if found is None:
            raise NotFoundError(f'There is no volume "{name}".')
        return found

    async def _find(self, name: str) -> tuple[str, Volume] | None:
        """A volume and its pool. Raises :class:`UnavailableError` if it may be in a pool that does not answer."""
        volume = options.volume_id(name)
        found: list[tuple[str, Volume]] = []
        errors: list[FusevolError] = []

        async def ask(pool: str) -> None:
            try:
                there = await self._pools.glance(pool, lambda p: p.volume(volume), _LOOK)
            except NotFoundError:
                return
            except FusevolError as e:
                errors.append(e)
                return
            found.append((pool, there))
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for pool in self._pools.names:
                nursery.start_soon(ask, pool)
        if not found and errors:
            raise errors[0]
        return found[0] if found else None

    def _class(self, name: str) -> dict[str, str]:
        """The parameters of a StorageClass that is served here."""
        found = self._store.find(Key("StorageClass", "", name))
        if found is None:
            raise NotFoundError(f'There is no StorageClass "{name}": `fusevol get sc` lists those that there are.')
        if found.get("provisioner") not in self._provisioners or share_of(found) is not None:
            raise InvalidError(f'The StorageClass "{name}" is of another provisioner: name one of {PROVISIONER}.')
        return {str(k): str(v) for k, v in (found.get("parameters") or {}).items()}

    @contextlib.asynccontextmanager
    async def _hold(self, volume: str) -> AsyncIterator[None]:
        """One call at a time for each volume. Raises :class:`UnavailableError` when another one takes too long."""
        lock = self._locks.get(volume)
        if lock is None:
            lock = self._locks[volume] = trio.Lock()
        taken = False
        with trio.move_on_after(_PATIENCE):
            await lock.acquire()
            taken = True
        if not taken:
            raise UnavailableError(f"Another call is at work on the volume {volume}: try again.")
        try:
            yield
        finally:
            lock.release()


def _caller(value: object) -> str:
    """The id that a mount is counted by."""
    if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable() or " " in value:
        raise UsageError("The request's ID is not one word of at most 255 characters.")
    return value or "-"
