"""The application: every route of the agent's API."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import fusevol
from agent.api.resources import Resources
from agent.api.salvage import SalvageRoutes
from agent.api.status import body, failure, guarded
from agent.controllers.provisioning import handle_of, parse_handle
from agent.events import Recorder
from agent.moves import Moves
from agent.poolbook import Order
from agent.pools import Pools
from agent.probes import Probes
from agent.salvage import Salvage
from agent.store import Key, Store
from agent.supervisor import Supervisor
from agent.tally import Requests
from agent.volumes.attachments import mount_id
from agent.volumes.byhand import ByHand
from agent.volumes.mounter import Mounter
from fusevol import objects, quantity
from fusevol.errors import FusevolError, InvalidError, NotFoundError, UsageError
from fusevol.usage import Measured

Obj = dict[str, Any]
_USAGE_SECONDS = 2.0
"""How long a pool is asked for what its volumes use."""


class Api:
    """Handlers of everything that is not an object. For the trio loop."""

    def __init__(
        self,
        *,
        store: Store,
        events: Recorder,
        pools: Pools,
        mounter: Mounter,
        by_hand: ByHand,
        supervisor: Supervisor,
        salvage: Salvage,
        moves: Moves,
        probes: Probes,
        requests: Requests,
    ) -> None:
        """*requests* counts what is answered."""
        self._store = store
        self._events = events
        self._pools = pools
        self._mounter = mounter
        self._by_hand = by_hand
        self._supervisor = supervisor
        self._salvage = salvage
        self._moves = moves
        self._probes = probes
        self._requests = requests

    def app(self) -> Starlette:
        """The ASGI application."""
        fixed = [
            *self._probes.routes(),
            ("/version", self.version, "GET"),
            ("/v1/events", self.events, "GET"),
            ("/v1/usage", self.usage, "GET"),
            ("/v1/servers", self.servers, "GET"),
            ("/v1/servers/{name}", self.server, "GET"),
            ("/v1/upgrade", self.upgrade, "POST"),
            ("/v1/pools", self.pools, "GET"),
            ("/v1/pools", self.create_pool, "POST"),
            ("/v1/pools/{name}", self.pool, "GET"),
            ("/v1/pools/{name}", self.delete_pool, "DELETE"),
            ("/v1/pools/{name}/grow", self.grow_pool, "POST"),
            ("/v1/pools/{name}/check", self.check, "POST"),
            ("/v1/mounts", self.mounts, "GET"),
            ("/v1/mounts", self.mount, "POST"),
            ("/v1/mounts", self.unmount, "DELETE"),
            ("/v1/ephemeral", self.ephemeral, "POST"),
            ("/v1/moves", self.move, "POST"),
            ("/v1/containers/{namespace}/{pod}", self.containers, "POST"),
        ]
        routes = [Route(path, guarded(handler, self._requests), methods=[method]) for path, handler, method in fixed]
        return Starlette(
            routes=[
                *routes,
                *SalvageRoutes(self._salvage, self._requests).routes(),
                *Resources(self._store, self._requests).routes(),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    async def version(self, _: Request) -> Response:
        """The agent's version."""
        return JSONResponse({"version": fusevol.__version__})

    async def events(self, request: Request) -> Response:
        """Events, of one object or all."""
        return JSONResponse({"items": self._events.list(request.query_params.get("regarding"))})

    async def usage(self, _: Request) -> Response:
        """Used bytes by the uids of volumes and claims; of volumes that are mounted.

        Ledgers are read in memory that is shared with the servers; what the kernel counts is asked of each pool for all
        its volumes at once; what is left is asked of the servers.
        """
        used: dict[str, int] = {}
        claims = {o["metadata"]["uid"] for o in self._store.list("PersistentVolumeClaim")}

        def note(volume: Obj, count: int) -> None:
            used[volume["metadata"]["uid"]] = count
            uid = (volume["spec"].get("claimRef") or {}).get("uid")
            if isinstance(uid, str) and uid in claims:
                used[uid] = count

        async def ask(volume: Obj, name: str) -> None:
            found = await self._mounter.usage(name)
            if found is not None:
                note(volume, found[0])

        async def ask_pool(pool: str, volumes: dict[str, Obj]) -> None:
            known: dict[str, Measured] = {}
            with contextlib.suppress(FusevolError):
                known = await self._pools.glance(pool, lambda p: p.usages(volumes), _USAGE_SECONDS)
            for one, volume in volumes.items():
                if one in known:
                    note(volume, known[one].used_bytes)
                else:
                    nursery.start_soon(ask, volume, mount_id(pool, one))

        asked: dict[str, dict[str, Obj]] = {}
        for volume in self._store.named("PersistentVolume").values():
            try:
                pool, one = parse_handle(str(handle_of(volume)))
            except InvalidError:
                continue
            name = mount_id(pool, one)
            if (counted := self._supervisor.counted(name)) is not None:
                note(volume, counted.used_bytes)
            elif name in self._supervisor.servers:
                asked.setdefault(pool, {})[one] = volume
        async with trio.open_nursery() as nursery:
            for pool, volumes in asked.items():
                nursery.start_soon(ask_pool, pool, volumes)
        return JSONResponse(used)

    async def servers(self, _: Request) -> Response:
        """The volume servers, with what each says of itself; and the keeper that starts them, if it lives."""
        found: dict[str, Obj] = {}

        async def ask(name: str) -> None:
            found[name] = await self._status(name)

        async with trio.open_nursery() as nursery:
            for name in list(self._supervisor.servers):
                nursery.start_soon(ask, name)
        keeper = self._supervisor.keeper
        return JSONResponse(
            {
                "items": [found[name] for name in sorted(found)],
                "keeper": {"pid": keeper.pid, "version": keeper.version} if keeper else None,
            }
        )

    async def server(self, request: Request) -> Response:
        """One volume server, by its mount id."""
        name = request.path_params["name"]
        if name not in self._supervisor.servers:
            raise NotFoundError(f'No volume server runs for "{name}": `fusevol get servers` lists those that do.')
        return JSONResponse(await self._status(name))

    async def _status(self, name: str) -> Obj:
        server = self._supervisor.servers[name]
        try:
            answer = await self._supervisor.ask(name, {"op": "status"}, seconds=5.0)
        except FusevolError as e:
            answer = {"error": e.message}
        return {"mount_id": name, "pid": server.pid, "restarts": server.restarts} | {
            k: v for k, v in answer.items() if k != "ok"
        }

    async def upgrade(self, request: Request) -> Response:
        """Have all volumes served by the code that is installed now; answers when that is done."""
        await body(request)
        return JSONResponse((await self._supervisor.upgrade())._asdict())

    async def pools(self, _: Request) -> Response:
        """All pools; of one that does not answer its name, its path and the error."""
        found: dict[str, Obj] = {}

        async def ask(name: str) -> None:
            try:
                found[name] = await self._describe(name)
            except FusevolError as e:
                found[name] = {**self._pools.describe(name), "error": e.message}

        async with trio.open_nursery() as nursery:
            for name in self._pools.names:
                nursery.start_soon(ask, name)
        return JSONResponse({"items": [found[name] for name in self._pools.names]})

    async def pool(self, request: Request) -> Response:
        """One pool with its volumes."""
        name = request.path_params["name"]
        described = await self._describe(name)
        described["volumes"] = [_plain(v) for v in await self._pools.volumes(name)]
        return JSONResponse(described)

    async def _describe(self, name: str) -> Obj:
        driver, able = await self._pools.capabilities(name)
        return {
            **self._pools.describe(name),
            "driver": driver,
            "capabilities": _plain(able),
            "capacity": _plain(await self._pools.capacity(name)),
        }

    async def create_pool(self, request: Request) -> Response:
        """Make a pool: in a directory, on a device, in an image file."""
        order = Order.parse(await body(request))
        await self._pools.create(order)
        return JSONResponse(await self._describe(order.record.name), status_code=201)

    async def grow_pool(self, request: Request) -> Response:
        """Make a pool larger."""
        name, given = request.path_params["name"], await body(request)
        size = None if given.get("size") is None else quantity.parse(str(given["size"]))
        await self._pools.grow(name, size)
        return JSONResponse(await self._describe(name))

    async def delete_pool(self, request: Request) -> Response:
        """Delete a pool that has no volumes."""
        given = await body(request)
        name = request.path_params["name"]
        await self._pools.remove(name, forget=given.get("force") is True)
        return JSONResponse({"name": name})

    async def check(self, request: Request) -> Response:
        """Look for damage in a pool."""
        await body(request)  # empty; but who is answered before all is read may not be able to send the rest
        findings = await self._pools.check(request.path_params["name"])
        return JSONResponse({"items": [_plain(f) for f in findings]})

    async def mounts(self, _: Request) -> Response:
        """All attachments."""
        return JSONResponse({"items": self._by_hand.list()})

    async def mount(self, request: Request) -> Response:
        """Mount a claim by hand."""
        return JSONResponse(await self._by_hand.mount(await body(request)))

    async def unmount(self, request: Request) -> Response:
        """Undo a mount by hand."""
        given = await body(request)
        await self._by_hand.unmount(given or dict(request.query_params))
        return JSONResponse({"target": given.get("target") or request.query_params.get("target")})

    async def move(self, request: Request) -> Response:
        """Have a volume moved to another pool; answers when that has begun."""
        given = await body(request)
        words = {}
        for word in ("kind", "namespace", "name", "pool"):
            words[word] = given.get(word) or ""
            if not isinstance(words[word], str):
                raise UsageError(f"{word} must be a text.")
        kind, namespace, name, pool = words.values()
        if kind not in {"PersistentVolumeClaim", "PersistentVolume"} or not name or not pool:
            raise UsageError("Say which PersistentVolumeClaim or PersistentVolume is to be in which pool.")
        named = Key(kind, namespace if kind == "PersistentVolumeClaim" else "", name)
        return JSONResponse(await self._moves.begin(named, pool), status_code=202)

    async def containers(self, request: Request) -> Response:
        """Take note of how a Pod's containers are."""
        given = await body(request)
        key = Key("Pod", request.path_params["namespace"], request.path_params["pod"])
        changed = await self._store.change(
            key, lambda pod: objects.containers.enter(pod, given), uid=str(given.get("uid"))
        )
        return JSONResponse(changed["status"])

    async def ephemeral(self, request: Request) -> Response:
        """What a call-out asks for."""
        return JSONResponse(await self._by_hand.ephemeral(await body(request)))


def _plain(value: Any) -> Any:
    """A dataclass or named tuple as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {k: _plain(v) for k, v in zip(value._fields, value, strict=True)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


async def _http_error(request: Request, e: Exception) -> Response:
    code = e.status_code if isinstance(e, HTTPException) else 500
    reason = {404: "NotFound", 405: "MethodNotAllowed"}.get(code, "BadRequest")
    return failure(code, reason, f"The API has no {request.method} {request.url.path}.")
