"""``fusevol mount`` and ``fusevol umount``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from agent.cli.resources import DEFAULT_NAMESPACE
from agent.client import Client, path_of
from fusevol.errors import EXIT_OK


def command(options: Namespace) -> int:
    """Mount a claim at a directory, or undo it; both are idempotent."""
    client = Client(options.socket)
    # not resolve(): the last component may be a dead mount, which must not be looked at
    target = str(Path(options.target).absolute())
    if options.name == "umount":
        client.request("DELETE", path_of("mounts"), {"target": target})
        return EXIT_OK
    wanted = {
        "claim": options.claim,
        "namespace": options.namespace or DEFAULT_NAMESPACE,
        "target": target,
        "readOnly": options.read_only,
    }
    client.request("POST", path_of("mounts"), wanted)
    return EXIT_OK
