"""``fusevol pool show|check|scan|create|grow|delete``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from agent.cli import listings, output
from agent.cli.scan import scan
from agent.client import Client, path_of
from fusevol.errors import EXIT_FAILED, EXIT_OK, UsageError

Obj = dict[str, Any]


_LONG = 1800.0
"""Seconds that formatting or growing may take."""


def command(options: Namespace) -> int:
    """Show, make, grow or delete pools, or look for damage (exit code 1 when there is some)."""
    client = Client(options.socket)
    if options.action != "scan" and (options.adopt, options.purge) != (None, None):
        raise UsageError("--adopt and --purge are for `fusevol pool scan`.")
    if options.action in {"create", "grow", "delete"}:
        _change(client, options)
        return EXIT_OK
    if options.action == "show":
        if options.pool:
            _show(client.request("GET", path_of("pools", options.pool)))
        else:
            listings.print_items("pools", listings.items(client, "pools"), "table")
        return EXIT_OK
    if options.action == "scan":
        return scan(client, options)
    names = [options.pool] if options.pool else [str(p["name"]) for p in listings.items(client, "pools")]
    return _check(client, names)


def _change(client: Client, options: Namespace) -> None:
    name = options.pool
    if not name:
        raise UsageError(f"Name the pool: `fusevol pool {options.action} NAME`.")
    if options.action == "delete":
        client.request("DELETE", path_of("pools", name), {"force": options.force}, timeout=_LONG)
        print(f"pool/{name} deleted")
        return
    if options.action == "grow":
        size = {"size": options.size} if options.size else {}
        grown = client.request("POST", path_of("pools", name, "grow"), size, timeout=_LONG)
        print(f"pool/{name} grown to {output.size(grown['capacity']['total'])}")
        return
    wanted = {
        "name": name,
        "size": options.size,
        "fs": options.fs,
        "driver": options.driver,
        "overcommit": options.overcommit,
        "force": options.force or None,
        "simpleQuotas": options.simple_quotas or None,
    }
    for kind in ("path", "device", "image"):
        if place := getattr(options, kind):
            wanted[kind] = str(Path(place).absolute())
    made = client.request("POST", path_of("pools"), {k: v for k, v in wanted.items() if v is not None}, timeout=_LONG)
    print(f"pool/{name} created ({made['driver']}, {output.size(made['capacity']['available'])} available)")


def _show(pool: Obj) -> None:
    capacity = pool.get("capacity") or {}
    print(f"Name:         {pool.get('name')}")
    print(f"Path:         {pool.get('path')}")
    source = pool.get("source") or {}
    if source.get("fs"):
        print(f"On:           {source['kind']} {source['place']} ({source['fs']} {source['uuid']})")
    _show_driver(pool)
    print(f"Total:        {output.size(capacity.get('total'))}")
    print(f"Available:    {output.size(capacity.get('available'))}")
    print(f"Provisioned:  {output.size(capacity.get('provisioned'))}")
    volumes = pool.get("volumes")
    if not isinstance(volumes, list):
        return
    print(f"Volumes:      {len(volumes)}")
    if volumes:
        rows = [
            [str(v.get("id")), output.size(v.get("capacity_bytes")), str(v.get("quota")), output.owner(v.get("owner"))]
            for v in volumes
        ]
        print("\n" + output.table(["VOLUME", "CAPACITY", "QUOTA", "OWNER"], rows))


def _show_driver(pool: Obj) -> None:
    able = pool.get("capabilities") or {}
    kept = [what for what in ("bytes", "inodes") if able.get(f"quota_{what}")]
    print(f"Driver:       {pool.get('driver')}")
    print(f"Limits:       {' and '.join(kept) + ' by the kernel' if kept else 'by the ledger'}")
    print(f"Snapshots:    {able.get('snapshot')}; clones: {able.get('clone')}")
    if pool.get("overcommit") is not None:
        print(f"Overcommit:   {pool['overcommit']:g}")
    if able.get("remark"):
        print(f"Remark:       {able['remark']}")


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
