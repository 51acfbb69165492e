"""``fusevol diff``: what ``apply`` of the same files would change."""

from __future__ import annotations

import difflib
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from agent.cli import documents
from agent.cli.resources import path_to, shown
from agent.client import Client, path_of
from fusevol import objects
from fusevol.errors import EXIT_OK, FusevolError, NotFoundError

Obj = dict[str, Any]
EXIT_DIFFERENT = 1
EXIT_TROUBLE = 2
"""As diff(1) has them, so that a script can tell a difference from a failure."""

_COLOURS = {"-": "\033[31m", "+": "\033[32m", "@": "\033[36m"}
_PLAIN = "\033[0m"


def command(options: Namespace) -> int:
    """Print a unified diff of each object from what it is to what it would be."""
    try:
        found = documents.read(options.files, options.namespace)
        client = Client(options.socket)
        changes = [line for obj in found for line in _changes(client, obj)]
    except FusevolError as e:
        print(f"Error: {e.message}", file=sys.stderr)
        return EXIT_TROUBLE
    for line in changes:
        print(_coloured(line) if sys.stdout.isatty() else line)
    return EXIT_DIFFERENT if changes else EXIT_OK


def _changes(client: Client, obj: Obj) -> Iterator[str]:
    new = client.request("POST", path_of("apply", dryRun="All"), obj)["object"]
    try:
        old = client.request("GET", path_to(new))
    except NotFoundError:
        old = None
    name = shown(objects.find_kind(new["kind"]), new["metadata"]["name"])
    before, after = _comparable(old or {}), _comparable(new)
    _hide_secrets(before, after)
    return difflib.unified_diff(
        _lines(before), _lines(after), f"{name} (now)" if old else "/dev/null", f"{name} (applied)", lineterm=""
    )


def _comparable(obj: Obj) -> Obj:
    """The object without what changes by itself."""
    kept = {k: v for k, v in obj.items() if k != "status"}
    if isinstance(kept.get("metadata"), dict):
        hidden = {"resourceVersion", "uid", "creationTimestamp", "finalizers"}
        kept["metadata"] = {k: v for k, v in kept["metadata"].items() if k not in hidden}
    return kept


def _hide_secrets(before: Obj, after: Obj) -> None:
    """Put stars for the values of a Secret; different ones for a value that changes."""
    if after.get("kind") != "Secret":
        return
    old, new = before.get("data") or {}, after.get("data") or {}
    if "data" in before:
        before["data"] = {k: "***" if new.get(k, v) == v else "*** (before)" for k, v in old.items()}
    if "data" in after:
        after["data"] = {k: "***" if old.get(k, v) == v else "*** (after)" for k, v in new.items()}


def _lines(obj: Obj) -> list[str]:
    return objects.dump(_sorted(obj), "yaml").splitlines() if obj else []


def _sorted(value: Any) -> Any:
    """*value* with its mappings in one order: another order is no difference."""
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value)}
    return [_sorted(v) for v in value] if isinstance(value, list) else value


def _coloured(line: str) -> str:
    colour = _COLOURS.get(line[:1])
    return f"{colour}{line}{_PLAIN}" if colour else line
