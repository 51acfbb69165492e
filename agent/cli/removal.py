"""``fusevol delete``: objects, and with a Pod its podman containers."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from agent.cli import documents, supervision
from agent.cli.podman import Podman, find
from agent.cli.resources import (
    DEFAULT_NAMESPACE,
    get_object,
    list_objects,
    path_to,
    selections,
    shown,
)
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_OK, FusevolError, NotFoundError, TimeoutExpiredError, UsageError

Obj = dict[str, Any]

_POLL = 0.05
_GRACE = 30  # Kubernetes' default of terminationGracePeriodSeconds


def command(options: Namespace) -> int:
    """Delete what is named; all of it is looked up before the first thing is deleted."""
    client = Client(options.socket)
    deadline = time.monotonic() + options.timeout
    failure: FusevolError | None = None
    for obj in _find(client, options):
        if obj["kind"] == "Pod":
            remove_containers(client, obj, options.grace_period)
        try:
            remaining = max(0.0, deadline - time.monotonic()) if options.wait else None
            gone = delete_object(client, obj, timeout=remaining)
        except FusevolError as e:
            failure = failure or e
            continue
        named = shown(objects.find_kind(obj["kind"]), obj["metadata"]["name"])
        print(f"{named} {'deleted' if gone else 'will be deleted when nothing uses it any more'}", flush=True)
    if failure:
        raise failure
    return EXIT_OK


def _find(client: Client, options: Namespace) -> list[Obj]:
    """The objects to delete, from the agent. Pods come first: they hold claims, which hold volumes."""
    if options.files and (options.what or options.everything or options.selector):
        raise UsageError("Files and names cannot be given together: leave out one of them.")
    wanted: list[tuple[objects.Kind, str, str]] = []
    found: list[Obj] = []
    if options.files:
        for obj in documents.read(options.files, options.namespace):
            metadata = obj["metadata"]
            wanted.append((objects.find_kind(obj["kind"]), metadata.get("namespace", ""), metadata["name"]))
    elif not options.what:
        raise UsageError("Say what to delete: KIND NAME..., KIND/NAME... or -f FILE.")
    else:
        namespace = options.namespace or DEFAULT_NAMESPACE
        for selection in selections(options.what):
            kind = objects.find_kind(selection.word)
            if bool(selection.names) == bool(options.everything or options.selector):
                raise UsageError(f"Say which {kind.plural} to delete: give either names, --all or -l SEL.")
            wanted += [(kind, namespace, name) for name in selection.names]
            if not selection.names:
                found += list_objects(client, kind, namespace, options.selector)
    for kind, namespace, name in wanted:
        try:
            found.append(get_object(client, kind, namespace, name))
        except NotFoundError:
            if not options.ignore_not_found:
                raise
    order = ["Pod", "PersistentVolumeClaim", "PersistentVolume"]
    return sorted(found, key=lambda o: order.index(o["kind"]) if o["kind"] in order else len(order))


def remove_containers(client: Client, pod: Obj, grace: int | None) -> None:
    """Watch no longer, stop and remove the podman containers of *pod*; nothing to do without podman.

    *grace*: seconds until SIGKILL; None: the Pod's own.
    """
    command = find()
    if command is None:
        return
    supervision.end(client, pod["metadata"]["uid"])
    podman = Podman(command)
    containers = podman.of_pod(pod["metadata"]["uid"])
    if grace is None:
        own = pod["spec"].get("terminationGracePeriodSeconds")
        grace = _GRACE if own is None else int(own)
    podman.remove(containers, grace)


def delete_object(client: Client, obj: Obj, *, timeout: float | None) -> bool:
    """Delete *obj* and wait until it is gone; whether it is gone.

    *timeout* in seconds, None: do not wait. Raises :class:`TimeoutExpiredError` naming what holds it.
    """
    path, uid = path_to(obj), obj["metadata"].get("uid")
    started = time.monotonic()
    try:
        client.request("DELETE", path)
        while True:
            current = client.request("GET", path)
            if current["metadata"].get("uid") != uid:
                return True
            if timeout is None:
                return False
            if time.monotonic() - started >= timeout:
                break
            time.sleep(_POLL)
    except NotFoundError:
        return True
    metadata = current["metadata"]
    held = ", ".join(metadata.get("finalizers") or []) or "the agent's work on it"
    name = shown(objects.find_kind(obj["kind"]), metadata["name"])
    raise TimeoutExpiredError(
        f"{name} is marked for deletion but still held by {held}: "
        f"`fusevol describe {name.replace('/', ' ')}` shows what uses it."
    )
