"""Arguments of ``podman run`` for a Pod's containers."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cli import containers
from agent.volumes import environment
from agent.volumes.node import Node
from fusevol.errors import InvalidError

Obj = dict[str, Any]


def pod(container: Obj, **spec: Any) -> Obj:
    """A Pod `web` with one container and one ready volume."""
    return {
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "ubuntu", **container}], **spec},
        "status": {
            "volumeMounts": [
                {"container": "c", "name": "v", "hostPath": "/srv/v", "mountPath": "/data", "readOnly": False},
                {"container": "other", "name": "v", "hostPath": "/srv/v", "mountPath": "/other", "readOnly": False},
            ]
        },
    }


def arguments(container: Obj, **spec: Any) -> list[str]:
    """What follows ``podman run`` for that Pod."""
    whole = pod(container, **spec)
    only = whole["spec"]["containers"][0]
    return containers.run_arguments(whole, only, environment.of(whole, only, lambda _kind, _name: None, Node()))


LABELS = [
    *("--label", "io.fusevol.pod.name=web"),
    *("--label", "io.fusevol.pod.namespace=shop"),
    *("--label", "io.fusevol.pod.uid=u-1"),
    *("--label", "io.fusevol.container=c"),
]


def test_plain_container() -> None:
    """Name, labels, restart policy, its own volumes and the image; nothing about the machine."""
    expected = ["--detach", "--name", "web-c", "--restart=no", *LABELS, "-v", "/srv/v:/data", "ubuntu"]

    assert arguments({}) == expected


@pytest.mark.parametrize(
    ("container", "tail"),
    [
        ({"command": ["touch", "/x"]}, ["--entrypoint", '["touch", "/x"]', "ubuntu"]),
        ({"args": ["-l"]}, ["ubuntu", "-l"]),
        ({"command": ["ls"], "args": ["-l", "/"]}, ["--entrypoint", '["ls"]', "ubuntu", "-l", "/"]),
        ({"workingDir": "/data"}, ["--workdir", "/data", "ubuntu"]),
        ({"imagePullPolicy": "Never"}, ["-v", "/srv/v:/data", "ubuntu"]),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}], "args": ["$(B)", "$$(B)", "$(C)"]},
            ["--env", "A=1", "--env", "B=12", "ubuntu", "12", "$(B)", "$(C)"],
        ),
        (
            {"env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}]},
            ["--env", "N=shop", "ubuntu"],
        ),
        (
            {"env": [{"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]},
            ["--env", "L=x", "ubuntu"],
        ),
        ({"securityContext": {"runAsUser": 1000, "runAsGroup": 5}}, ["--user", "1000:5", "ubuntu"]),
        ({"tty": True, "stdin": True}, ["--interactive", "--tty", "ubuntu"]),
    ],
)
def test_kubernetes_meaning(container: Obj, tail: list[str]) -> None:
    """command is the entrypoint, args are the arguments, variables are expanded as Kubernetes does."""
    assert arguments(container)[-len(tail) :] == tail


def test_groups() -> None:
    """The Pod's fsGroup is a supplementary group of every process."""
    found = arguments({}, securityContext={"fsGroup": 2000, "supplementalGroups": [7]})

    assert found[-5:] == ["--group-add", "7", "--group-add", "2000", "ubuntu"]


def test_read_only_and_propagation() -> None:
    """A read-only mount and a wanted propagation become podman's options."""
    whole = pod({"volumeMounts": [{"name": "v", "mountPath": "/data", "mountPropagation": "HostToContainer"}]})
    whole["status"]["volumeMounts"][0]["readOnly"] = True

    assert containers.volume_arguments(whole, "c") == ["-v", "/srv/v:/data:ro,rslave"]


@pytest.mark.parametrize(
    ("wanted", "options"),
    [({}, ""), ({"mountPropagation": "None"}, ""), ({"mountPropagation": "Bidirectional"}, ":rshared")],
)
def test_propagation(wanted: dict[str, str], options: str) -> None:
    """None is podman's own default (rprivate), Bidirectional is rshared."""
    whole = pod({"volumeMounts": [{"name": "v", "mountPath": "/data", **wanted}]})

    assert containers.volume_arguments(whole, "c") == ["-v", f"/srv/v:/data{options}"]


def test_relative_mount_path() -> None:
    """A relative mountPath counts from the container's root (6.2)."""
    whole = pod({})
    whole["status"]["volumeMounts"][0]["mountPath"] = "data"

    assert containers.volume_arguments(whole, "c") == ["-v", "/srv/v:/data"]


def test_colon_in_path() -> None:
    """podman's -v cannot write a colon, so the path is refused instead of mounting something else."""
    whole = pod({})
    whole["status"]["volumeMounts"][0]["hostPath"] = "/srv/a:b"

    with pytest.raises(InvalidError, match="has a colon in its path /srv/a:b"):
        containers.volume_arguments(whole, "c")
