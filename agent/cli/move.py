"""``fusevol move``: a claim's volume that is to be in another pool."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any, Final

from agent.cli import listings
from agent.cli.resources import DEFAULT_NAMESPACE, get_object, shown
from agent.client import Client, path_of
from agent.controllers.moving import move_of
from agent.controllers.provisioning import handle_of
from fusevol import objects
from fusevol.errors import EXIT_OK, ConflictError, TimeoutExpiredError, UsageError

Obj = dict[str, Any]
_KINDS: Final = ("PersistentVolumeClaim", "PersistentVolume")
_POLL: Final = 0.2


def command(options: Namespace) -> int:
    """Have it moved, and wait until it is."""
    word, _, name = options.what.rpartition("/")
    kind = objects.find_kind(word or "pvc")
    if kind.name not in _KINDS:
        raise UsageError(f'"{options.what}" is no claim: write CLAIM, pvc/CLAIM or pv/NAME.')
    client = Client(options.socket)
    wanted = {"kind": kind.name, "namespace": options.namespace or DEFAULT_NAMESPACE, "name": name, "pool": options.to}
    volume = client.request("POST", path_of("moves"), wanted)
    if options.wait:
        _await(client, volume, options.to, options.timeout)
    print(f"{shown(kind, name)} {'moved' if options.wait else 'is being moved'}")
    return EXIT_OK


def _await(client: Client, volume: Obj, pool: str, timeout: float | None) -> None:
    """Return when *volume* is in *pool*. Raises :class:`ConflictError` with the reason if it stays where it was."""
    kind, name = objects.find_kind("pv"), volume["metadata"]["name"]
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        found = get_object(client, kind, "", name)
        if move_of(found) is None:
            break
        if end is not None and time.monotonic() >= end:
            raise TimeoutExpiredError(
                f"{shown(kind, name)} is still being moved: `fusevol describe pv {name}` shows when that is done."
            )
        time.sleep(_POLL)
    if not (handle_of(found) or "").startswith(f"{pool}/"):
        events = listings.items(client, "events", regarding=found["metadata"]["uid"])
        events.sort(key=lambda e: str(e.get("lastTimestamp") or ""))
        told = [str(e["message"]) for e in events if e["reason"] == "MoveFailed"]
        raise ConflictError(f"{shown(kind, name)} was not moved. {told[-1] if told else ''}".strip())
