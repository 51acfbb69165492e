"""The volume plugin's protocol: JSON by POST on a unix socket (docker's "volume plugin protocol", which podman speaks).

A failure is one sentence in ``Err``, with a status that is not 200, since podman looks at nothing else.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent import logs
from agent.api.status import body
from agent.plugin.driver import Driver
from agent.tally import Requests
from fusevol.errors import FusevolError

Obj = dict[str, Any]
Call = Callable[[Obj], Awaitable[Obj]]
_QUIET: Final = {"Get", "List", "Path", "Capabilities", "Activate"}

log = logging.getLogger(__name__)


class _Answer(JSONResponse):
    media_type = "application/vnd.docker.plugins.v1.1+json"


def app(driver: Driver, requests: Requests) -> Starlette:
    """The ASGI application."""

    async def activate(_: Obj) -> Obj:
        return {"Implements": ["VolumeDriver"]}

    async def capabilities(_: Obj) -> Obj:
        return {"Capabilities": {"Scope": "local"}}

    async def create(given: Obj) -> Obj:
        await driver.create(given.get("Name"), given.get("Opts"))
        return {}

    async def remove(given: Obj) -> Obj:
        await driver.remove(given.get("Name"))
        return {}

    async def mount(given: Obj) -> Obj:
        return {"Mountpoint": await driver.mount(given.get("Name"), given.get("ID", ""))}

    async def unmount(given: Obj) -> Obj:
        await driver.unmount(given.get("Name"), given.get("ID", ""))
        return {}

    async def path(given: Obj) -> Obj:
        return {"Mountpoint": await driver.path(given.get("Name"))}

    async def get(given: Obj) -> Obj:
        return {"Volume": await driver.get(given.get("Name"))}

    async def listed(_: Obj) -> Obj:
        return {"Volumes": await driver.list()}

    numbers = itertools.count(1)
    calls: dict[str, Call] = {
        "Plugin.Activate": activate,
        "VolumeDriver.Capabilities": capabilities,
        "VolumeDriver.Create": create,
        "VolumeDriver.Remove": remove,
        "VolumeDriver.Mount": mount,
        "VolumeDriver.Unmount": unmount,
        "VolumeDriver.Path": path,
        "VolumeDriver.Get": get,
        "VolumeDriver.List": listed,
    }
    return Starlette(
        routes=[
            Route(f"/{name}", _answering(name, call, numbers, requests), methods=["POST"])
            for name, call in calls.items()
        ],
        exception_handlers={HTTPException: _http_error},
    )


def _answering(
    name: str, call: Call, numbers: Iterator[int], requests: Requests
) -> Callable[[Request], Awaitable[Response]]:
    short = name.partition(".")[2]

    async def answer(request: Request) -> Response:
        with logs.about(request=f"plugin-{next(numbers)}"):
            return await respond(request)

    async def respond(request: Request) -> Response:
        began = time.monotonic()
        about = ""
        try:
            given = await body(request)
            about = repr(str(given.get("Name", "")))[:80]
            with logs.about(volume=about):
                response, said = _Answer({**await call(given), "Err": ""}), "OK"
        except FusevolError as e:
            response, said = _failed(e.http_status, e.message), e.message
        except OSError as e:
            said = f"The volume cannot be reached: {e.strerror or e}."
            response = _failed(500, said)
        except Exception:
            log.exception("Plugin call %s of %s failed", short, about)
            said = "An unexpected error: see the agent's log."
            response = _failed(500, said)
        level = logging.DEBUG if short in _QUIET else logging.INFO
        took = time.monotonic() - began
        log.log(level, "Plugin call %s of %s: %s, %.0f ms", short, about, said, took * 1000)
        requests.call("plugin", short, str(response.status_code), took)
        return response

    return answer


def _failed(code: int, message: str) -> _Answer:
    return _Answer({"Err": message}, status_code=code)


async def _http_error(request: Request, e: Exception) -> Response:
    code = e.status_code if isinstance(e, HTTPException) else 500
    return _failed(code, f"A volume plugin has no {request.method} {request.url.path}.")
