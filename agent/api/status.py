"""Errors and bodies on the wire: Kubernetes' ``Status`` for every failure, JSON for everything."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent.tally import Requests
from fusevol.errors import FusevolError, UsageError

Obj = dict[str, Any]
BODY_LIMIT = 3 * 1024 * 1024
"""Bytes of a request body; Kubernetes' own limit."""

log = logging.getLogger(__name__)


class TooLargeError(FusevolError):
    """A request body is over the limit."""

    http_status = 413
    reason = "RequestEntityTooLarge"


def status(code: int, reason: str, message: str) -> Obj:
    """A ``Status`` object for a failure."""
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }


def failure(code: int, reason: str, message: str) -> JSONResponse:
    """The answer for a failure."""
    return JSONResponse(status(code, reason, message), status_code=code)


def mapped(e: FusevolError) -> JSONResponse:
    """The answer that a :class:`FusevolError` becomes."""
    return failure(e.http_status, e.reason, e.message)


Handler = Callable[[Request], Awaitable[Response]]


def guarded(handler: Handler, requests: Requests) -> Handler:
    """*handler* with every exception answered (ours as they are, others as one logged internal error), and counted."""

    @functools.wraps(handler)
    async def counted(request: Request) -> Response:
        response = await answer(request)
        requests.add(request.method, handler.__name__, response.status_code)
        return response

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except FusevolError as e:
            return mapped(e)
        except Exception as e:
            log.exception("%s %s failed", request.method, request.url.path)
            what = f"{type(e).__name__}: {e}"
            return failure(500, "InternalError", f"The agent has a bug here ({what}): its log has the details.")

    return counted


async def body(request: Request) -> Obj:
    """The JSON object in a request. Raises :class:`UsageError` or :class:`TooLargeError`."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > BODY_LIMIT:
            raise TooLargeError(f"The request is larger than {BODY_LIMIT} bytes: send less.")
    if not received.strip():
        return {}
    try:
        found = json.loads(received)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"The request is not JSON ({e}).") from e
    if not isinstance(found, dict):
        raise UsageError("The request must be a JSON object.")
    return found
