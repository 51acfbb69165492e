"""What Pods take from Secrets, ConfigMaps and themselves: rules, messages, defaults (3.1 to 3.6)."""

from __future__ import annotations

from typing import Any

import pytest

from fusevol import objects
from fusevol.errors import InvalidError
from fusevol.objects import projections

Obj = dict[str, Any]
FIELD = {"fieldPath": "metadata.name"}


def pod(volume: Obj | None = None, **container: Any) -> Obj:
    """A Pod with one volume."""
    spec: Obj = {"containers": [{"name": "c", "image": "i", **container}]}
    if volume is not None:
        spec["volumes"] = [{"name": "v", **volume}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def refused(obj: Obj) -> str:
    """What is wrong with it."""
    with pytest.raises(InvalidError) as caught:
        objects.admit(obj)
    return str(caught.value)


def items(*paths: str) -> list[Obj]:
    """Items with these paths."""
    return [{"key": "k", "path": p} for p in paths]


UNITS = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei"


def resource(name: str, divisor: str) -> Obj:
    """A volume with one resource in units of *divisor*."""
    field = {"containerName": "c", "resource": name, "divisor": divisor}
    return {"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": field}]}}


@pytest.mark.parametrize(
    ("name", "divisor"),
    [("limits.cpu", "1m"), ("requests.cpu", "0"), ("limits.memory", "1024Ki"), ("limits.hugepages-2Mi", "1Mi")],
)
def test_units_that_are_fine(name: str, divisor: str) -> None:
    """3.5: the divisors that Kubernetes knows, whatever they are written as; 0 is none."""
    objects.admit(pod(resource(name, divisor)))


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"secret": {}}, "spec.volumes[0].secret.secretName: Required value"),
        ({"configMap": {"name": "c", "items": [{"path": "p"}]}}, "configMap.items[0].key: Required value"),
        ({"configMap": {"name": "c", "items": [{"key": "k"}]}}, "configMap.items[0].path: Required value"),
        ({"configMap": {"name": "c", "items": items("/p")}}, 'Invalid value: "/p": must be a relative path'),
        ({"configMap": {"name": "c", "items": items("a/../p")}}, "must not contain '..'"),
        ({"configMap": {"name": "c", "items": items("..p")}}, "must not start with '..'"),
        ({"configMap": {"name": "c", "items": items("a", "a")}}, 'items[1].path: Invalid value: "a": conflicting dup'),
        ({"secret": {"secretName": "s", "defaultMode": 0o1000}}, "Invalid value: 512: must be a number between 0 and"),
        ({"secret": {"secretName": "s", "defaultMode": "0644"}}, "must be a number between 0 and 0777 (octal), both"),
        (
            {"projected": {"sources": [{"secret": {"name": "s", "items": items("a")}}, {"downwardAPI": {"items": [
                {"path": "a", "fieldRef": FIELD}]}}]}},
            'projected.sources[1].downwardAPI.items[0].path: Invalid value: "a": conflicting duplicate paths',
        ),
        (
            {"projected": {"sources": [{"secret": {"name": "s"}, "configMap": {"name": "c"}}]}},
            "projected.sources[0].configMap: Forbidden: may not specify more than 1 volume type",
        ),
        ({"projected": {"sources": [{"secret": {}}]}}, "projected.sources[0].secret.name: Required value"),
        (
            {"projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 599}}]}},
            "may not specify a duration less than 10 minutes",
        ),
        ({"downwardAPI": {"items": [{"path": "p"}]}}, "one of fieldRef and resourceFieldRef is required"),
        (
            {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "spec.nodeName"}}]}},
            'fieldRef.fieldPath: Unsupported value: "spec.nodeName"',
        ),
        (
            {"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}},
            "resourceFieldRef.containerName: Required value",
        ),
        (resource("limits.cpu", "2"), 'divisor: Invalid value: "2": only divisor\'s values 1m and 1 are support'),
        (resource("requests.cpu", "1k"), "are supported with the cpu resource"),
        (resource("limits.memory", "3Mi"), f"only divisor's values {UNITS} are supported with the memory resource"),
        (resource("limits.memory", "1m"), f"only divisor's values {UNITS} are supported with the memory resource"),
        (resource("limits.memory", "-1"), f"only divisor's values {UNITS} are supported with the memory resource"),
        (resource("requests.ephemeral-storage", "10"), "are supported with the local ephemeral storage resource"),
        (resource("limits.hugepages-2Mi", "2Mi"), "are supported with the hugepages resource"),
        (resource("limits.gpu", "1"), 'resource: Unsupported value: "limits.gpu"'),
        (
            {"downwardAPI": {"items": [{"path": "p", "fieldRef": FIELD, "resourceFieldRef": {}}]}},
            "fieldRef and resourceFieldRef can not be specified simultaneously",
        ),
    ],
)  # fmt: skip
def test_volumes_that_are_refused(volume: Obj, message: str) -> None:
    """Kubernetes' message at the field's path."""
    assert message in refused(pod(volume))


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"env": [{"name": "A", "valueFrom": {}}]}, "env[0].valueFrom: Invalid value: {}: must specify one of"),
        ({"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": FIELD}}]}, "may not be specified when `value`"),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
            "valueFrom.secretKeyRef.key: Required value",
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}}]},
            'Unsupported value: "metadata.labels"',
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}]},
            'Unsupported value: "limits.gpu"',
        ),
        ({"envFrom": [{}]}, "envFrom[0]: Invalid value: {}: must specify one of: configMapRef or secretRef"),
        ({"envFrom": [{"secretRef": {}}]}, "envFrom[0].secretRef.name: Required value"),
    ],
)
def test_variables_that_are_refused(container: Obj, message: str) -> None:
    """Kubernetes' message at the field's path."""
    assert message in refused(pod(**container))


def test_defaults() -> None:
    """0644 for all four kinds; an hour for a token."""
    token = {"serviceAccountToken": {"path": "t"}}
    made = [
        objects.admit(pod(v))["spec"]["volumes"][0]
        for v in (
            {"secret": {"secretName": "s"}},
            {"configMap": {"name": "c"}},
            {"downwardAPI": {}},
            {"projected": {"sources": [token]}},
        )
    ]

    assert [v[kind]["defaultMode"] for v, kind in zip(made, projections.KINDS, strict=True)] == [0o644] * 4
    assert made[3]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"] == 3600
