"""``fusevol top``: what the mounted volumes use, as it changes."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent.cli import listings, output
from agent.client import Client
from fusevol.errors import EXIT_OK

Obj = dict[str, Any]
_HEADERS = ("VOLUME", "USER", "USED", "LIMIT", "USE%", "INODES", "CHANGE/S")
_CLEAR = "\033[H\033[J"


def command(options: Namespace) -> int:
    """Print a table once, or one every few seconds until Ctrl-C; on a terminal each in the place of the last one."""
    client = Client(options.socket)
    before: dict[str, int] = {}
    since = 0.0
    while True:
        servers, mounts = listings.items(client, "servers"), listings.items(client, "mounts")
        now = time.monotonic()
        text = table(servers, mounts, before, now - since, options.sort)
        before, since = {str(s.get("mount_id")): used for s in servers if (used := _used(s)) is not None}, now
        if options.once:
            break
        sys.stdout.write(f"{_CLEAR if sys.stdout.isatty() else ''}{text}\n\n")
        sys.stdout.flush()
        time.sleep(options.interval)
    if servers:
        print(text)
    else:
        output.note("No volume is mounted.")
    return EXIT_OK


def table(
    servers: Sequence[Obj], mounts: Sequence[Obj], before: Mapping[str, int], seconds: float, sort: str = "used"
) -> str:
    """A row per volume that is mounted; *before* has the used bytes of *seconds* ago by mount id."""
    users: dict[str, list[str]] = {}
    for mount in mounts:
        users.setdefault(str(mount.get("mountId")), []).append(_user(mount))
    keys: dict[str, Callable[[Obj], Any]] = {
        "used": lambda s: (-(_used(s) or 0), str(s.get("mount_id"))),
        "share": lambda s: (-(_share(s) or 0.0), str(s.get("mount_id"))),
        "name": lambda s: str(s.get("mount_id")),
    }
    rows = []
    for server in sorted(servers, key=keys[sort]):
        name, used, share = str(server.get("mount_id")), _used(server), _share(server)
        usage = server.get("usage") or {}
        change = "<unknown>" if used is None or name not in before else _change((used - before[name]) / seconds)
        rows.append(
            [
                name,
                ",".join(sorted(set(users.get(name, [])))) or "<none>",
                "<unknown>" if used is None else output.size(used),
                output.size(usage.get("limit_bytes")),
                "<none>" if share is None else f"{share:.0%}",
                str(usage.get("used_inodes") if usage.get("used_inodes") is not None else "<unknown>"),
                change,
            ]
        )
    return output.table(_HEADERS, rows)


def _used(server: Obj) -> int | None:
    used = (server.get("usage") or {}).get("used_bytes")
    return None if used is None else int(used)


def _share(server: Obj) -> float | None:
    used, limit = _used(server), (server.get("usage") or {}).get("limit_bytes")
    return used / limit if used is not None and limit else None


def _change(rate: float) -> str:
    sign = "+" if rate > 0 else "-" if rate < 0 else ""
    return f"{sign}{output.size(round(abs(rate)))}"


def _user(mount: Obj) -> str:
    """The claim, or the Pod whose emptyDir it is."""
    if mount.get("claim"):
        return f"{mount.get('namespace')}/{mount['claim']}"
    return f"{mount.get('kind')} of {mount['pod']}" if mount.get("pod") else str(mount.get("target"))
