"""Pods: prepares the volumes of those that were accepted, takes down those of the deleted."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import trio

from agent.controllers.view import being_deleted, finalizers
from agent.events import Recorder
from agent.hazard import Hazards
from agent.pools import Pools
from agent.steps import Step, no_step
from agent.store import Key, Store, now
from agent.volumes import emptydir, hostpath, persistent, places
from agent.volumes.attachments import Attachment
from agent.volumes.mounter import Mounter
from agent.volumes.pods import FINALIZER, READY, Problem, Wanted, container_mounts, plan
from fusevol.errors import FusevolError, UnavailableError

Obj = dict[str, Any]
STRANGER_PAUSE = 30.0
"""Seconds after which it is tried again to undo what a Pod has left that no longer exists."""

log = logging.getLogger(__name__)


class PodController:
    """Looks at one Pod at a time. For the trio loop."""

    def __init__(
        self,
        *,
        store: Store,
        events: Recorder,
        pools: Pools,
        mounter: Mounter,
        hazards: Hazards,
        root: Path,
        step: Step = no_step,
    ) -> None:
        """*root* takes a directory per Pod."""
        self._hazards = hazards
        self._store = store
        self._events = events
        self._pools = pools
        self._mounter = mounter
        self._root = root
        self._step = step

    async def reconcile(self, key: Key) -> None:
        """Bring a Pod's volumes in step with the Pod. Raises :class:`UnavailableError` when it must be tried again."""
        pod = self._store.find(key)
        if pod is None:
            return
        if being_deleted(pod):
            await self._torn_down(key, pod)
        elif FINALIZER not in finalizers(pod):
            await self._store.change(key, _protect, uid=pod["metadata"]["uid"])
        else:
            await self._prepared(key, pod)

    async def remove_strangers(self) -> None:
        """Undo the attachments of Pods that no longer exist, for as long as that takes. For the start."""
        uids = {p["metadata"]["uid"] for p in self._store.list("Pod")}
        async with trio.open_nursery() as nursery:
            for uid in {a.pod for a in self._mounter.attachments if a.pod} - uids:
                nursery.start_soon(self._remove_stranger, uid)

    async def _remove_stranger(self, uid: str) -> None:
        while True:
            try:
                for row in self._mounter.attachments.of_pod(uid):
                    await self._mounter.detach(row.target)
                await self._remove_directory(self._root / uid)
            except (FusevolError, OSError) as e:
                log.warning("What a Pod that is gone has left cannot be undone yet: %s", _sentence(e))
                await trio.sleep(STRANGER_PAUSE)
            else:
                return

    async def _prepared(self, key: Key, pod: Obj) -> None:
        namespace = key.namespace

        def lookup(name: str) -> tuple[Obj | None, Obj | None]:
            claim = self._store.find(Key("PersistentVolumeClaim", namespace, name))
            volume = claim and self._store.find(Key("PersistentVolume", "", str(claim["spec"].get("volumeName") or "")))
            return claim, volume

        existing = {a.target: a for a in self._mounter.attachments.of_pod(pod["metadata"]["uid"])}
        planned, problems = plan(pod, root=self._root, pool=self._pools.preferred, lookup=lookup, existing=existing)
        for wanted in planned:
            try:
                await self._set_up(pod, wanted)
            except (FusevolError, OSError) as e:
                problems.append(Problem(wanted.name, _sentence(e)))
        failed = {p.name for p in problems}
        ready = {w.name: w for w in planned if w.name not in failed}
        shown, parts, more = container_mounts(pod, ready, self._root)
        problems += more
        for name, part in parts:
            try:
                await self._mounter.attach(part)
            except (FusevolError, OSError) as e:
                problems.append(Problem(name, _sentence(e)))
        await self._report(key, pod, shown, problems)

    async def _set_up(self, pod: Obj, wanted: Wanted) -> None:
        if wanted.check is not None:
            await hostpath.prepared(self._hazards, *wanted.check)
        row = wanted.attachment
        if row is None:
            return
        if wanted.claim is not None:
            self._check_single(wanted.claim, row)
        if wanted.empty is not None and self._mounter.attachments.find(row.target) is None:
            metadata = pod["metadata"]
            owner = {"namespace": metadata["namespace"], "pod": metadata["name"], "uid": metadata["uid"]}
            await self._pools.provision(row.pool, emptydir.request(row.volume, wanted.empty, owner))
        await self._mounter.attach(row)

    def _check_single(self, claim: Obj, row: Attachment) -> None:
        others = [a.user for a in self._mounter.attachments.of_claim(row.claim_uid)]
        persistent.check_single(claim, row.user, others)

    async def _report(self, key: Key, pod: Obj, shown: list[Obj], problems: list[Problem]) -> None:
        message = "; ".join(f'MountVolume.SetUp failed for volume "{p.name}" : {p.message}' for p in problems)

        def write(current: Obj) -> None:
            status = current.setdefault("status", {})
            status.setdefault("phase", "Pending")
            conditions = [c for c in status.get("conditions") or [] if c["type"] != READY]
            old: Obj = next((c for c in status.get("conditions") or [] if c["type"] == READY), {})
            state = "False" if problems else "True"
            new = {
                "type": READY,
                "status": state,
                "message": message,
                "reason": "FailedMount" if problems else "Mounted",
            }
            same = old.get("status") == state
            new["lastTransitionTime"] = old.get("lastTransitionTime", now()) if same else now()
            status["conditions"] = [*conditions, new]
            status["volumeMounts"] = [] if problems else shown

        new = await self._store.change(key, write, uid=pod["metadata"]["uid"])
        if new["status"] != pod.get("status"):
            self._step("Pod reported")
        for problem in problems:
            text = f'MountVolume.SetUp failed for volume "{problem.name}" : {problem.message}'
            await self._events.warning(pod, problem.reason, text)
        if problems:
            raise UnavailableError(message)

    async def _torn_down(self, key: Key, pod: Obj) -> None:
        uid = pod["metadata"]["uid"]
        try:
            for row in self._mounter.attachments.of_pod(uid):
                await self._mounter.detach(row.target)
            for volume in pod["spec"].get("volumes") or []:
                if "emptyDir" in volume:
                    # also one that was made, but never attached
                    await self._pools.discard_leftover(self._pools.preferred, emptydir.volume_id(uid, volume["name"]))
            await self._remove_directory(self._root / uid)
            self._step("Pod's directory removed")
        except (FusevolError, OSError) as e:
            await self._events.warning(pod, "FailedUnmount", _sentence(e))
            raise e if isinstance(e, FusevolError) else UnavailableError(_sentence(e)) from e
        if FINALIZER in finalizers(pod):
            await self._store.change(key, _release, uid=uid)
            self._step("Pod let go")

    async def _remove_directory(self, directory: Path) -> None:
        kept = await trio.to_thread.run_sync(places.remove_empty_tree, directory)
        if kept:
            log.warning("%s is not empty and stays: look what is in it, and remove it by hand.", kept[0])


def _protect(pod: Obj) -> None:
    pod["metadata"]["finalizers"] = [*finalizers(pod), FINALIZER]


def _release(pod: Obj) -> None:
    pod["metadata"]["finalizers"] = [f for f in finalizers(pod) if f != FINALIZER]


def _sentence(e: Exception) -> str:
    if isinstance(e, OSError):
        named = f"{e.filename}: " if e.filename else ""
        return f"{named}{e.strerror or errno.errorcode.get(e.errno or 0, str(e))}"
    return str(e)
