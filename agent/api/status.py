"""Errors and bodies on the wire: Kubernetes' ``Status`` for every failure, JSON for everything."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from agent.logs import about
from agent.tally import Requests
from fusevol.errors import FusevolError, UsageError

Obj = dict[str, Any]
BODY_LIMIT = 3 * 1024 * 1024
"""Bytes of a request body; Kubernetes' own limit."""
BODY_TIME = 10.0
"""Seconds that sending one may take."""
INTAKE = 8 * BODY_LIMIT
"""Bytes of all bodies that are being received: what callers can make the agent hold."""

log = logging.getLogger(__name__)


class TooLargeError(FusevolError):
    """A request body is over the limit."""

    http_status = 413
    reason = "RequestEntityTooLarge"


class TooSlowError(FusevolError):
    """A request body takes too long."""

    http_status = 408
    reason = "Timeout"


class TooMuchError(FusevolError):
    """More is being received already than the agent wants to hold."""

    http_status = 429
    reason = "TooManyRequests"


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


_numbers = itertools.count(1)
Handler = Callable[[Request], Awaitable[Response]]


def guarded(handler: Handler, requests: Requests) -> Handler:
    """*handler* with every exception answered (ours as they are, others as one logged internal error), and counted."""

    @functools.wraps(handler)
    async def counted(request: Request) -> Response:
        with about(request=f"api-{next(_numbers)}"):
            began = time.monotonic()
            response = await answer(request)
            took = time.monotonic() - began
            requests.add(request.method, handler.__name__, response.status_code, took)
            level = logging.DEBUG if request.method == "GET" else logging.INFO
            what = re.sub(r"[^!-~]", "?", request.url.path)[:128]
            log.log(level, "API call %s %s: %d, %.0f ms", request.method, what, response.status_code, took * 1000)
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
    """The JSON object in a request.

    Raises :class:`UsageError`, :class:`TooLargeError`, :class:`TooSlowError` or :class:`TooMuchError`.
    """
    received = await _intake.receive(request)
    if not received.strip():
        return {}
    try:
        found = json.loads(received)
    except RecursionError as e:
        raise UsageError("The request is nested too deeply.") from e
    except ValueError as e:
        raise UsageError(f"The request is not JSON ({e}).") from e
    if not isinstance(found, dict):
        raise UsageError("The request must be a JSON object.")
    if b"\\ud" in received.lower():  # half a character can be written in JSON, and neither stored nor answered
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise UsageError("The request has half a surrogate pair, which is no character.") from e
    return found


class _Intake:
    """Receives bodies, of which all together have a bounded size. For the trio loop."""

    def __init__(self) -> None:
        self._held = 0

    async def receive(self, request: Request) -> bytearray:
        """The body of a request. Raises as :func:`body` does."""
        received = bytearray()
        try:
            with trio.move_on_after(BODY_TIME) as patience:
                async for chunk in request.stream():
                    if len(received) + len(chunk) > BODY_LIMIT:
                        raise TooLargeError(f"The request is larger than {BODY_LIMIT} bytes: send less.")
                    if self._held + len(chunk) > INTAKE:
                        raise TooMuchError("The agent is receiving too many requests at once: try again.")
                    self._held += len(chunk)
                    received += chunk
        except ClientDisconnect as e:
            raise UsageError("The request's sender has gone before it was complete.") from e
        finally:
            self._held -= len(received)
        if patience.cancelled_caught:
            raise TooSlowError(f"The request was not complete after {BODY_TIME:g} s: send it faster.")
        return received


_intake = _Intake()
