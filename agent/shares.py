"""The CephFS shares that objects name, as pools of this node, and their volumes' Ceph users. For the trio loop."""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from agent.cephfs import CephMount
from agent.controllers.provisioning import share_of, share_of_volume
from agent.pools import Pools
from agent.store import Key, Store
from fusevol import objects
from fusevol.errors import AlreadyExistsError, FusevolError, InvalidError, NotFoundError
from fusevol.objects.payload import values
from fusevol.objects.share import Share

Obj = dict[str, Any]
PERIOD: Final = 5.0
"""Seconds between two looks at a share."""

log = logging.getLogger(__name__)


class Shares:
    """Those that this node has mounted, or mounts when it must."""

    def __init__(self, *, store: Store, pools: Pools, directory: Path) -> None:
        """*directory* takes the mount points."""
        self._store = store
        self._pools = pools
        self._directory = directory
        self._mounts: dict[str, CephMount] = {}
        self._seen: dict[str, int] = {}
        """How often each had been mounted at the last look."""

    def attach_all(self) -> None:
        """Have a pool for each share that a volume or a class names."""
        for kind, find in (("PersistentVolume", share_of_volume), ("StorageClass", share_of)):
            for obj in self._store.list(kind):
                try:
                    found = find(obj)
                except InvalidError as e:
                    log.info("%s %s names no share: %s", kind, obj["metadata"]["name"], e)
                    continue
                if found is not None:
                    self.attach(found)

    def attach(self, share: Share) -> None:
        """Have a pool for *share*."""
        if share.pool not in self._mounts:
            mounted = CephMount(share, self._directory, lambda: trio.from_thread.run_sync(self._key, share))
            self._mounts[share.pool] = mounted
            self._pools.attach(share.pool, mounted)

    async def watch(self, end: Callable[[str], Awaitable[None]]) -> None:
        """Mount again, for ever, what is mounted no more since its process has died.

        *end* is told the pool then: its volumes' mounts must be made again, since what they have open is lost.
        """
        while True:
            await trio.sleep(PERIOD)
            async with trio.open_nursery() as nursery:
                for pool, mounted in list(self._mounts.items()):
                    if mounted.times:
                        nursery.start_soon(self._look, pool, mounted, end)

    async def _look(self, pool: str, mounted: CephMount, end: Callable[[str], Awaitable[None]]) -> None:
        before = self._seen.setdefault(pool, mounted.times)
        try:
            await self._pools.run(pool, lambda _: None)
        except (FusevolError, OSError) as e:
            log.debug("%s: %s", mounted, e)  # whoever wants something of it is told
            return
        if mounted.times != before:
            log.info("%s was mounted again.", mounted.share)
            await end(pool)
            self._seen[pool] = mounted.times

    def _key(self, share: Share) -> bytes:
        secret = self._store.find(Key("Secret", share.namespace, share.secret))
        if secret is None:
            raise NotFoundError(f'There is no Secret "{share.namespace}/{share.secret}" with the key: apply it first.')
        found = values(secret)
        if not found:
            raise InvalidError(f'The Secret "{share.namespace}/{share.secret}" is empty: put the key into it.')
        # the first one, as the provisioner ceph.com/cephfs takes it; but a name that says what it is goes first
        return found.get("key") or next(iter(found.values()))

    async def user_for(self, share: Share, volume: str) -> tuple[str, str] | None:
        """The Ceph user that may mount *volume* alone, and the name of the Secret with its key, beside the share's own.

        ``None`` where none can be made. Raises a :class:`FusevolError`.
        """
        mounted = self._mounts[share.pool]
        made = await self._pools.run(share.pool, lambda _: mounted.user_for(volume, share.path_of(volume)))
        if made is None:
            return None
        user, key = made
        secret = _secret(volume, share)
        data = {"key": base64.b64encode(key.encode()).decode()}
        try:
            await self._store.create(
                objects.admit(
                    {
                        "apiVersion": "v1",
                        "kind": "Secret",
                        "metadata": {"name": secret.name, "namespace": secret.namespace},
                        "data": data,
                    }
                )
            )
        except AlreadyExistsError:
            await self._store.change(secret, lambda current: current.update(data=data))
        return user, secret.name

    async def forget_user(self, volume: Obj) -> None:
        """Delete the Ceph user of the PersistentVolume *volume* and its Secret; none is fine."""
        share = share_of_volume(volume)
        if share is None:
            return
        self.attach(share)
        name = str(volume["metadata"]["name"])
        secret = _secret(name, share)
        if str(volume["spec"]["cephfs"]["secretRef"]["name"]) != secret.name:
            return
        mounted = self._mounts[share.pool]
        await self._pools.run(share.pool, lambda _: mounted.forget_user(name))
        try:
            await self._store.delete(secret)
        except NotFoundError:
            return


def _secret(volume: str, share: Share) -> Key:
    return Key("Secret", share.namespace, f"ceph-fusevol-{volume}-secret")
