"""``fusevol run``: a Pod's containers by podman, on volumes that the agent has prepared.

The agent owns the Pod object and its volumes, podman owns the containers; what ties them together are labels with the
Pod's uid. Running the same file again therefore finds the Pod (and its emptyDirs) as it is: containers that run are
left alone, ended ones are started again, and those of an earlier Pod of the same name are replaced.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.cli import containers, documents, foreground, output, supervision
from agent.cli.podman import LABEL_NAMESPACE, LABEL_UID, Podman, require
from agent.cli.removal import delete_object, remove_containers
from agent.cli.reporting import Reporter
from agent.cli.resources import get_object, path_to
from agent.client import Client, path_of
from agent.volumes import environment
from agent.volumes.node import Node
from agent.volumes.projected import Find
from fusevol import objects
from fusevol.errors import (
    EXIT_OK,
    AlreadyExistsError,
    ConflictError,
    FusevolError,
    NotFoundError,
    TimeoutExpiredError,
    UsageError,
)

Obj = dict[str, Any]

_PLAIN = re.compile(r"[\w@%+=:,./~-]+", re.ASCII)
"""Words that need no quotes: the shell does not remove quotes from what ``$(fusevol run --prepare ...)`` prints."""
_POLL = 0.05
_QUIET = 2.0
"""Seconds of waiting before a word is said about it."""


def command(options: Namespace) -> int:
    """Create the Pod, wait for its volumes, start its containers; in the foreground follow them to their end."""
    if options.prepare and (options.detach or options.remove):
        raise UsageError("--prepare starts no containers: leave out -d and --rm.")
    if options.detach and options.remove:
        raise UsageError("--rm needs somebody who waits for the end: leave out -d.")
    found = documents.read(options.files, options.namespace)
    pod = _only_pod(found, options.files)
    podman = None if options.prepare else Podman(require())
    client = Client(options.socket)
    for obj in found:
        if obj["kind"] != "Pod":
            client.request("POST", path_of("apply"), obj)
    created = _create(client, pod)
    ready = wait_for_volumes(client, created, options.timeout)
    _create_missing_sources(ready)
    if podman is None:
        _print_arguments(ready)
        return EXIT_OK
    init, main = containers.all_containers(ready)
    code = run_containers(client, podman, ready, init, main, detach=options.detach, longest=options.max_restart_period)
    if options.remove:
        remove_containers(client, ready, 0)
        delete_object(client, ready, timeout=options.timeout)
    return code


def run_containers(
    client: Client, podman: Podman, pod: Obj, init: Sequence[Obj], main: Sequence[Obj], *, detach: bool, longest: float
) -> int:
    """Have the containers *init* of *pod* end one after the other, then *main* run; all are watched from then on.

    Returns at once with *detach*, otherwise when they have ended for good: 0 if all succeeded. *longest*: seconds of
    the longest back-off. Raises :class:`FusevolError`.
    """
    policy = str(pod["spec"].get("restartPolicy") or "Always")
    beside = containers.sidecars(pod)
    supervision.end(client, pod["metadata"]["uid"])  # from now on it is this command that watches
    report = Reporter(
        client, containers.of(pod), containers.names(pod, "containers"), containers.names(pod, "initContainers")
    ).note
    with foreground.Interruptible(podman) as group:
        for container in init:
            group.names.append(containers.container_name(pod, container))
            start(client, podman, pod, container)
            if container not in beside:
                foreground.finish_init(podman, pod, container, longest=longest, report=report)
        names = [containers.container_name(pod, c) for c in main]
        for name, container in zip(names, main, strict=True):
            group.names.append(name)
            start(client, podman, pod, container)
        if detach:
            supervision.begin(client, pod["metadata"]["uid"], containers.watched(pod, longest))
            for name in names:
                print(name)
            return EXIT_OK
        helpers = [containers.container_name(pod, c) for c in beside]
        shown = {n: c["name"] for n, c in zip(names, main, strict=True)}
        code = group.follow(shown, policy, longest=longest, report=report, sidecars=helpers)
        if helpers:
            podman.try_run("stop", *helpers)
    return code


def _only_pod(found: list[Obj], files: list[str]) -> Obj:
    pods = [o for o in found if o["kind"] == "Pod"]
    if len(pods) != 1:
        raise UsageError(f"There are {len(pods)} Pods in {', '.join(files)}: give files with exactly one.")
    return pods[0]


def _create(client: Client, pod: Obj) -> Obj:
    """The Pod as the agent has it: a new one, or one of the same specification that is there already."""
    wanted = objects.admit(pod)
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    try:
        created: Obj = client.request("POST", path_of("namespaces", namespace, "pods"), pod)
    except (AlreadyExistsError, ConflictError):
        existing = get_object(client, objects.find_kind("Pod"), namespace, name)
        if existing["metadata"].get("deletionTimestamp"):
            raise ConflictError(f'The Pod "{name}" is being deleted: run it again when that is done.') from None
        if existing["spec"] != wanted["spec"]:
            raise ConflictError(
                f'A Pod "{name}" with another specification exists: '
                f"run `fusevol delete pod {name} -n {namespace}` first, or give yours another name."
            ) from None
        return existing
    return created


def wait_for_volumes(client: Client, pod: Obj, timeout: float) -> Obj:
    """*pod* once its condition VolumesReady is true.

    Raises :class:`TimeoutExpiredError` with the condition's message when that takes longer than *timeout* seconds,
    :class:`NotFoundError` when the Pod is deleted meanwhile.
    """
    started = time.monotonic()
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    told = ""
    while True:
        conditions = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
        ready = conditions.get("VolumesReady", {})
        if ready.get("status") == "True":
            return pod
        message = str(ready.get("message") or "")
        if time.monotonic() - started >= timeout:
            reason = message or f"look at `fusevol describe pod {name}`"
            raise TimeoutExpiredError(f'The volumes of Pod "{name}" are not ready after {timeout:g} s: {reason}')
        if message != told and time.monotonic() - started > _QUIET:
            output.note(f"Waiting for the volumes: {message or 'the agent works on them'}")
            told = message
        time.sleep(_POLL)
        pod = client.request("GET", path_to(pod))
        if pod["metadata"]["uid"] != uid:
            raise NotFoundError(f'The Pod "{name}" was deleted while it was waited for: run it again.')


def _create_missing_sources(pod: Obj) -> None:
    """Make the directory of a hostPath without a type, as container runtimes do (2.2: nobody else checks it)."""
    untyped = {
        v["name"]: v["hostPath"]["path"]
        for v in pod["spec"].get("volumes", [])
        if "hostPath" in v and not v["hostPath"].get("type")
    }
    for path in untyped.values():
        if not os.path.lexists(path):
            Path(path).mkdir(parents=True, exist_ok=True, mode=0o755)


def _print_arguments(pod: Obj) -> None:
    init, main = containers.all_containers(pod)
    for container in [*init, *main]:
        words = containers.volume_arguments(pod, container["name"])
        comment = f"# {container['name']}\n" if len(init) + len(main) > 1 else ""
        print(comment + " ".join(w if _PLAIN.fullmatch(w) else shlex.quote(w) for w in words))


def start(client: Client, podman: Podman, pod: Obj, container: Obj) -> None:
    """Have *container* running: start it, start it again when it had ended, leave it alone when it runs."""
    name = containers.container_name(pod, container)
    existing = podman.inspect(name)
    if existing is not None:
        labels = existing.get("Config", {}).get("Labels") or {}
        if labels.get(LABEL_UID) == pod["metadata"]["uid"]:
            if not existing["State"]["Running"]:
                podman.run("start", name)
            return
        if LABEL_UID not in labels:
            raise ConflictError(
                f'A container "{name}" that is not of a Pod exists: remove it with `podman rm {name}`, '
                "or give the Pod another name."
            )
        namespace = labels.get(LABEL_NAMESPACE, "default")
        if namespace != pod["metadata"].get("namespace", "default"):
            raise ConflictError(
                f'The container "{name}" is of a Pod of the same name in namespace {namespace}: '
                "give yours another name."
            )
        podman.remove([name], 0)
    variables = environment.of(pod, container, _finder(client, pod), Node.here(os.uname().nodename.lower(), "/"))
    try:
        podman.run("run", *containers.run_arguments(pod, container, variables))
    except FusevolError:
        # a container that was created but could not be started would be in the way of the next attempt
        podman.try_run("rm", "--force", "--ignore", name)
        raise


def _finder(client: Client, pod: Obj) -> Find:
    """Secrets and ConfigMaps of the Pod's namespace."""

    def find(kind: str, name: str) -> Obj | None:
        try:
            return get_object(client, objects.find_kind(kind), pod["metadata"].get("namespace"), name)
        except NotFoundError:
            return None

    return find
