"""Pods: prepares the volumes of those that were accepted, takes down those of the deleted."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import trio

from agent.controllers.view import being_deleted, finalizers
from agent.events import Recorder
from agent.hazard import Hazards
from agent.pools import Pools
from agent.steps import Step, no_step
from agent.store import Key, Store, now
from agent.volumes import contents, ephemeral, hostpath, orphans, persistent, places, scratch
from agent.volumes.attachments import Attachment
from agent.volumes.mounter import Mounter
from agent.volumes.node import Node
from agent.volumes.pods import FINALIZER, READY, claims_to_make, container_mounts, is_ready, plan
from agent.volumes.wanted import Context, Problem, Wanted
from fusevol import objects
from fusevol.errors import AlreadyExistsError, FusevolError, InvalidError, NotFoundError, UnavailableError

Obj = dict[str, Any]
SLOW_GROUP = 30.0
"""Seconds after which it is told that a volume's files are still being given to the Pod's group."""
SLOW_GROUP_AGAIN = 60.0
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
        node: Node,
        step: Step = no_step,
    ) -> None:
        """*root* takes a directory per Pod."""
        self._node = node
        self._hazards = hazards
        self._store = store
        self._events = events
        self._pools = pools
        self._mounter = mounter
        self._root = root
        self._step = step
        self._strangers: set[str] = set()
        """Uids of Pods that are gone, and whose leftovers are being undone."""
        self._written: dict[Key, str] = {}
        """The versions that :meth:`_report` has written."""

    def wrote(self, pod: Obj) -> bool:
        """Whether *pod* is as this controller has just told its state: nothing in it asks for another look."""
        return self._written.get(objects.key(pod)) == str(pod["metadata"]["resourceVersion"])

    async def reconcile(self, key: Key) -> None:
        """Bring a Pod's volumes in step with the Pod. Raises :class:`UnavailableError` when it must be tried again."""
        pod = self._store.find(key)
        if pod is None:
            self._written.pop(key, None)
            return
        if being_deleted(pod):
            await self._torn_down(key, pod)
        elif FINALIZER not in finalizers(pod):
            await self._store.change(key, _protect, uid=pod["metadata"]["uid"])
        else:
            await self._prepared(key, pod)

    async def unready(self, uids: Collection[str]) -> None:
        """Say of some Pods that their volumes are not mounted: nobody shall start a container on what is beneath."""

        def write(current: Obj) -> None:
            _put_condition(current, "False", "NotMounted", "The volumes are being mounted again.")

        for pod in self._store.list("Pod"):
            if pod["metadata"]["uid"] in uids and is_ready(pod):
                with contextlib.suppress(NotFoundError):
                    await self._store.change(objects.key(pod), write, uid=pod["metadata"]["uid"])

    async def restore(self, uids: Collection[str]) -> None:
        """Prepare the volumes of some Pods again, whose mounts the machine has lost. For the start.

        What fails is told by the Pod's condition, and tried again by the queue.
        """
        async with trio.open_nursery() as nursery:
            for pod in self._store.list("Pod"):
                if pod["metadata"]["uid"] in uids:
                    nursery.start_soon(self._restore, objects.key(pod))

    async def _restore(self, key: Key) -> None:
        try:
            await self.reconcile(key)
        except (FusevolError, OSError) as e:
            log.info("The volumes of Pod %s/%s are not back yet: %s", key.namespace, key.name, _sentence(e))

    async def remove_strangers(self) -> None:
        """Undo what Pods that are gone have left, for as long as that takes: attachments, directories, claims."""
        left = {a.pod for a in self._mounter.attachments if a.pod}
        left |= set(await trio.to_thread.run_sync(orphans.directories, self._root))
        # last, so that nothing of a Pod that was created meanwhile counts as left
        uids = self._uids()
        async with trio.open_nursery() as nursery:
            for uid in left - uids - self._strangers:
                nursery.start_soon(self._remove_stranger, uid)
        for claim in self._store.list("PersistentVolumeClaim"):
            owner = ephemeral.owner_of(claim)
            if owner and owner not in self._uids() and not being_deleted(claim):
                await self._delete_claim(claim)

    def _uids(self) -> set[str]:
        return {p["metadata"]["uid"] for p in self._store.list("Pod")}

    async def _remove_stranger(self, uid: str) -> None:
        self._strangers.add(uid)
        try:
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
        finally:
            self._strangers.discard(uid)

    def _context(self, key: Key, pod: Obj) -> Context:
        namespace = key.namespace

        def claims(name: str) -> tuple[Obj | None, Obj | None]:
            claim = self._store.find(Key("PersistentVolumeClaim", namespace, name))
            volume = claim and self._store.find(Key("PersistentVolume", "", str(claim["spec"].get("volumeName") or "")))
            return claim, volume

        return Context(
            root=self._root,
            pool=self._pools.preferred,
            claims=claims,
            find=lambda kind, name: self._store.find(Key(kind, namespace, name)),
            node=self._node,
            existing={a.target: a for a in self._mounter.attachments.of_pod(pod["metadata"]["uid"])},
        )

    async def _prepared(self, key: Key, pod: Obj) -> None:
        context = self._context(key, pod)
        for claim in claims_to_make(pod, context):
            try:
                await self._store.create(objects.admit(claim))
                self._step("claim of the Pod made")
            except AlreadyExistsError:
                continue
            except InvalidError as e:
                await self._events.warning(pod, "FailedMount", str(e))
        planned, problems = plan(pod, context)
        for wanted in planned:
            try:
                problem = await self._set_up(pod, wanted)
            except (FusevolError, OSError) as e:
                problem = Problem(wanted.name, _sentence(e))
            problems += [problem] if problem is not None else []
        failed = {p.name for p in problems if p.blocking}
        ready = {w.name: w for w in planned if w.name not in failed}
        shown, parts, more = container_mounts(pod, ready, context)
        problems += more
        for name, part in parts:
            try:
                await self._mounter.attach(part)
            except (FusevolError, OSError) as e:
                problems.append(Problem(name, _sentence(e)))
        await self._report(key, pod, shown, problems)

    async def _set_up(self, pod: Obj, wanted: Wanted) -> Problem | None:
        """Have a volume mounted, with what belongs in it. The problem is one that stops no container."""
        if wanted.check is not None:
            await hostpath.prepared(self._hazards, *wanted.check)
        row = wanted.attachment
        if row is None:
            return None
        if wanted.request is not None and self._mounter.attachments.find(row.target) is None:
            await self._pools.provision(row.pool, wanted.request)
        row = await self._mounter.attach(row, check=lambda: self._check_single(wanted))
        if row.medium and wanted.read_only:
            written = await trio.to_thread.run_sync(contents.show, wanted)
            if written:
                self._step("files written")
            if wanted.failure:
                return Problem(wanted.name, wanted.failure, blocking=False)
        elif wanted.group is not None and not row.medium and not row.prepared:
            await self._given(pod, wanted, row)
        return None

    async def _given(self, pod: Obj, wanted: Wanted, row: Attachment) -> None:
        """Give a volume to the Pod's group, which may take long."""
        group = wanted.group
        assert group is not None  # noqa: S101 - whoever calls looks

        async def tell() -> None:
            await trio.sleep(SLOW_GROUP)
            text = (
                f'Setting volume ownership for volume "{wanted.name}" is taking longer than expected, consider using '
                "OnRootMismatch"
            )
            while True:
                await self._events.warning(pod, "VolumePermissionChangeInProgress", text)
                await trio.sleep(SLOW_GROUP_AGAIN)

        failure: OSError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                await self._hazards.of(f"The mount at {row.target}").run_long(lambda: contents.give(row.target, group))
            except OSError as e:
                failure = e
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        await self._mounter.prepared(row)

    def _check_single(self, wanted: Wanted) -> None:
        row = wanted.attachment
        if wanted.claim is not None and row is not None:
            others = [a.user for a in self._mounter.attachments.of_claim(row.claim_uid)]
            persistent.check_single(wanted.claim, row.user, others)

    async def _report(self, key: Key, pod: Obj, shown: list[Obj], problems: list[Problem]) -> None:
        told = [(p, f'MountVolume.SetUp failed for volume "{p.name}" : {p.message}') for p in problems]
        # a volume that shows what it did stays in use: that it ought to show something else is told by an event
        blocking = [text for problem, text in told if problem.blocking]
        message = "; ".join(blocking)

        def write(current: Obj) -> None:
            status = current.setdefault("status", {})
            status.setdefault("phase", "Pending")
            state, reason = ("False", "FailedMount") if blocking else ("True", "Mounted")
            _put_condition(current, state, reason, message)
            status["volumeMounts"] = [] if blocking else shown

        new = await self._store.change(key, write, uid=pod["metadata"]["uid"])
        if new["status"] != pod.get("status"):
            self._written[key] = new["metadata"]["resourceVersion"]
            self._step("Pod reported")
        for problem, text in told:
            await self._events.warning(pod, problem.reason, text)
        if told:
            raise UnavailableError("; ".join(text for _, text in told))

    async def _torn_down(self, key: Key, pod: Obj) -> None:
        uid = pod["metadata"]["uid"]
        try:
            for row in self._mounter.attachments.of_pod(uid):
                await self._mounter.detach(row.target)
            for volume in scratch.leftovers(pod):
                # also one that was made, but never attached
                await self._pools.discard_leftover(self._pools.preferred, volume)
            for claim in self._store.list("PersistentVolumeClaim", key.namespace):
                if ephemeral.owner_of(claim) == uid and not being_deleted(claim):
                    await self._delete_claim(claim)
            await self._remove_directory(self._root / uid)
            self._step("Pod's directory removed")
        except (FusevolError, OSError) as e:
            await self._events.warning(pod, "FailedUnmount", _sentence(e))
            raise e if isinstance(e, FusevolError) else UnavailableError(_sentence(e)) from e
        if FINALIZER in finalizers(pod):
            await self._store.change(key, _release, uid=uid)
            self._step("Pod let go")

    async def _delete_claim(self, claim: Obj) -> None:
        with contextlib.suppress(NotFoundError):
            await self._store.delete(objects.key(claim), uid=claim["metadata"]["uid"])
            self._step("claim of the Pod deleted")

    async def _remove_directory(self, directory: Path) -> None:
        await self._hazards.of(f"The directory {directory}").run(lambda: orphans.unmount(directory))
        kept = await trio.to_thread.run_sync(places.remove_empty_tree, directory)
        if kept:
            log.warning("%s is not empty and stays: look what is in it, and remove it by hand.", kept[0])


def _put_condition(pod: Obj, state: str, reason: str, message: str) -> None:
    """Set the condition VolumesReady."""
    status = pod.setdefault("status", {})
    others = [c for c in status.get("conditions") or [] if c["type"] != READY]
    old: Obj = next((c for c in status.get("conditions") or [] if c["type"] == READY), {})
    since = old.get("lastTransitionTime", now()) if old.get("status") == state else now()
    new = {"type": READY, "status": state, "message": message, "reason": reason, "lastTransitionTime": since}
    status["conditions"] = [*others, new]


def _protect(pod: Obj) -> None:
    pod["metadata"]["finalizers"] = [*finalizers(pod), FINALIZER]


def _release(pod: Obj) -> None:
    pod["metadata"]["finalizers"] = [f for f in finalizers(pod) if f != FINALIZER]


def _sentence(e: Exception) -> str:
    if isinstance(e, OSError):
        named = f"{e.filename}: " if e.filename else ""
        return f"{named}{e.strerror or errno.errorcode.get(e.errno or 0, str(e))}"
    return str(e)
