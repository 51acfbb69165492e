"""``fusevol resume``: Pods whose containers a reboot has ended run again, as a kubelet would have it.

For a system's start (``manifests/systemd/fusevol-pods.service``). A Pod that somebody watches is left alone, and so is
one that ``fusevol run`` has not run; init containers run once more, as after any loss of a Pod's sandbox, but not where
only the watcher was lost and a container runs.
"""

from __future__ import annotations

from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from agent.cli import containers, output, supervision
from agent.cli.podman import Podman, require
from agent.cli.resources import list_objects
from agent.cli.run import run_containers, wait_for_volumes
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_FAILED, EXIT_OK, FusevolError

Obj = dict[str, Any]

_AT_ONCE: Final = 16
"""Pods that are started at a time."""


def command(options: Namespace) -> int:
    """Start what is to be started; one that cannot be does not keep the others from it."""
    client, podman = Client(options.socket), Podman(require())

    def resume(pod: Obj) -> bool:
        metadata = pod["metadata"]
        try:
            ready = wait_for_volumes(client, pod, options.timeout)
            names = [containers.container_name(pod, c) for c in pod["spec"]["containers"]]
            alive = any(found["State"]["Running"] for found in map(podman.inspect, names) if found is not None)
            init = containers.sidecars(ready) if alive else containers.all_containers(ready)[0]
            main = containers.due(pod)
            run_containers(client, podman, ready, init, main, detach=True, longest=options.max_restart_period)
        except FusevolError as e:
            output.note(f'Error: The Pod "{metadata["name"]}" in namespace {metadata["namespace"]} does not run: {e}')
            return False
        return True

    pods = [
        pod
        for pod in list_objects(client, objects.find_kind("Pod"), None)
        if not pod["metadata"].get("deletionTimestamp")
        and containers.due(pod)
        and not supervision.is_watched(client, pod["metadata"]["uid"])
    ]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        resumed = list(threads.map(resume, pods))
    return EXIT_OK if all(resumed) else EXIT_FAILED
