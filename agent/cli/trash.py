"""``fusevol trash list|restore|purge``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from agent.cli import output
from agent.client import Client, path_of
from fusevol.errors import EXIT_FAILED, EXIT_OK, FusevolError, NotFoundError, UsageError

Obj = dict[str, Any]

_LONG = 24 * 3600.0
"""Seconds that deleting a large volume may take."""


def command(options: Namespace) -> int:
    """Show what is in the trash, take something out of it, or delete it for ever."""
    client = Client(options.socket)
    if options.action != "purge" and options.all is not None:
        raise UsageError("--all is for `fusevol trash purge`.")
    if options.action != "restore" and (options.claim or options.namespace):
        raise UsageError("--claim and --namespace are for `fusevol trash restore`.")
    if options.action == "list":
        return _list(client, options.what)
    if options.action == "restore":
        _restore(client, options)
        return EXIT_OK
    return _purge(client, options)


def _list(client: Client, pool: str | None) -> int:
    found = client.request("GET", path_of("trash", pool=pool))
    rows = [
        [
            str(e["pool"]),
            str(e["name"]),
            output.size(e["capacity"]),
            output.owner(e["owner"]),
            output.age(e["trashed"]),
            "being deleted" if e["purging"] else str(e["until"]),
        ]
        for e in found["items"]
    ]
    if rows:
        print(output.table(["POOL", "ENTRY", "CAPACITY", "OWNER", "DELETED", "KEPT UNTIL"], rows))
    else:
        output.note("The trash is empty.")
    return _errors(found)


def _errors(found: Obj) -> int:
    for e in found["errors"]:
        output.note(f"Error: pool {e['pool']}: {e['error']}")
    return EXIT_FAILED if found["errors"] else EXIT_OK


def _find(client: Client, what: str | None, action: str) -> Obj:
    """The entry that *what* names: ``ENTRY``, or ``POOL/ENTRY``."""
    if not what:
        raise UsageError(f"Name what to {action}: `fusevol trash {action} ENTRY`; `fusevol trash list` shows them.")
    pool, _, name = what.rpartition("/")
    items = client.request("GET", path_of("trash", pool=pool or None))["items"]
    found: list[Obj] = [e for e in items if e["name"] == name]
    if not found:
        raise NotFoundError(f"There is no {what} in the trash: see `fusevol trash list`.")
    if len(found) > 1:
        raise UsageError(f"{what} is in the trash of several pools: write {found[0]['pool']}/{name}, or another pool.")
    return found[0]


def _restore(client: Client, options: Namespace) -> None:
    entry = _find(client, options.what, "restore")
    wanted = {"claim": options.claim, "namespace": options.namespace}
    made = client.request("POST", path_of("pools", entry["pool"], "trash", entry["name"], "restore"), wanted)
    print(f"volume {made['volume']} restored")
    if "claim" in made:
        print(f"persistentvolumeclaim/{made['claim']} created")
    else:
        print(f"its volumeHandle is {made['volumeHandle']}")


def _purge(client: Client, options: Namespace) -> int:
    if options.all is None:
        _purge_one(client, _find(client, options.what, "purge"))
        return EXIT_OK
    if options.all and options.what:
        raise UsageError("Name either one entry or --all of a pool.")
    found = client.request("GET", path_of("trash", pool=options.all or options.what))
    failed = _errors(found)
    for entry in found["items"]:
        try:
            _purge_one(client, entry)
        except NotFoundError:
            continue  # its time was over meanwhile
        except FusevolError as e:
            output.note(f"Error: {e.message}")
            failed = EXIT_FAILED
    return failed


def _purge_one(client: Client, entry: Obj) -> None:
    client.request("DELETE", path_of("pools", entry["pool"], "trash", entry["name"]), timeout=_LONG)
    print(f"{entry['name']} deleted for ever")
