"""``fusevol resize``: a claim that is to have another size."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from agent.cli.resources import get_object, object_path, shown
from agent.client import Client
from fusevol import objects, quantity
from fusevol.errors import EXIT_OK, ConflictError, InvalidError, TimeoutExpiredError, UsageError

Obj = dict[str, Any]
_ATTEMPTS = 5
_POLL = 0.1


def command(options: Namespace) -> int:
    """Ask for another size, and wait until the claim has it."""
    kind = objects.find_kind("pvc")
    name = options.claim.rpartition("/")[2]
    if options.claim != name and objects.find_kind(options.claim.rpartition("/")[0]) != kind:
        raise UsageError(f'"{options.claim}" is no claim: only PersistentVolumeClaims have another size.')
    size = _size(options.size)
    client = Client(options.socket)
    if not _asked(client, kind, options.namespace, name, options.size):
        print(f"{shown(kind, name)} unchanged")
        return EXIT_OK
    if options.wait:
        _await(client, kind, options.namespace, name, size, options.timeout)
    print(f"{shown(kind, name)} {'resized' if options.wait else 'will be resized'}")
    return EXIT_OK


def _size(text: str) -> int:
    try:
        return quantity.parse(text)
    except InvalidError as e:
        raise UsageError(f'"{text}" is no size: {e.message}') from e


def _asked(client: Client, kind: objects.Kind, namespace: str | None, name: str, size: str) -> bool:
    """Write the new request; whether it is another one than before."""
    for attempt in range(_ATTEMPTS):
        claim = get_object(client, kind, namespace, name)
        if objects.claim.request_bytes(claim) == quantity.parse(size):
            return False
        claim["spec"]["resources"]["requests"]["storage"] = size
        try:
            client.request("PUT", object_path(kind, namespace, name), claim)
        except ConflictError:  # the agent has written its status meanwhile
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return True
    return True


def _await(client: Client, kind: objects.Kind, namespace: str | None, name: str, size: int, timeout: float) -> None:
    """Return when the claim has its size. Raises :class:`TimeoutExpiredError` with what the agent says of it."""
    end = time.monotonic() + timeout
    while True:
        claim = get_object(client, kind, namespace, name)
        if objects.claim.request_bytes(claim) != size:
            raise ConflictError(f"Somebody else has asked for another size of {shown(kind, name)}: look at it.")
        granted = objects.claim.capacity_bytes(claim)
        conditions = (claim.get("status") or {}).get("conditions") or []
        if granted is not None and granted >= size:
            return
        if time.monotonic() >= end:
            told = "; ".join(str(c.get("message") or c.get("type")) for c in conditions)
            raise TimeoutExpiredError(
                f"{shown(kind, name)} does not have its new size yet{f' ({told})' if told else ''}: "
                f"`fusevol describe pvc {name}` shows why."
            )
        time.sleep(_POLL)
