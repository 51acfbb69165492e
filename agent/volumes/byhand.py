"""Mounts that a person or a call-out asks for: a claim, a hostPath or an emptyDir at a target of their choice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from agent.controllers.view import SELECTED_NODE, annotate, annotations_of, phase
from agent.events import Recorder
from agent.hazard import Hazards
from agent.pools import Pools
from agent.store import Key, Store
from agent.volumes import emptydir, hostpath, persistent
from agent.volumes.attachments import CALL_OUT_KINDS, Attachment
from agent.volumes.mounter import Mounter
from agent.volumes.node import Node
from agent.volumes.pods import attachment
from fusevol import objects
from fusevol.errors import AlreadyExistsError, InvalidError, NotFoundError, UnavailableError, UsageError

Obj = dict[str, Any]
_LONGEST = 4095
"""Bytes of a text in a request: those of a path (limits.h, without the final zero)."""
BIND_TIMEOUT = 20.0
"""Seconds that a mount waits for its claim to be bound."""


class ByHand:
    """The mounts outside of Pods. For the trio loop."""

    def __init__(
        self, *, store: Store, events: Recorder, pools: Pools, mounter: Mounter, hazards: Hazards, node: Node
    ) -> None:
        self._hazards = hazards
        self._store = store
        self._events = events
        self._pools = pools
        self._mounter = mounter
        self._node = node

    def list(self) -> list[Obj]:
        """All attachments, also those of Pods."""
        return [describe(a) for a in self._mounter.attachments]

    async def mount(self, request: Mapping[str, Any]) -> Obj:
        """Mount a claim: ``claim``, ``namespace``, ``target``, ``readOnly``, ``pod``.

        Waits a little for it to be bound.
        """
        claim = _text(request, "claim", required=True)
        namespace = _text(request, "namespace") or "default"
        target = await self._target(request)
        self._mounter.check_target(target)
        user = _text(request, "pod") or f"target {target}"
        read_only = _flag(request, "readOnly")
        known = self._mounter.attachments.find(target)
        if known and (known.namespace, known.claim) == (namespace, claim) and known.read_only >= read_only:
            return describe(await self._mounter.attach(known))
        return describe(
            await self._mount_claim(Key("PersistentVolumeClaim", namespace, claim), target, user, read_only)
        )

    async def ephemeral(self, request: Mapping[str, Any]) -> Obj:
        """What a call-out asks for: ``kind``, ``target`` and ``options``; makes what is missing."""
        kind = _text(request, "kind", required=True)
        if kind not in CALL_OUT_KINDS:
            raise UsageError(f'"{kind}" is no kind of volume: choose one of {", ".join(CALL_OUT_KINDS)}.')
        options = request.get("options") or {}
        if not isinstance(options, dict):
            raise UsageError("options must be a mapping.")
        target = await self._target(request)
        self._mounter.check_target(target)
        if kind == "hostPath":
            return describe(await self._host_path(target, options))
        if kind == "emptyDir":
            return describe(await self._empty_dir(target, options))
        await self._ensure_claim(options)
        return await self.mount({**options, "target": target})

    async def unmount(self, request: Mapping[str, Any]) -> None:
        """Undo the mount at ``target``; nothing to do if there is none."""
        target = await self._target(request)
        known = self._mounter.attachments.find(target)
        if known is not None and known.pod:
            raise InvalidError(f"{target} belongs to a Pod: delete the Pod to unmount it.")
        await self._mounter.detach(target)

    async def _target(self, request: Mapping[str, Any]) -> str:
        """The target of a request, its parent's symbolic links resolved. Raises :class:`UsageError`.

        The last component is not looked at: it may be a mount that hangs.
        """
        path = target_of(request)
        where = self._hazards.of(f"The directory {path.parent}")
        return str(Path(await where.run(lambda: os.path.realpath(path.parent))) / path.name)

    async def _mount_claim(self, key: Key, target: str, user: str, read_only: bool) -> Attachment:
        claim = await self._bound(key)
        volume = self._store.find(Key("PersistentVolume", "", str(claim["spec"].get("volumeName") or "")))
        behind = persistent.gate(claim, key.name, volume, self._node)

        def check() -> None:
            others = [a.user for a in self._mounter.attachments.of_claim(claim["metadata"]["uid"])]
            persistent.check_single(claim, user, others)

        if behind.path:
            await hostpath.prepared(self._hazards, behind.path, behind.path_type)
        row = attachment(target, claim, behind, read_only=read_only or behind.read_only, user=user)
        return await self._mounter.attach(row, check=check)

    async def _bound(self, key: Key) -> Obj:
        """The claim, once it is bound; as it is when that takes too long or cannot happen."""
        since = self._store.version
        claim = self._store.get(key)
        with trio.move_on_after(BIND_TIMEOUT):
            if phase(claim) in {"", "Pending"} and SELECTED_NODE not in annotations_of(claim):
                # a mount by hand is a first consumer, too (WaitForFirstConsumer)
                claim = await self._store.change(key, lambda c: annotate(c).update({SELECTED_NODE: self._node.name}))
            if phase(claim) in {"", "Pending"}:
                async for change in self._store.watch(since):
                    if objects.key(change.object) == key:
                        claim = self._store.get(key)
                        if phase(claim) not in {"", "Pending"}:
                            break
        if phase(claim) in {"", "Pending"}:
            told = self._events.list(claim["metadata"]["uid"])
            why = f": {told[-1]['message']}" if told else "."
            raise UnavailableError(f'The claim "{key.name}" is still not bound after {BIND_TIMEOUT:g} s{why}')
        return claim

    async def _ensure_claim(self, options: Mapping[str, Any]) -> None:
        name = _text(options, "claim", required=True)
        namespace = _text(options, "namespace") or "default"
        if self._store.find(Key("PersistentVolumeClaim", namespace, name)) is not None:
            return
        size = options.get("size")
        if not size:
            raise NotFoundError(
                f'There is no claim "{name}" in namespace {namespace}: create it, or give a size to have it made.'
            )
        spec: Obj = {
            "accessModes": [_text(options, "accessMode") or "ReadWriteOnce"],
            "resources": {"requests": {"storage": str(size)}},
        }
        if storage_class := _text(options, "storageClass"):
            spec["storageClassName"] = storage_class
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
        try:
            await self._store.create(objects.admit(claim))
        except AlreadyExistsError:
            return

    async def _host_path(self, target: str, options: Mapping[str, Any]) -> Attachment:
        path = _text(options, "path", required=True)
        await hostpath.prepared(self._hazards, path, _text(options, "type"))
        return await self._mounter.attach(
            Attachment(target=target, kind="hostPath", path=path, read_only=_flag(options, "readOnly"), user=target)
        )

    async def _empty_dir(self, target: str, options: Mapping[str, Any]) -> Attachment:
        pool = _text(options, "pool") or self._pools.preferred
        self._pools.path(pool)
        source = {"sizeLimit": options.get("size"), "medium": options.get("medium") or ""}
        volume = f"empty-{hashlib.sha256(target.encode()).hexdigest()[:24]}"
        row = Attachment(
            target=target,
            kind="emptyDir",
            pool=pool,
            volume=volume,
            read_only=_flag(options, "readOnly"),
            user=target,
            owned=True,
        )
        wanted = emptydir.request(volume, source, {"target": target})
        return await self._mounter.attach(row, lambda: self._pools.provision(pool, wanted))


def target_of(request: Mapping[str, Any]) -> Path:
    """The target of a request, as it is written there. Raises :class:`UsageError`."""
    target = _text(request, "target", required=True)
    if not target.startswith("/") or ".." in target.split("/"):
        raise UsageError(f'The target "{target}" must be an absolute path without "..".')
    path = Path(os.path.normpath(target))
    if str(path) == "/":
        raise UsageError("The target / is the root of this machine: name a directory.")
    return path


def describe(row: Attachment) -> Obj:
    """An attachment as the API shows it."""
    shown: Obj = {"target": row.target, "kind": row.kind, "readOnly": row.read_only}
    for name, value in (
        ("pool", row.pool),
        ("volume", row.volume),
        ("path", row.path),
        ("subPath", row.sub_path),
        ("medium", row.medium),
        ("namespace", row.namespace),
        ("claim", row.claim),
        ("pod", row.pod),
        ("mountId", row.mount_id),
    ):
        if value:
            shown[name] = value
    return shown


def _text(request: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = request.get(name)
    if value is None or value == "":
        if required:
            raise UsageError(f"The request lacks {name}: add it.")
        return ""
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text.")
    if "\0" in value or len(value.encode()) > _LONGEST:
        raise UsageError(f"{name} must have at most {_LONGEST} bytes, and no zero among them.")
    return value


def _flag(request: Mapping[str, Any], name: str) -> bool:
    value = request.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false.")
    return value
