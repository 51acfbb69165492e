"""``fusevol apply``, ``create`` and ``replace``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Final

from agent.cli import documents
from agent.cli.resources import collection_path, path_to, shown
from agent.client import Client, path_of
from fusevol import objects
from fusevol.errors import EXIT_OK, NotFoundError

Obj = dict[str, Any]


def command(options: Namespace) -> int:
    """Do it with all that the files describe; nothing at all when one document of them is not valid."""
    found = documents.read(options.files, options.namespace)
    client = Client(options.socket)
    dry = options.dry_run if options.name == "apply" else "none"
    do = {"apply": _DRY[dry], "create": _create, "replace": _replace}[options.name]
    for obj in found:
        result = do(client, obj)
        print(shown(objects.find_kind(obj["kind"]), obj["metadata"]["name"]), result, flush=True)
    return EXIT_OK


def _apply(client: Client, obj: Obj) -> str:
    return str(client.request("POST", path_of("apply"), obj)["result"])


def _tried(client: Client, obj: Obj) -> str:
    """As :func:`_apply`, with all that the agent checks, and nothing is stored."""
    return f"{client.request('POST', path_of('apply', dryRun='All'), obj)['result']} (server dry run)"


def _foreseen(client: Client, obj: Obj) -> str:
    """What :func:`_apply` would be about: the agent is only asked whether the object is there."""
    try:
        client.request("GET", path_to(obj))
    except NotFoundError:
        return "created (dry run)"
    return "configured (dry run)"


_DRY: Final = {"none": _apply, "server": _tried, "client": _foreseen}


def _create(client: Client, obj: Obj) -> str:
    client.request("POST", collection_path(objects.find_kind(obj["kind"]), obj["metadata"].get("namespace")), obj)
    return "created"


def _replace(client: Client, obj: Obj) -> str:
    """As it is in the file; what says no version is meant for whatever version there is."""
    if "resourceVersion" not in obj["metadata"]:
        obj["metadata"]["resourceVersion"] = client.request("GET", path_to(obj))["metadata"]["resourceVersion"]
    client.request("PUT", path_to(obj), obj)
    return "replaced"
