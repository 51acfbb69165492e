"""``fusevol logs``, ``exec`` and ``restart``: podman's, for a Pod's containers by their own names."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import Any, NoReturn

from agent.cli import containers, output, supervision
from agent.cli.podman import LABEL_UID, Podman, require
from agent.cli.resources import get_object
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_OK, NotFoundError

Obj = dict[str, Any]
_GRACE = 30


def command(options: Namespace) -> int:
    """Carry out one of the three."""
    client = Client(options.socket)
    name = options.pod.removeprefix("pod/").removeprefix("pods/")
    pod = get_object(client, objects.find_kind("Pod"), options.namespace, name)
    podman = Podman(require())
    if options.name == "restart":
        return _restart(client, podman, pod, options)
    target = _target(podman, pod, _chosen(pod, options.container))
    if options.name == "logs":
        given = [("--follow", options.follow), ("--timestamps", options.timestamps)]
        words = [word for word, wanted in given if wanted]
        words += ["--tail", str(options.tail)] if options.tail is not None else []
        words += ["--since", options.since] if options.since else []
        return _become([*podman.command, "logs", *words, target])
    words = [word for word, wanted in (("--interactive", options.stdin), ("--tty", options.tty)) if wanted]
    return _become([*podman.command, "exec", *words, target, *options.words])


def _chosen(pod: Obj, wanted: str | None) -> str:
    """The name of the container that is meant, as kubectl chooses it. Raises :class:`NotFoundError`."""
    init, main = containers.all_containers(pod)
    names = [str(c["name"]) for c in [*main, *init]]
    if wanted is None:
        if len(main) > 1:
            output.note(f'Defaulted container "{names[0]}" out of: {", ".join(names)}')
        return names[0]
    if wanted not in names:
        raise NotFoundError(
            f"container {wanted} is not valid for pod {pod['metadata']['name']}: it has {', '.join(names)}."
        )
    return wanted


def _target(podman: Podman, pod: Obj, name: str) -> str:
    """Podman's name of a container. Raises :class:`NotFoundError` if the Pod was never run."""
    target = containers.container_name(pod, {"name": name})
    found = podman.inspect(target)
    labels = ((found or {}).get("Config") or {}).get("Labels") or {}
    if labels.get(LABEL_UID) != pod["metadata"]["uid"]:
        raise NotFoundError(
            f'The Pod "{pod["metadata"]["name"]}" has no container "{name}" yet: '
            "start it with `fusevol run -d -f FILE`."
        )
    return target


def _restart(client: Client, podman: Podman, pod: Obj, options: Namespace) -> int:
    _, main = containers.all_containers(pod)
    names = [_chosen(pod, options.container)] if options.container else [str(c["name"]) for c in main]
    targets = [_target(podman, pod, name) for name in names]
    own = pod["spec"].get("terminationGracePeriodSeconds")
    grace = 0 if options.now else _GRACE if own is None else int(own)
    watched = supervision.end(client, pod["metadata"]["uid"])
    podman.run("restart", "--time", str(grace), *targets)
    if watched is not None:
        supervision.begin(client, pod["metadata"]["uid"], containers.watched(pod, watched))
    for target in targets:
        print(f"{target} restarted")
    return EXIT_OK


def _become(words: list[str]) -> NoReturn:
    """Let podman have this process: its terminal, its signals, its exit code."""
    sys.stdout.flush()
    os.execvp(words[0], words)  # noqa: S606 - a list of words, no shell
