"""Runs the controllers: builds what they look at, and wakes the one whose object something else's change concerns."""

from __future__ import annotations

import logging
from typing import Any

import trio

from agent.controllers import binding, reclaim
from agent.controllers.effects import Effects
from agent.controllers.pods import PodController
from agent.controllers.queue import WorkQueue
from agent.controllers.view import BIND_COMPLETED, View, annotations_of
from agent.store import Key, Store, now
from agent.volumes.attachments import Attachment
from agent.volumes.mounter import Mounter
from agent.volumes.pods import claims_of
from agent.watch import GoneError
from fusevol import objects

Obj = dict[str, Any]
RESYNC = 120.0
"""Seconds after which everything is looked at again, changed or not."""

log = logging.getLogger(__name__)


class Controllers:
    """All controllers of one agent. For the trio loop."""

    def __init__(
        self,
        *,
        store: Store,
        mounter: Mounter,
        pod_controller: PodController,
        effects: Effects,
        provisioners: tuple[str, ...],
        node: str,
        heal: WorkQueue[str],
    ) -> None:
        self._store = store
        self._mounter = mounter
        self._pod_controller = pod_controller
        self._effects = effects
        self._provisioners = provisioners
        self._node = node
        self._heal = heal
        self.claims: WorkQueue[Key] = WorkQueue("claim", self._claim)
        self.volumes: WorkQueue[Key] = WorkQueue("volume", self._volume)
        self.pods: WorkQueue[Key] = WorkQueue("pod", self._pod, workers=32)

    def view(self) -> View:
        """The objects as they are now, for the decisions."""
        store = self._store
        users: dict[tuple[str, str], list[str]] = {}
        for pod in store.list("Pod"):
            for claim in claims_of(pod):
                users.setdefault((pod["metadata"]["namespace"], claim), []).append(pod["metadata"]["name"])
        return View(
            volumes={o["metadata"]["name"]: o for o in store.list("PersistentVolume")},
            claims={
                (o["metadata"]["namespace"], o["metadata"]["name"]): o for o in store.list("PersistentVolumeClaim")
            },
            classes={o["metadata"]["name"]: o for o in store.list("StorageClass")},
            users=users,
            attached=frozenset(a.claim_uid for a in self._mounter.attachments if a.claim_uid),
            provisioners=self._provisioners,
            node=self._node,
            now=now(),
        )

    async def _claim(self, key: Key) -> None:
        claim = self._store.find(key)
        if claim is not None:
            await self._effects.carry_out(binding.decide(claim, self.view()))

    async def _volume(self, key: Key) -> None:
        volume = self._store.find(key)
        if volume is not None:
            await self._effects.carry_out(reclaim.decide(volume, self.view()))

    async def _pod(self, key: Key) -> None:
        await self._pod_controller.reconcile(key)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled. Started once everything has been looked at for the first time."""
        async with trio.open_nursery() as nursery:
            for queue in (self.claims, self.volumes, self.pods):
                await nursery.start(queue.run)
            await nursery.start(self._heal.run)
            version = self._store.version
            self._all()
            nursery.start_soon(self._follow, version)
            nursery.start_soon(self._resync)
            for queue in (self.volumes, self.claims):
                await queue.drained()
            task_status.started()

    def hurry(self) -> None:
        """Try again now what has failed: something that hung answers again."""
        for queue in (self.claims, self.volumes, self.pods):
            queue.hurry()
        self._heal.hurry()

    def _all(self) -> None:
        for kind, queue in (
            ("PersistentVolume", self.volumes),
            ("PersistentVolumeClaim", self.claims),
            ("Pod", self.pods),
        ):
            for obj in self._store.list(kind):
                queue.add(objects.key(obj))

    async def _resync(self) -> None:
        while True:
            await trio.sleep(RESYNC)
            self._all()

    async def _follow(self, version: int) -> None:
        while True:
            try:
                async for change in self._store.watch(version):
                    version = change.version
                    self._route(change.object)
            except GoneError:
                log.info("More changes than the history holds; everything is looked at again.")
                version = self._store.version
                self._all()

    def _route(self, obj: Obj) -> None:
        key = objects.key(obj)
        match key.kind:
            case "PersistentVolumeClaim":
                self.claims.add(key)
                names = {str(obj["spec"].get("volumeName") or ""), binding.volume_name(obj)}
                for name in names:
                    self._wake(self.volumes, Key("PersistentVolume", "", name))
                for volume in self._store.list("PersistentVolume"):
                    if (volume["spec"].get("claimRef") or {}).get("uid") == obj["metadata"]["uid"]:
                        self.volumes.add(objects.key(volume))
                self._pods_of(key)
            case "PersistentVolume":
                self.volumes.add(key)
                ref = obj["spec"].get("claimRef") or {}
                named = Key("PersistentVolumeClaim", str(ref.get("namespace") or ""), str(ref.get("name") or ""))
                self._wake(self.claims, named)
                self._unbound_claims(str(key.name))
                self._pods_of(named)
            case "StorageClass":
                self._unbound_claims()
            case "Pod":
                self.pods.add(key)
                for name in claims_of(obj):
                    self._wake(self.claims, Key("PersistentVolumeClaim", key.namespace, name))
            case _:
                pass

    def _wake(self, queue: WorkQueue[Key], key: Key) -> None:
        if self._store.find(key) is not None:
            queue.add(key)

    def _unbound_claims(self, volume: str = "") -> None:
        for claim in self._store.list("PersistentVolumeClaim"):
            if BIND_COMPLETED not in annotations_of(claim) or (volume and claim["spec"].get("volumeName") == volume):
                self.claims.add(objects.key(claim))

    def _pods_of(self, claim: Key) -> None:
        for pod in self._store.list("Pod", claim.namespace):
            if claim.name in claims_of(pod):
                self.pods.add(objects.key(pod))

    def attachment_changed(self, row: Attachment) -> None:
        """A mount came or went: its claim may now be deleted, its volume reclaimed, another Pod may have its turn."""
        if not row.claim:
            return
        key = Key("PersistentVolumeClaim", row.namespace, row.claim)
        self._wake(self.claims, key)
        self._pods_of(key)
        for volume in self._store.list("PersistentVolume"):
            if (volume["spec"].get("claimRef") or {}).get("uid") == row.claim_uid:
                self.volumes.add(objects.key(volume))
