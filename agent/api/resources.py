"""The routes of the objects: list, get, create, replace, delete, apply, watch."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agent.api.status import body, guarded, status
from agent.controllers.view import CLAIM_PROTECTION, VOLUME_PROTECTION, class_of, default_class
from agent.store import Key, Store, select, version_of
from agent.tally import Requests
from agent.volumes.pods import FINALIZER
from agent.watch import GoneError
from fusevol import objects, quantity
from fusevol.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, UsageError

Obj = dict[str, Any]

_PROTECTION = {
    "PersistentVolumeClaim": CLAIM_PROTECTION,
    "PersistentVolume": VOLUME_PROTECTION,
    "Pod": FINALIZER,
}
_ATTEMPTS = 5


def with_admission(obj: Obj, store: Store) -> Obj:
    """An admitted object as it enters the store: protected from deletion while in use, a claim with a class (4.5)."""
    new = copy.deepcopy(obj)
    finalizer = _PROTECTION.get(obj["kind"])
    metadata = new["metadata"]
    if finalizer and finalizer not in (metadata.get("finalizers") or []):
        metadata["finalizers"] = [*(metadata.get("finalizers") or []), finalizer]
    if obj["kind"] == "PersistentVolumeClaim" and class_of(new) is None:
        classes = {o["metadata"]["name"]: o for o in store.list("StorageClass")}
        if (name := default_class(classes)) is not None:
            new["spec"]["storageClassName"] = name
    return new


class Resources:
    """Handlers for all kinds. For the trio loop."""

    def __init__(self, store: Store, requests: Requests) -> None:
        self._store = store
        self._requests = requests

    def routes(self) -> list[Route]:
        """What belongs into the application, after all routes with fixed paths."""
        handlers = {
            ("GET", False): self.list,
            ("POST", False): self.create,
            ("GET", True): self.get,
            ("PUT", True): self.replace,
            ("DELETE", True): self.delete,
        }
        found = [Route("/v1/apply", guarded(self.apply, self._requests), methods=["POST"])]
        for prefix in ("/v1/namespaces/{namespace}", "/v1"):
            for (method, named), handler in handlers.items():
                path = f"{prefix}/{{plural}}" + ("/{name}" if named else "")
                found.append(Route(path, guarded(handler, self._requests), methods=[method]))
        return found

    def _kind(self, request: Request) -> objects.Kind:
        word = request.path_params["plural"]
        for kind in objects.KINDS:
            if kind.plural == word:
                return kind
        raise NotFoundError(f'There is no resource "{word}" in this API.')

    def _key(self, request: Request) -> Key:
        kind = self._kind(request)
        namespace = request.path_params.get("namespace")
        if kind.namespaced:
            return Key(kind.name, namespace or "default", request.path_params["name"])
        return Key(kind.name, "", request.path_params["name"])

    async def list(self, request: Request) -> Response:
        """All objects of a kind, or a watch of them."""
        kind = self._kind(request)
        namespace = request.path_params.get("namespace") if kind.namespaced else None
        selector = request.query_params.get("labelSelector", "")
        if request.query_params.get("watch") in {"1", "true"}:
            since = request.query_params.get("resourceVersion") or str(self._store.version)
            if not since.isdigit():
                raise UsageError(f'"{since}" is no resource version: give the number from a list.')
            self._store.history.after(int(since))
            lines = self._watch(kind.name, namespace, selector, int(since))
            return StreamingResponse(lines, media_type="application/json")
        found = select(self._store.list(kind.name, namespace), selector)
        return JSONResponse(
            {
                "apiVersion": kind.api_version,
                "kind": f"{kind.name}List",
                "metadata": {"resourceVersion": str(self._store.version)},
                "items": found,
            }
        )

    async def _watch(self, kind: str, namespace: str | None, selector: str, since: int) -> AsyncIterator[bytes]:
        try:
            async for change in self._store.watch(since):
                obj = change.object
                metadata = obj["metadata"]
                if obj["kind"] != kind or namespace not in {None, metadata.get("namespace")}:
                    continue
                if select([obj], selector):
                    yield json.dumps({"type": change.type, "object": obj}).encode() + b"\n"
        except GoneError as e:
            gone = {"type": "ERROR", "object": status(e.http_status, e.reason, e.message)}
            yield json.dumps(gone).encode() + b"\n"

    async def get(self, request: Request) -> Response:
        """One object."""
        return JSONResponse(self._store.get(self._key(request)))

    async def create(self, request: Request) -> Response:
        """Add an object."""
        obj = self._addressed(request, await body(request))
        return JSONResponse(await self._create(obj), status_code=201)

    async def _create(self, obj: Obj) -> Obj:
        return await self._store.create(with_admission(objects.admit(obj), self._store))

    async def replace(self, request: Request) -> Response:
        """Replace an object."""
        key = self._key(request)
        obj = self._addressed(request, await body(request))
        if obj["metadata"].get("name") not in {None, key.name}:
            raise UsageError(f'The object is named "{obj["metadata"]["name"]}", the path says "{key.name}".')
        obj["metadata"]["name"] = key.name
        old = self._store.get(key)
        given = version_of(obj)
        if given and given != version_of(old):
            raise ConflictError(
                f'Operation cannot be fulfilled on {objects.find_kind(key.kind).plural} "{key.name}": the object has '
                "been modified; please apply your changes to the latest version and try again"
            )
        new = self._updated(old, obj)
        return JSONResponse(await self._store.update(new))

    async def delete(self, request: Request) -> Response:
        """Delete an object, or mark it for deletion."""
        return JSONResponse(await self._store.delete(self._key(request)))

    async def apply(self, request: Request) -> Response:
        """Create the object, or change it to what is given; with ``dryRun=All`` only tell what would come of it."""
        obj = _shaped(await body(request))
        dry = request.query_params.get("dryRun") == "All"
        for _ in range(_ATTEMPTS):
            key = objects.key(objects.admit(obj))
            old = self._store.find(key)
            if dry:
                if old is None:
                    new = with_admission(objects.admit(obj), self._store)
                    return JSONResponse({"result": "created", "object": new})
                new = self._updated(old, _overlaid(old, obj))
                return JSONResponse({"result": "unchanged" if new == old else "configured", "object": new})
            try:
                if old is None:
                    return JSONResponse({"result": "created", "object": await self._create(obj)})
                new = await self._store.update(self._updated(old, _overlaid(old, obj)))
            except (AlreadyExistsError, ConflictError, NotFoundError):
                continue
            result = (
                "unchanged"
                if new["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]
                else "configured"
            )
            return JSONResponse({"result": result, "object": new})
        raise ConflictError(f'"{obj["metadata"].get("name")}" is being changed all the time: try again.')

    def _updated(self, old: Obj, wanted: Obj) -> Obj:
        new = objects.admit_update(old, wanted)
        if old["kind"] == "PersistentVolumeClaim":
            self._check_expansion(old, new)
        new = copy.deepcopy(new)
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        return new

    def _check_expansion(self, old: Obj, new: Obj) -> None:
        """Growing needs the class's leave (4.2)."""
        if _requested(new) <= _requested(old):
            return
        storage_class = self._store.find(Key("StorageClass", "", class_of(old) or ""))
        if storage_class is None or not storage_class.get("allowVolumeExpansion"):
            raise InvalidError(
                f'PersistentVolumeClaim "{old["metadata"]["name"]}" is invalid: spec.resources.requests.storage: '
                "Forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the "
                "pvc must support resize"
            )

    def _addressed(self, request: Request, obj: Obj) -> Obj:
        """*obj* with the kind and namespace of the request's path."""
        kind = self._kind(request)
        new = _shaped(obj)
        if new.setdefault("kind", kind.name) != kind.name:
            raise UsageError(f"The object is a {new['kind']}, the path is for {kind.plural}.")
        new.setdefault("apiVersion", kind.api_version)
        namespace = request.path_params.get("namespace")
        if kind.namespaced and namespace and new["metadata"].setdefault("namespace", namespace) != namespace:
            raise UsageError(
                f'The object is in namespace "{new["metadata"]["namespace"]}", the path says "{namespace}".'
            )
        return new


def _shaped(obj: Obj) -> Obj:
    if not isinstance(obj.get("metadata", {}), dict):
        raise UsageError("metadata must be a mapping.")
    return {**obj, "metadata": dict(obj.get("metadata") or {})}


def _requested(claim: Obj) -> int:
    return quantity.parse(((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", 0))


def _overlaid(old: Obj, wanted: Obj) -> Obj:
    """*wanted* over what the agent itself has set in *old* (class, volume, annotations), as a three-way apply does."""
    new = copy.deepcopy(wanted)
    for field in ("annotations", "labels"):
        merged = {**(old["metadata"].get(field) or {}), **(new["metadata"].get(field) or {})}
        if merged:
            new["metadata"][field] = merged
    new["metadata"]["finalizers"] = list(old["metadata"].get("finalizers") or [])
    if not new["metadata"]["finalizers"]:
        del new["metadata"]["finalizers"]
    for field in ("resourceVersion", "uid"):
        new["metadata"].pop(field, None)
    owned = {
        "PersistentVolumeClaim": ("storageClassName", "volumeName"),
        "PersistentVolume": ("claimRef", "nodeAffinity"),
    }.get(old["kind"], ())
    for field in owned:
        if field in old["spec"] and isinstance(new.get("spec"), dict):
            new["spec"].setdefault(field, copy.deepcopy(old["spec"][field]))
    if new.get("metadata", {}).get("namespace") is None and old["metadata"].get("namespace"):
        new["metadata"]["namespace"] = old["metadata"]["namespace"]
    return new
