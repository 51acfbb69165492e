"""gRPC beside the trio loop: grpcio answers each call in a thread, which waits for the coroutine that does the work.

A call ends with its deadline, and when its caller gives up: the coroutine is cancelled then, at a point where that
leaves nothing half done that the next call would not complete. Threads cost nothing while they wait, so there are many:
those that wait for a pool that hangs must not be all.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn

import trio
from google.protobuf.message import Message

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing here forks and goes on with gRPC
import grpc

from agent import logs
from agent.api.listener import LONGEST, remove_stale
from agent.csi import csi_pb2 as pb
from agent.csi.controller import Controller
from agent.csi.groups import GroupController
from agent.csi.identity import Identity
from agent.csi.node import Node
from agent.csi.refusal import Code, Refused, code_of
from agent.csi.settings import Settings
from agent.csi.sources import Jobs
from agent.csi.volumes import Locks, Volumes
from agent.hazard import Hazards
from agent.pools import Pools
from agent.steps import Step, no_step
from agent.supervisor import Supervisor
from agent.tally import Requests
from agent.volumes.mounter import Mounter
from fusevol.errors import FusevolError, UsageError

CALLS: Final = 256
"""Calls at the same time; one more is answered RESOURCE_EXHAUSTED."""
MESSAGE_LIMIT: Final = 1 << 20
"""Bytes of a request; the fields' own limits are far lower."""
METADATA_LIMIT: Final = 8 << 10
"""Bytes of a call's metadata (its headers)."""
CONNECTIONS: Final = 64
"""Callers at the same time: a kubelet and half a dozen sidecars have one connection each. One more is closed."""
GRACE: Final = 2.0
"""Seconds that calls get to end when the agent does."""
_QUIET: Final = {"Probe"}

log = logging.getLogger(__name__)

Call = Callable[[Any], Awaitable[Message]]


async def serve(
    settings: Settings,
    *,
    pools: Pools,
    mounter: Mounter,
    supervisor: Supervisor,
    hazards: Hazards,
    requests: Requests,
    nursery: trio.Nursery,
    node: str,
    ready: Callable[[], bool],
    step: Step = no_step,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the driver until cancelled; copies that outlast their call go on in *nursery*, *requests* counts calls.

    Raises :class:`UsageError` or :class:`UnavailableError` for its socket.
    """
    volumes, locks = Volumes(pools, mounter, supervisor), Locks()
    on_node = Node(volumes=volumes, locks=locks, hazards=hazards, settings=settings, node=node, step=step)
    await on_node.forget_earlier_boots()
    services: dict[str, object] = {
        "Identity": Identity(ready),
        "Controller": Controller(volumes, locks, Jobs(nursery), node, per_node=settings.per_node),
        "GroupController": GroupController(volumes, locks, Jobs(nursery)),
        "Node": on_node,
    }
    bridge = _Bridge(trio.lowlevel.current_trio_token(), requests)
    server = grpc.server(
        ThreadPoolExecutor(CALLS, thread_name_prefix="csi"),
        maximum_concurrent_rpcs=CALLS,
        options=[
            ("grpc.max_receive_message_length", MESSAGE_LIMIT),
            ("grpc.max_metadata_size", METADATA_LIMIT),
            ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
            ("grpc.max_concurrent_streams", CALLS // 2),  # one caller's calls leave room for another's
            ("grpc.max_allowed_incoming_connections", CONNECTIONS),
            ("grpc.server_handshake_timeout_ms", 5000),
            ("grpc.so_reuseport", 0),
        ],
    )
    for name, service in services.items():
        server.add_generic_rpc_handlers((bridge.handlers(name, service),))
    await trio.to_thread.run_sync(_open, server, settings.endpoint)
    try:
        server.start()
        log.info("CSI on %s.", settings.endpoint)
        task_status.started()
        await trio.sleep_forever()
    finally:
        settings.endpoint.unlink(missing_ok=True)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.stop(GRACE).wait)


def methods(service: object) -> dict[str, Call]:
    """The calls of a service by their names in the specification: ``create_volume`` is CreateVolume."""
    return {
        "".join(word.capitalize() for word in name.split("_")): getattr(service, name)
        for name in dir(service)
        if not name.startswith("_") and hasattr(pb, "".join(w.capitalize() for w in name.split("_")) + "Request")
    }


def _open(server: grpc.Server, endpoint: Path) -> None:
    """Bind under a name that only root gets at, and put it in place when its mode is right."""
    private = endpoint.parent / ".fusevol"
    if len(os.fsencode(private / "s")) > LONGEST:
        raise UsageError(
            f"The path of the CSI endpoint {endpoint} is too long for a unix socket: choose a shorter one."
        )
    try:
        endpoint.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        remove_stale(endpoint, "another CSI driver", "choose another csi endpoint")
        shutil.rmtree(private, ignore_errors=True)  # of an agent that was killed right here
        private.mkdir(mode=0o700)
        try:
            server.add_insecure_port(f"unix:{private / 's'}")
            (private / "s").chmod(0o600)
            (private / "s").rename(endpoint)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    except (OSError, RuntimeError) as e:
        raise UsageError(f"The CSI endpoint {endpoint} cannot be opened: {e}.") from e


class _Bridge:
    """Carries calls from gRPC's threads to the loop."""

    def __init__(self, token: trio.lowlevel.TrioToken, requests: Requests) -> None:
        self._token = token
        self._requests = requests
        self._numbers = itertools.count(1)

    def handlers(self, service: str, implementation: object) -> grpc.GenericRpcHandler:
        """What grpcio wants to know of a service."""
        return grpc.method_handlers_generic_handler(
            f"csi.v1.{service}",
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._unary(name, call),
                    request_deserializer=getattr(pb, f"{name}Request").FromString,
                    response_serializer=getattr(pb, f"{name}Response").SerializeToString,
                )
                for name, call in methods(implementation).items()
            },
        )

    def _unary(self, name: str, call: Call) -> Callable[[Any, grpc.ServicerContext], Message]:
        def answer(request: Any, context: grpc.ServicerContext) -> Message:
            number = next(self._numbers)
            about = str(getattr(request, "volume_id", "") or getattr(request, "name", ""))
            with logs.about(request=f"csi-{number}", volume=_shown(about)):
                return respond(request, context, number, about)

        def respond(request: Any, context: grpc.ServicerContext, number: int, about: str) -> Message:
            began = time.monotonic()
            try:
                response = self._run(call, request, context)
            except Refused as e:
                code, message = e.code, str(e)
            except FusevolError as e:
                code, message = code_of(e), e.message
            except (trio.RunFinishedError, trio.Cancelled):
                code, message = Code.UNAVAILABLE, "The agent is ending: try again."
            except OSError as e:
                code, message = Code.INTERNAL, f"{e.strerror or e}: see the agent's log."
                log.exception("CSI call %d: %s of %s failed", number, name, _shown(about))
            except Exception:
                code, message = Code.INTERNAL, "An unexpected error: see the agent's log."
                log.exception("CSI call %d: %s of %s failed", number, name, _shown(about))
            else:
                level = logging.DEBUG if name in _QUIET or "Get" in name else logging.INFO
                log.log(level, "CSI call %d: %s of %s: OK, %.0f ms", number, name, _shown(about), _ms(began))
                self._requests.call("csi", name, "OK", time.monotonic() - began)
                return response
            log.info(
                "CSI call %d: %s of %s: %s, %.0f ms: %s", number, name, _shown(about), code.name, _ms(began), message
            )
            self._requests.call("csi", name, code.name, time.monotonic() - began)
            _abort(context, code, message)

        return answer

    def _run(self, call: Call, request: Any, context: grpc.ServicerContext) -> Message:
        scope = trio.CancelScope()

        def over() -> None:  # at its end, of whatever kind: answered, given up, or later than its deadline
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(scope.cancel)

        async def work() -> Message | None:
            with scope:
                return await call(request)
            return None

        response = trio.from_thread.run(work, trio_token=self._token) if context.add_callback(over) else None
        if response is None:
            raise Refused(Code.CANCELLED, "The caller has given up, or its deadline is over.")
        return response


def _abort(context: grpc.ServicerContext, code: Code, message: str) -> NoReturn:
    context.abort(next(c for c in grpc.StatusCode if c.value[0] == code), message)


def _ms(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _shown(about: str) -> str:
    """A handle or name of the CO's for the log: one line, not long."""
    return re.sub(r"[^ -~]", "?", about)[:128] or "-"
