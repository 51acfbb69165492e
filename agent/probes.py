"""Metrics and probes, for those who look after the agent: on the API's socket, and on a TCP address for them alone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent.address import Address
from agent.api import serving
from agent.api.status import failure
from agent.metrics import CONTENT_TYPE, Metrics
from agent.pools import Pools
from agent.supervisor import Supervisor
from fusevol.errors import UsageError

log = logging.getLogger(__name__)


class Probes:
    """Handlers of ``/healthz``, ``/readyz`` and ``/metrics``. For the trio loop."""

    def __init__(self, *, pools: Pools, supervisor: Supervisor, metrics: Metrics) -> None:
        self._pools = pools
        self._supervisor = supervisor
        self._metrics = metrics

    @property
    def ready(self) -> bool:
        """Whether the start is over."""
        return self._metrics.ready

    @ready.setter
    def ready(self, value: bool) -> None:
        self._metrics.ready = value

    def routes(self) -> list[tuple[str, Callable[[Request], Awaitable[Response]], str]]:
        """Path, handler and method of each."""
        return [
            ("/healthz", self.healthz, "GET"),
            ("/readyz", self.readyz, "GET"),
            ("/metrics", self.metrics, "GET"),
        ]

    async def healthz(self, _: Request) -> Response:
        """Whether the process answers."""
        return PlainTextResponse("ok")

    async def readyz(self, request: Request) -> Response:
        """Whether volumes can be mounted: the start is over, and a keeper lives. With ``?verbose``, each part of that.

        A pool that hangs is told, but is no reason to send anybody elsewhere: what is in other pools works.
        """
        keeper = self._supervisor.keeper is not None
        if "verbose" in request.query_params:
            parts = [("started", self.ready), ("keeper", keeper)]
            parts += [(f"pool {name}", not self._pools.hangs(name)) for name in self._pools.names]
            lines = "".join(f"[{'+' if well else '-'}]{what} {'ok' if well else 'failed'}\n" for what, well in parts)
            return PlainTextResponse(lines, status_code=200 if self.ready and keeper else 503)
        if not self.ready:
            return failure(503, "ServiceUnavailable", "The agent is starting: try again in a moment.")
        if not keeper:
            return failure(
                503, "ServiceUnavailable", "There is no keeper at the moment, which starts volume servers: see its log."
            )
        return PlainTextResponse("ok")

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text."""
        return Response(await self._metrics.text(), media_type=CONTENT_TYPE)

    async def serve(
        self,
        address: Address,
        stop: Callable[[], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve these alone at *address* until *stop* returns. Raises :class:`UsageError` for the address."""
        app = Starlette(routes=[Route(path, handler, methods=[method]) for path, handler, method in self.routes()])
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            listener = socket.create_server(address, family=family)
        except OSError as e:
            raise UsageError(
                f"The address of the metrics, {address}, cannot be opened: {os.strerror(e.errno or 0)}."
            ) from e
        with listener:
            log.info("Metrics on http://%s/metrics.", address)
            await serving.serve(app, listener, stop, task_status=task_status)
