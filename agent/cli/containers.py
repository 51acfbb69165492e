"""From a Pod's container to the arguments of ``podman run``. Pure: decides, starts nothing.

Kubernetes' rules: ``command`` replaces the image's entrypoint (and then the image's own arguments count no more),
``args`` replaces its arguments, ``$(NAME)`` in both and in ``env`` stands for a variable defined before, ``$$(NAME)``
for the text ``$(NAME)``. What of a Pod needs more than a container engine (probes, a network of its own, resource
limits) is not acted upon.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.cli.backoff import restarts
from agent.cli.podman import LABEL_CONTAINER, LABEL_NAME, LABEL_NAMESPACE, LABEL_UID
from agent.cli.supervision import Watched
from agent.volumes.environment import expand
from fusevol.errors import InvalidError

Obj = dict[str, Any]

_PULL = {"Always": "always", "IfNotPresent": "missing", "Never": "never"}
_PROPAGATION = {"HostToContainer": "rslave", "Bidirectional": "rshared"}


def container_name(pod: Obj, container: Obj) -> str:
    """``<pod>-<container>``."""
    return f"{pod['metadata']['name']}-{container['name']}"


def volume_arguments(pod: Obj, container: str) -> list[str]:
    """``-v SOURCE:PATH[:OPTIONS]`` for each volume of *container*, from the Pod's ``status.volumeMounts``.

    Raises :class:`InvalidError` for a path with a colon, which podman's ``-v`` has no way to write.
    """
    arguments: list[str] = []
    for mount in pod.get("status", {}).get("volumeMounts", []):
        if mount["container"] != container:
            continue
        source, target = mount["hostPath"], mount["mountPath"]
        target = target if target.startswith("/") else f"/{target}"
        for path in (source, target):
            if ":" in path:
                raise InvalidError(
                    f'The volume "{mount["name"]}" of container "{container}" has a colon in its path {path}: '
                    "podman cannot mount it, choose another path."
                )
        options = ["ro"] if mount.get("readOnly") else []
        propagation = _propagation(pod, container, mount)
        if propagation:
            options.append(propagation)
        arguments += ["-v", ":".join([source, target, *([",".join(options)] if options else [])])]
    return arguments


def _propagation(pod: Obj, container: str, mount: Obj) -> str | None:
    for spec in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        if spec["name"] == container:
            for wanted in spec.get("volumeMounts", []):
                if (wanted["name"], wanted["mountPath"]) == (mount["name"], mount["mountPath"]):
                    return _PROPAGATION.get(wanted.get("mountPropagation", "None"))
    return None


def run_arguments(pod: Obj, container: Obj, variables: Mapping[str, str]) -> list[str]:
    """All arguments after ``podman run`` that start *container* in the background, with its *variables*.

    Raises :class:`InvalidError` for what cannot be honoured.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    # podman knows no back-off: see agent.cli.supervision
    arguments = ["--detach", "--name", container_name(pod, container), "--restart=no"]
    for label, value in (
        (LABEL_NAME, metadata["name"]),
        (LABEL_NAMESPACE, metadata.get("namespace", "default")),
        (LABEL_UID, metadata["uid"]),
        (LABEL_CONTAINER, container["name"]),
    ):
        arguments += ["--label", f"{label}={value}"]
    if container.get("imagePullPolicy") in _PULL:
        arguments.append(f"--pull={_PULL[container['imagePullPolicy']]}")
    arguments += volume_arguments(pod, container["name"])
    for name, value in variables.items():
        arguments += ["--env", f"{name}={value}"]
    if container.get("workingDir"):
        arguments += ["--workdir", container["workingDir"]]
    if container.get("stdin"):
        arguments.append("--interactive")
    if container.get("tty"):
        arguments.append("--tty")
    arguments += _security(spec.get("securityContext") or {}, container.get("securityContext") or {})
    command = [expand(word, variables) for word in container.get("command") or []]
    words = [expand(word, variables) for word in container.get("args") or []]
    if command:
        arguments += ["--entrypoint", json.dumps(command)]
    return [*arguments, container["image"], *words]


def _security(of_pod: Obj, of_container: Obj) -> list[str]:
    """The parts of the security contexts that decide who reads and writes a volume; the container's own wins."""
    merged = {**of_pod, **of_container}
    arguments: list[str] = []
    if "runAsUser" in merged:
        group = f":{merged['runAsGroup']}" if "runAsGroup" in merged else ""
        arguments += ["--user", f"{merged['runAsUser']}{group}"]
    groups = [*of_pod.get("supplementalGroups", []), *([of_pod["fsGroup"]] if "fsGroup" in of_pod else [])]
    for gid in groups:
        arguments += ["--group-add", str(gid)]
    if merged.get("privileged"):
        arguments.append("--privileged")
    if merged.get("readOnlyRootFilesystem"):
        arguments.append("--read-only")
    for capability in (merged.get("capabilities") or {}).get("add", []):
        arguments.append(f"--cap-add={capability}")
    for capability in (merged.get("capabilities") or {}).get("drop", []):
        arguments.append(f"--cap-drop={capability}")
    return arguments


def all_containers(pod: Obj) -> tuple[Sequence[Obj], Sequence[Obj]]:
    """Init containers and containers, in the order given."""
    return pod["spec"].get("initContainers") or [], pod["spec"]["containers"]


def sidecars(pod: Obj) -> list[Obj]:
    """The init containers that go on beside the others."""
    return [c for c in pod["spec"].get("initContainers") or [] if c.get("restartPolicy") == "Always"]


def due(pod: Obj) -> list[Obj]:
    """The containers that a kubelet would start after its machine has started again, as the restartPolicy says.

    One that ran at the machine's end counts as failed. None for a Pod that ``fusevol run`` has not run.
    """
    policy = str(pod["spec"].get("restartPolicy") or "Always")
    known = {entry["name"]: entry.get("state") or {} for entry in pod.get("status", {}).get("containerStatuses") or []}
    ended = {name: int(state.get("terminated", {"exitCode": 1}).get("exitCode", 1)) for name, state in known.items()}
    return [c for c in pod["spec"]["containers"] if c["name"] in ended and restarts(policy, ended[c["name"]])]


def of(pod: Obj) -> dict[str, str]:
    """Which Pod it is."""
    metadata = pod["metadata"]
    return {"namespace": metadata.get("namespace") or "default", "name": metadata["name"], "uid": metadata["uid"]}


def names(pod: Obj, field: str) -> dict[str, str]:
    """What the Pod calls the containers of a *field* of its spec, by podman's names."""
    return {container_name(pod, c): c["name"] for c in pod["spec"].get(field) or []}


def watched(pod: Obj, longest: float) -> Watched:
    """What a process in the background has to know to start the Pod's containers again."""
    return Watched(
        policy=str(pod["spec"].get("restartPolicy") or "Always"),
        containers=[container_name(pod, c) for c in pod["spec"]["containers"]],
        pod=of(pod),
        names=names(pod, "containers"),
        inits=names(pod, "initContainers"),
        sidecars=[container_name(pod, c) for c in sidecars(pod)],
        longest=longest,
    )
