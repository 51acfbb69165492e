"""``fusevol events``."""

from __future__ import annotations

from argparse import Namespace

from agent.cli import listings
from agent.cli.resources import get_object, selections
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_OK, UsageError


def command(options: Namespace) -> int:
    """Print the events, oldest first; of one object with ``--for``."""
    client = Client(options.socket)
    uid: str | None = None
    if options.regarding:
        chosen = selections([options.regarding])
        if len(chosen) != 1 or not chosen[0].names:
            raise UsageError(f'"{options.regarding}" does not name one object: write KIND/NAME, such as pvc/data.')
        kind = objects.find_kind(chosen[0].word)
        uid = get_object(client, kind, options.namespace, chosen[0].names[0])["metadata"]["uid"]
    found = listings.items(client, "events", regarding=uid)
    if options.namespace and not options.all_namespaces:
        found = [e for e in found if (e.get("regarding") or {}).get("namespace") == options.namespace]
    found.sort(key=lambda e: str(e.get("lastTimestamp") or ""))
    listings.print_items("events", found, options.output)
    return EXIT_OK
