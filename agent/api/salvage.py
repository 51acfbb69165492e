"""The routes of the trash and of volumes that nobody knows."""

from __future__ import annotations

from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent.api.status import body, guarded
from agent.salvage import Action, Salvage
from agent.tally import Requests
from fusevol.errors import UsageError


class SalvageRoutes:
    """Handlers. For the trio loop."""

    def __init__(self, salvage: Salvage, requests: Requests) -> None:
        """*requests* counts what is answered."""
        self._salvage = salvage
        self._requests = requests

    def routes(self) -> list[Route]:
        """What belongs into the application."""
        entry = "/v1/pools/{pool}/trash/{entry}"
        return [
            Route("/v1/trash", guarded(self.trash, self._requests), methods=["GET"]),
            Route(f"{entry}/restore", guarded(self.restore, self._requests), methods=["POST"]),
            Route(entry, guarded(self.purge, self._requests), methods=["DELETE"]),
            Route("/v1/pools/{pool}/scan", guarded(self.scan, self._requests), methods=["POST"]),
        ]

    async def trash(self, request: Request) -> Response:
        """What is in the trash of all pools, or of one."""
        return JSONResponse(await self._salvage.trashed(request.query_params.get("pool")))

    async def restore(self, request: Request) -> Response:
        """Take a volume out of the trash for a new claim."""
        given = await body(request)
        words = {}
        for word in ("claim", "namespace"):
            words[word] = given.get(word) or ""
            if not isinstance(words[word], str):
                raise UsageError(f"{word} must be a text.")
        pool, entry = request.path_params["pool"], request.path_params["entry"]
        made = await self._salvage.restore(pool, entry, words["claim"], words["namespace"] or "default")
        return JSONResponse(made, status_code=201)

    async def purge(self, request: Request) -> Response:
        """Delete something in the trash for ever; answers when that is done."""
        await body(request)
        pool, entry = request.path_params["pool"], request.path_params["entry"]
        await self._salvage.purge(pool, entry)
        return JSONResponse({"pool": pool, "name": entry})

    async def scan(self, request: Request) -> Response:
        """Find the volumes that nobody knows; with an ``action``, adopt or purge them."""
        given = await body(request)
        action, others = given.get("action"), given.get("others") or False
        if not isinstance(others, bool):
            raise UsageError("others must be true or false.")
        if action not in {None, "adopt", "purge"}:
            raise UsageError("action must be adopt or purge, or be left out: then nothing is changed.")
        found = await self._salvage.scan(request.path_params["pool"], cast("Action | None", action), others=others)
        return JSONResponse({"items": found})
