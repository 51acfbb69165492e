"""How a volume is served, in words: which process, on which way, who keeps the limit, what a crash costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.cli import output
from agent.client import Client, path_of
from fusevol.errors import NotFoundError

Obj = dict[str, Any]
Line = tuple[str, str]

_ENFORCERS = {"ledger": "the ledger", "kernel": "the backing filesystem", "none": "nobody"}


def ask(client: Client, mount_id: object) -> Obj | None:
    """What the volume server of a mount says of itself; None when there is none."""
    if not mount_id:
        return None
    try:
        found: Obj = client.request("GET", path_of("servers", str(mount_id)))
    except NotFoundError:
        return None
    return found


def lines(server: Obj) -> Iterator[Line]:
    """What a description says of a volume server."""
    times = f", replaced {server['restarts']} times" if server.get("restarts") else ""
    yield "Server", f"pid {server.get('pid')}, {server.get('mountpoint', '<unknown>')}{times}"
    if "transport" not in server:
        yield "", str(server.get("error") or "it has not mounted yet")
        return
    device = "io_uring" if server["io_uring"] else "/dev/fuse"
    yield "Transport", f"{server['transport']} over {device}{_because(server, 'io_uring', 'no io_uring: ')}"
    yield "File Data", "passthrough" if server["passthrough"] else f"by the server{_because(server, 'passthrough')}"
    yield "Limit Kept By", _ENFORCERS.get(server["quota"], str(server["quota"]))
    yield from _stuck(server.get("stuck") or {})
    yield "Takeover", "possible" if server["takeover"] else f"not possible{_because(server, 'takeover')}"


def _stuck(stuck: Obj) -> Iterator[Line]:
    """What waits for the storage for too long, the first one first."""
    count = stuck.get("count", 0)
    if not count:
        return
    requests = [
        f"{r['operation']} of {r['path'] if r['path'] is not None else 'node ' + str(r['node'])}, "
        f"process {r['pid'] or '<unknown>'}, {output.seconds(r['age'])}"
        for r in stuck.get("requests", [])
    ]
    yield "Stuck", "\n".join([f"{count} request{'s' if count > 1 else ''}: the storage does not answer", *requests])


def used(server: Obj | None, capacity: str | None) -> str:
    """How much of a volume is used."""
    if server is None or "usage" not in server:
        return "<unknown>"
    count = server["usage"].get("used_bytes")
    if count is None:
        return "not counted: `du` of a mount can tell"
    return f"{output.size(count)} of {capacity or 'unlimited'}"


def _because(server: Obj, what: str, lead: str = "") -> str:
    reason = (server.get("why_not") or {}).get(what)
    return f" ({lead}{reason})" if reason else ""
