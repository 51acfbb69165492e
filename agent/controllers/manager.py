"""Runs the controllers: builds what they look at, and wakes the one whose object something else's change concerns."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from typing import Any

import trio

from agent.controllers import binding, reclaim, schedule, snapshots
from agent.controllers.effects import Effects
from agent.controllers.pods import PodController
from agent.controllers.queue import WorkQueue
from agent.controllers.view import (
    BIND_COMPLETED,
    Action,
    Event,
    Put,
    View,
    annotations_of,
    class_of,
    phase,
    volume_name,
)
from agent.moves import Moves
from agent.store import Key, Store, now
from agent.volumes.attachments import Attachment
from agent.volumes.mounter import Mounter
from agent.volumes.node import Node
from agent.volumes.pods import claims_of, objects_of
from agent.watch import GoneError
from fusevol import objects
from fusevol.errors import ConflictError

Obj = dict[str, Any]
RESYNC = 120.0
"""Seconds after which everything is looked at again, changed or not."""

_NOBODY = ("", "")
"""The claim of a volume that has none."""
_ATTEMPTS = 10
"""How often a claim's binding is decided anew because somebody else has changed what it was decided on."""
_ANY = "*"
"""Stands for whatever volume a claim may get; no volume has that name."""

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
        moves: Moves,
        provisioners: tuple[str, ...],
        node: Node,
        heal: WorkQueue[str],
    ) -> None:
        self._store = store
        self._mounter = mounter
        self._pod_controller = pod_controller
        self._effects = effects
        self._provisioners = provisioners
        self._node = node
        self._heal = heal
        self._users = store.index("Pod", lambda pod: [(pod["metadata"]["namespace"], c) for c in claims_of(pod)])
        self._showing = store.index(
            "Pod", lambda pod: [Key(kind, pod["metadata"]["namespace"], name) for kind, name in objects_of(pod)]
        )
        self._referring = store.index("PersistentVolume", lambda volume: [_claim_uid(volume)])
        self._offered = store.index("PersistentVolume", lambda volume: [_claim_name(volume)])
        self._wanting = store.index("PersistentVolumeClaim", _wanted)
        self._filled = store.index("PersistentVolumeClaim", _filled_from)
        self._taken_of = store.index("VolumeSnapshot", _taken_of)
        self._binding = trio.Lock()
        self.claims: WorkQueue[Key] = WorkQueue("claim", self._claim)
        self.volumes: WorkQueue[Key] = WorkQueue("volume", self._volume)
        self.moves: WorkQueue[Key] = WorkQueue("move", moves.go_on, workers=1)
        self.pods: WorkQueue[Key] = WorkQueue("pod", self._pod, workers=32)
        self.snapshots: WorkQueue[Key] = WorkQueue("snapshot", self._snapshot)
        self.contents: WorkQueue[Key] = WorkQueue("snapshot content", self._content)
        self.schedules: WorkQueue[Key] = WorkQueue("snapshot schedule", self._schedule, workers=1)

    def view(self, claim: Key | None = None) -> View:
        """The objects as they are now, for a decision that is made at once; on *claim*, if it is one on a claim."""
        users, candidates = {}, []
        if claim is not None:
            named = (claim.namespace, claim.name)
            users[named] = [str(pod["metadata"]["name"]) for pod in self._users.of(named)]
            candidates = [*self._offered.of(_NOBODY), *self._offered.of(named)]
        return View(
            volumes=self._store.named("PersistentVolume"),
            claims=self._store.named("PersistentVolumeClaim"),
            classes=self._store.named("StorageClass"),
            snapshots=self._store.named("VolumeSnapshot"),
            contents=self._store.named("VolumeSnapshotContent"),
            snapshot_classes=self._store.named("VolumeSnapshotClass"),
            candidates=candidates,
            users=users,
            attached=self._mounter.attachments.claims,
            provisioners=self._provisioners,
            node=self._node,
            now=now(),
        )

    async def _claim(self, key: Key) -> None:
        """Bind claims one after the other, the oldest first, to what was there before: who gets what depends neither
        on how long a write takes nor on whether the agent was killed meanwhile. Making a volume holds up nobody."""
        async with self._binding:
            for volume in [objects.key(v) for v in self._offered.of(_NOBODY) if not phase(v)]:
                await self._make_available(volume)
            actions = self._decided(key)
            for _ in range(_ATTEMPTS):
                if not all(isinstance(action, Put | Event) for action in actions):
                    break
                try:
                    await self._effects.carry_out(actions)
                except ConflictError:  # somebody has changed the claim or the volume; the next claim must not be faster
                    actions = self._decided(key)
                else:
                    return
        await self._effects.carry_out(actions)

    def _decided(self, key: Key) -> list[Action]:
        claim = self._store.find(key)
        return [] if claim is None else binding.decide(claim, self.view(key))

    async def _make_available(self, key: Key) -> None:
        """Take the first look at a new volume, unless it is being taken already."""
        while (volume := self._store.find(key)) is not None and not phase(volume):
            actions = reclaim.decide(volume, self.view())
            if not actions:
                return
            with contextlib.suppress(ConflictError):
                await self._effects.carry_out(actions)

    async def _volume(self, key: Key) -> None:
        volume = self._store.find(key)
        if volume is not None:
            await self._effects.carry_out(reclaim.decide(volume, self.view()))

    async def _pod(self, key: Key) -> None:
        await self._pod_controller.reconcile(key)

    async def _snapshot(self, key: Key) -> None:
        snapshot = self._store.find(key)
        if snapshot is not None:
            await self._effects.carry_out(snapshots.decide(snapshot, self.view()))

    async def _content(self, key: Key) -> None:
        content = self._store.find(key)
        if content is not None:
            await self._effects.carry_out(snapshots.decide_content(content, self.view()))

    async def _schedule(self, key: Key) -> float | None:
        claim = self._store.find(key)
        found = claim and self._store.find(Key("StorageClass", "", class_of(claim) or ""))
        if not claim or not found or found["provisioner"] not in self._provisioners:
            return None
        wanted = schedule.Schedule.of(found)
        if wanted is None:
            return None
        taken = self._taken_of.of((key.namespace, key.name))
        steps, again = schedule.decide(claim, wanted, taken, dt.datetime.now(dt.UTC))
        await self._effects.carry_out(steps)
        return again

    @property
    def queues(self) -> tuple[WorkQueue[Any], ...]:
        """All queues of work, that of mounts included."""
        return (*self._queues, self._heal)

    @property
    def _queues(self) -> tuple[WorkQueue[Key], ...]:
        return (self.claims, self.volumes, self.moves, self.pods, self.snapshots, self.contents, self.schedules)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled. Started once everything has been looked at for the first time."""
        async with trio.open_nursery() as nursery:
            for queue in self._queues:
                await nursery.start(queue.run)
            await nursery.start(self._heal.run)
            version = self._store.version
            self._all()
            nursery.start_soon(self._follow, version)
            nursery.start_soon(self._resync, nursery)
            for queue in (self.volumes, self.claims):
                await queue.drained()
            task_status.started()

    def hurry(self) -> None:
        """Try again now what has failed: something that hung answers again."""
        for queue in self._queues:
            queue.hurry()
        self._heal.hurry()

    def _all(self) -> None:
        for kind, queue in (
            ("PersistentVolume", self.volumes),
            ("PersistentVolume", self.moves),
            ("PersistentVolumeClaim", self.claims),
            ("PersistentVolumeClaim", self.schedules),
            ("Pod", self.pods),
            ("VolumeSnapshot", self.snapshots),
            ("VolumeSnapshotContent", self.contents),
        ):
            for obj in self._store.named(kind).values():
                queue.add(objects.key(obj))

    async def _resync(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(RESYNC)
            self._all()
            nursery.start_soon(self._pod_controller.remove_strangers)

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
                self.schedules.add(key)
                names = {str(obj["spec"].get("volumeName") or ""), volume_name(obj)}
                for name in names:
                    self._wake(self.volumes, Key("PersistentVolume", "", name))
                self._volumes_of(str(obj["metadata"]["uid"]))
                self._pods_of(key)
                self._cut_from(key)
            case "PersistentVolume":
                self.volumes.add(key)
                self.moves.add(key)
                owner = _claim_name(obj)
                self._wake(self.claims, Key("PersistentVolumeClaim", *owner))
                if owner != _NOBODY:
                    self._cut_from(Key("PersistentVolumeClaim", *owner))  # which wait until it is not moved any more
                self._claims_of(_ANY if owner == _NOBODY else key.name)
                self._pods_of(Key("PersistentVolumeClaim", *owner))
            case "StorageClass":
                self._claims_of(_ANY)
                for claim in self._store.list("PersistentVolumeClaim"):
                    if class_of(claim) == key.name:
                        self.schedules.add(objects.key(claim))
            case "Secret" | "ConfigMap":
                if key.kind == "Secret":  # which may have the key of a class's storage
                    self._claims_of(_ANY)
                for pod in self._showing.of(key):
                    self.pods.add(objects.key(pod))
            case "VolumeSnapshot":
                self.snapshots.add(key)
                self._wake(
                    self.schedules, Key("PersistentVolumeClaim", key.namespace, objects.snapshot.claim_name(obj))
                )
                for name in filter(None, (objects.snapshot.content_name(obj), snapshots.content_name(obj))):
                    self._wake(self.contents, Key("VolumeSnapshotContent", "", name))
                self._filling(key)
            case "VolumeSnapshotContent":
                self.contents.add(key)
                self._wake(self.snapshots, Key("VolumeSnapshot", *snapshots.snapshot_of(obj)))
            case "VolumeSnapshotClass":
                for snapshot in self._store.list("VolumeSnapshot"):
                    self.snapshots.add(objects.key(snapshot))
            case "Pod" if not self._pod_controller.wrote(obj):
                self.pods.add(key)
                for name in claims_of(obj):
                    self._wake(self.claims, Key("PersistentVolumeClaim", key.namespace, name))
            case _:
                pass

    def _wake(self, queue: WorkQueue[Key], key: Key) -> None:
        if self._store.find(key) is not None:
            queue.add(key)

    def _claims_of(self, volume: str) -> None:
        """Look at the claims that have or name *volume*; with :data:`_ANY`, at all that are not bound."""
        for claim in self._wanting.of(volume):
            self.claims.add(objects.key(claim))

    def _cut_from(self, claim: Key) -> None:
        """Look at the snapshots of *claim*, at the one that it is filled from, and at its clones."""
        for snapshot in self._taken_of.of((claim.namespace, claim.name)):
            self.snapshots.add(objects.key(snapshot))
        self._filling(claim)
        found = self._store.find(claim)
        for kind, namespace, name in _filled_from(found) if found is not None else []:
            if kind == "VolumeSnapshot":
                self._wake(self.snapshots, Key(kind, namespace, name))

    def _filling(self, source: Key) -> None:
        """Look at the claims that are filled from *source*, if they are not bound yet."""
        for claim in self._filled.of((source.kind, source.namespace, source.name)):
            if BIND_COMPLETED not in annotations_of(claim):
                self.claims.add(objects.key(claim))

    def _volumes_of(self, claim_uid: str) -> None:
        for volume in self._referring.of(claim_uid):
            self.volumes.add(objects.key(volume))

    def _pods_of(self, claim: Key) -> None:
        for pod in self._users.of((claim.namespace, claim.name)):
            self.pods.add(objects.key(pod))

    def attachment_changed(self, row: Attachment) -> None:
        """A mount came or went: its claim may now be deleted, its volume reclaimed, another Pod may have its turn."""
        if not row.claim:
            return
        key = Key("PersistentVolumeClaim", row.namespace, row.claim)
        self._wake(self.claims, key)
        for pod in self._users.of((key.namespace, key.name)):
            # not the Pod whose mount it is: one that fails takes its attachment back, and has to wait for its next try
            if pod["metadata"]["uid"] != row.pod:
                self.pods.add(objects.key(pod))
        self._volumes_of(row.claim_uid)


def _claim_name(volume: Obj) -> tuple[str, str]:
    ref = volume["spec"].get("claimRef") or {}
    return str(ref.get("namespace") or ""), str(ref.get("name") or "")


def _claim_uid(volume: Obj) -> str:
    return str((volume["spec"].get("claimRef") or {}).get("uid") or "")


def _wanted(claim: Obj) -> list[str]:
    """The volume that a claim has or names, and :data:`_ANY` while it is not bound."""
    named = str(claim["spec"].get("volumeName") or "")
    return [*([named] if named else []), *([_ANY] if BIND_COMPLETED not in annotations_of(claim) else [])]


def _filled_from(claim: Obj) -> list[tuple[str, str, str]]:
    """Kind, namespace and name of what a claim's volume is filled from."""
    source = claim["spec"].get("dataSource")
    return [(str(source["kind"]), str(claim["metadata"]["namespace"]), str(source["name"]))] if source else []


def _taken_of(snapshot: Obj) -> list[tuple[str, str]]:
    """Namespace and name of the claim that a snapshot is of."""
    name = objects.snapshot.claim_name(snapshot)
    return [(str(snapshot["metadata"]["namespace"]), name)] if name else []
