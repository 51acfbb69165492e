"""``fusevol pool show|check``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from agent.cli import listings, output
from agent.client import Client, path_of
from fusevol.errors import EXIT_FAILED, EXIT_OK

Obj = dict[str, Any]


def command(options: Namespace) -> int:
    """Show capacity and volumes of the pools, or look for damage (exit code 1 when there is some)."""
    client = Client(options.socket)
    if options.action == "show":
        if options.pool:
            _show(client.request("GET", path_of("pools", options.pool)))
        else:
            listings.print_items("pools", listings.items(client, "pools"), "table")
        return EXIT_OK
    names = [options.pool] if options.pool else [str(p["name"]) for p in listings.items(client, "pools")]
    return _check(client, names)


def _show(pool: Obj) -> None:
    capacity = pool.get("capacity") or {}
    print(f"Name:         {pool.get('name')}")
    print(f"Path:         {pool.get('path')}")
    print(f"Total:        {output.size(capacity.get('total'))}")
    print(f"Available:    {output.size(capacity.get('available'))}")
    print(f"Provisioned:  {output.size(capacity.get('provisioned'))}")
    volumes = pool.get("volumes")
    if not isinstance(volumes, list):
        return
    print(f"Volumes:      {len(volumes)}")
    if volumes:
        rows = [
            [str(v.get("id")), output.size(v.get("capacity_bytes")), str(v.get("quota")), _owner(v)] for v in volumes
        ]
        print("\n" + output.table(["VOLUME", "CAPACITY", "QUOTA", "OWNER"], rows))


def _owner(volume: Obj) -> str:
    owner = volume.get("owner")
    if not isinstance(owner, dict) or not owner:
        return "<none>"
    return ",".join(f"{k}={v}" for k, v in sorted(owner.items()))


def _check(client: Client, names: list[str]) -> int:
    bad = 0
    for name in names:
        answer = client.request("POST", path_of("pools", name, "check"), {}, timeout=3600)
        findings: list[Any] = answer if isinstance(answer, list) else answer.get("items", answer.get("findings", []))
        for finding in findings:
            text = finding if isinstance(finding, str) else finding.get("message") or finding
            print(f"{name}: {text}")
        if not findings:
            print(f"{name}: no damage found")
        bad += len(findings)
    if bad:
        output.note(f"Error: {bad} finding{'s' if bad > 1 else ''} in the pools; see the list above.")
        return EXIT_FAILED
    return EXIT_OK
