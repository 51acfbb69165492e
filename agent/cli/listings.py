"""Things of the agent that are not Kubernetes objects: pools, mounts, volume servers, events."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.cli import output, sorting
from agent.cli.resources import Selection
from agent.client import Client, path_of
from fusevol.errors import NotFoundError, UsageError

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Listing:
    plural: str
    headers: tuple[str, ...]
    row: Callable[[Obj], list[str]]


def _text(value: object) -> str:
    return "<none>" if value is None or value == "" else str(value)


def _pool(pool: Obj) -> list[str]:
    if "error" in pool:
        return [_text(pool.get("name")), *["<unknown>"] * 4, f"{pool.get('path')}: {pool['error']}"]
    capacity = pool.get("capacity") or {}
    return [
        _text(pool.get("name")),
        _text(capacity.get("volumes")),
        output.size(capacity.get("total")),
        output.size(capacity.get("available")),
        output.size(capacity.get("provisioned")),
        _text(pool.get("path")),
    ]


def _mount(mount: Obj) -> list[str]:
    return [
        _text(mount.get("target")),
        _text(mount.get("kind")),
        _text(mount.get("volume") or mount.get("path")),
        _text(f"{mount.get('namespace')}/{mount.get('claim')}" if mount.get("claim") else None),
        "ro" if mount.get("readOnly") else "rw",
    ]


def _server(server: Obj) -> list[str]:
    usage = server.get("usage") or {}
    return [
        _text(server.get("mount_id")),
        _text(server.get("pid")),
        output.size(usage.get("used_bytes")),
        output.size(usage.get("limit_bytes")),
        _way(server),
        output.age(server.get("started")),
        _text((server.get("stuck") or {}).get("count")),
        _text(server.get("mountpoint")),
    ]


def _way(server: Obj) -> str:
    """Transport and what it uses: ``kernel+passthrough``."""
    extras = [word for word in ("io_uring", "passthrough") if server.get(word)]
    return "+".join([_text(server.get("transport")), *extras])


def _event(event: Obj) -> list[str]:
    regarding = event.get("regarding") or {}
    return [
        output.age(event.get("lastTimestamp") or event.get("firstTimestamp")),
        _text(event.get("type")),
        _text(event.get("reason")),
        f"{str(regarding.get('kind', '')).lower()}/{regarding.get('name', '')}",
        _text(event.get("message")),
    ]


LISTINGS: dict[str, _Listing] = {}
for _one in (
    _Listing("pools", ("NAME", "VOLUMES", "TOTAL", "AVAILABLE", "PROVISIONED", "PATH"), _pool),
    _Listing("mounts", ("TARGET", "KIND", "VOLUME", "CLAIM", "ACCESS"), _mount),
    _Listing("servers", ("NAME", "PID", "USED", "LIMIT", "TRANSPORT", "AGE", "STUCK", "MOUNTPOINT"), _server),
    _Listing("events", ("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), _event),
):
    LISTINGS[_one.plural] = LISTINGS[_one.plural.removesuffix("s")] = _one


def items(client: Client, plural: str, **query: str | None) -> list[Obj]:
    """All pools, mounts, servers or events."""
    answer = client.request("GET", path_of(plural, **query))
    found: list[Obj] = answer["items"] if isinstance(answer, dict) else answer
    return found


def named(client: Client, plural: str, names: Sequence[str]) -> list[Obj]:
    """Those of :func:`items` that have one of *names*, or all without names. Raises :class:`NotFoundError`."""
    found = items(client, plural)
    if not names:
        return found
    found = [o for o in found if set(LISTINGS[plural].row(o)[:2]) & set(names)]
    if not found:
        raise NotFoundError(f'There is no "{names[0]}" among the {plural}: list them without a name.')
    return found


def show(client: Client, selection: Selection, style: str, namespace: str | None, sort: str | None = None) -> None:
    """Print what ``fusevol get pools`` and the like ask for, in the order of the field *sort* as it is in JSON."""
    listing = LISTINGS[selection.word.lower()]
    found = named(client, listing.plural, selection.names)
    if listing.plural == "events" and namespace:
        found = [e for e in found if (e.get("regarding") or {}).get("namespace") == namespace]
    print_items(listing.plural, found if sort is None else sorting.order(found, sort), style)


def print_items(plural: str, found: Sequence[Obj], style: str) -> None:
    """Print *found* in one of the output styles."""
    listing = LISTINGS[plural]
    if style == "json":
        print(json.dumps({"items": list(found)}, indent=2))
    elif style == "yaml":
        import yaml  # noqa: PLC0415 - not needed for a table

        print(yaml.safe_dump({"items": list(found)}, sort_keys=False).rstrip("\n"))
    elif style == "name":
        if plural == "events":
            raise UsageError("Events have no names: choose another output.")
        for item in found:
            print(f"{plural.removesuffix('s')}/{listing.row(item)[0]}")
    elif found:
        print(output.table(listing.headers, [listing.row(o) for o in found]))
    else:
        output.note(f"No {plural} found.")
