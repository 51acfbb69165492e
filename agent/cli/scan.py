"""``fusevol pool scan``."""

from __future__ import annotations

from argparse import Namespace

from agent.cli import listings, output
from agent.client import Client, path_of
from fusevol.errors import EXIT_FAILED, EXIT_OK, UsageError

_LONG = 1800.0
"""Seconds that a pool with very many volumes may take."""


def scan(client: Client, options: Namespace) -> int:
    """Show the volumes that nobody knows, adopt or purge them; exit code 1 if that failed for one."""
    action = "adopt" if options.adopt is not None else "purge" if options.purge is not None else None
    named = {word for word in (options.pool, options.adopt, options.purge) if word}
    if len(named) > 1:
        raise UsageError("Name one pool, or none for all of them.")
    names = list(named) or [str(p["name"]) for p in listings.items(client, "pools")]
    request = {"action": action, "others": options.others}
    rows, code = [], EXIT_OK
    for name in names:
        answer = client.request("POST", path_of("pools", name, "scan"), request, timeout=_LONG)
        for item in answer["items"]:
            told = item["error"] or item["done"] or (f"claim {item['claim']} has lost it" if item["claim"] else "")
            rows.append(
                [
                    name,
                    item["volume"],
                    output.size(item["capacity"]),
                    output.age(item["created"]),
                    output.owner(item["owner"]),
                    output.seconds(item["retention"]) if item["retention"] else "<none>",
                    told or "-",
                ]
            )
            if item["error"]:
                code = EXIT_FAILED
    if not rows:
        print("All volumes are known.")
        return code
    print(output.table(["POOL", "VOLUME", "CAPACITY", "AGE", "MADE FOR", "TRASH KEEPS", "RESULT"], rows))
    if action is None:
        output.note("Nothing was changed: --adopt makes PersistentVolumes for them, --purge moves them to the trash.")
    return code
