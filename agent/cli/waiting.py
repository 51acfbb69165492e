"""``fusevol wait``: until objects are as they should be, or gone."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

from agent.cli.fieldpaths import steps, values
from agent.cli.resources import DEFAULT_NAMESPACE, get_object, list_objects, selections, shown
from agent.cli.templates import Field, render
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_OK, NotFoundError, TimeoutExpiredError, UsageError

Obj = dict[str, Any]
Met = Callable[[Obj | None], bool]
"""Whether an object, or ``None`` when it is gone, is as it should be."""
_POLL: Final = 0.1


def command(options: Namespace) -> int:
    """Wait for each of the objects, all within the same time."""
    met, absent = condition(options.condition)
    client = Client(options.socket)
    end = time.monotonic() + options.timeout
    for kind, namespace, name in _wanted(client, options):
        named = shown(kind, name)
        while not met(_find(client, kind, namespace, name, absent=absent)):
            if time.monotonic() >= end:
                raise TimeoutExpiredError(
                    f"timed out waiting for the condition on {kind.plural}/{name}: "
                    f"`fusevol describe {kind.singular} {name}` shows what it waits for."
                )
            time.sleep(_POLL)
        print(f"{named} condition met", flush=True)
    return EXIT_OK


def _wanted(client: Client, options: Namespace) -> list[tuple[objects.Kind, str, str]]:
    namespace = options.namespace or DEFAULT_NAMESPACE
    found = []
    for selection in selections(options.what):
        kind = objects.find_kind(selection.word)
        if bool(selection.names) == bool(options.everything or options.selector):
            raise UsageError(f"Say which {kind.plural} to wait for: give either names, --all or -l SEL.")
        names = selection.names or [
            o["metadata"]["name"] for o in list_objects(client, kind, namespace, options.selector)
        ]
        found += [(kind, namespace, name) for name in names]
    if not found:
        raise NotFoundError("no matching resources found")
    return found


def _find(client: Client, kind: objects.Kind, namespace: str, name: str, *, absent: bool) -> Obj | None:
    try:
        return get_object(client, kind, namespace, name)
    except NotFoundError:
        if absent:
            return None
        raise


def condition(text: str) -> tuple[Met, bool]:
    """What ``--for`` means, and whether an object may be absent meanwhile. Raises :class:`UsageError`."""
    word, equals, rest = text.partition("=")
    if text == "delete":
        return lambda obj: obj is None, True
    if text == "create":
        return lambda obj: obj is not None, True
    if word == "condition" and rest:
        kind, given, status = rest.partition("=")
        wanted = status if given else "True"
        return lambda obj: obj is not None and _has(obj, kind, wanted), False
    if word == "jsonpath" and equals:
        path, given, value = rest.rpartition("=") if "}=" in rest else (rest, "", "")
        way = steps(path)
        if given:
            return lambda obj: obj is not None and render([Field(way)], obj) == value, False
        return lambda obj: obj is not None and bool(values(obj, way)), False
    raise UsageError(
        f'"{text}" is nothing to wait for: write delete, create, condition=Ready or '
        "jsonpath='{.status.phase}'=Bound."
    )


def _has(obj: Obj, kind: str, status: str) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(
        str(c.get("type")).lower() == kind.lower() and str(c.get("status")).lower() == status.lower()
        for c in conditions
    )
