"""``fusevol apply``."""

from __future__ import annotations

from argparse import Namespace

from agent.cli import documents
from agent.cli.resources import shown
from agent.client import Client, path_of
from fusevol import objects
from fusevol.errors import EXIT_OK


def command(options: Namespace) -> int:
    """Create or change what the files describe; nothing at all when one document of them is not valid."""
    found = documents.read(options.files, options.namespace)
    client = Client(options.socket)
    for obj in found:
        answer = client.request("POST", path_of("apply"), obj)
        print(shown(objects.find_kind(obj["kind"]), obj["metadata"]["name"]), answer["result"], flush=True)
    return EXIT_OK
