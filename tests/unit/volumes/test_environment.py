"""Variables of containers: where they come from, what stands for what, what is missing."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from agent.volumes import environment
from agent.volumes.node import Node
from fusevol.errors import FusevolError

Obj = dict[str, Any]
POD: Obj = {
    "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "x"}, "annotations": {"n": "y"}},
    "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "10Mi"}}}]},
}
OBJECTS: dict[tuple[str, str], Obj] = {
    ("Secret", "s"): {
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "ns"},
        "data": {"user": base64.b64encode(b"me $(A)").decode(), "both": base64.b64encode(b"secret").decode()},
    },
    ("ConfigMap", "m"): {
        "kind": "ConfigMap",
        "metadata": {"name": "m", "namespace": "ns"},
        "data": {"both": "config", "only": "1"},
    },
}
NODE = Node(name="node1", cpus=3, memory=1 << 30)


def variables(**container: Any) -> dict[str, str]:
    """The variables of a container of the Pod."""
    return environment.of(POD, {"name": "c", **container}, lambda kind, name: OBJECTS.get((kind, name)), NODE)


def value(**source: Any) -> str | None:
    """The variable with one ``valueFrom``."""
    return variables(env=[{"name": "V", "valueFrom": source}]).get("V")


def test_whole_objects_come_first() -> None:
    """envFrom in order, the later one wins, then env; a prefix; values of objects are not expanded, env's are."""
    found = variables(
        envFrom=[{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "m"}},
                 {"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "no", "optional": True}}],
        env=[{"name": "A", "value": "a"}, {"name": "B", "value": "$(A)$(only)$$(A)$(no)"},
             {"name": "only", "value": "2"}],
    )  # fmt: skip

    assert found == {
        "user": "me $(A)", "both": "config", "only": "2", "P_both": "config", "P_only": "1", "A": "a",
        "B": "a1$(A)$(no)",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"secretKeyRef": {"name": "s", "key": "both"}}, "secret"),
        ({"configMapKeyRef": {"name": "m", "key": "only"}}, "1"),
        ({"configMapKeyRef": {"name": "m", "key": "no", "optional": True}}, None),
        ({"secretKeyRef": {"name": "no", "key": "k", "optional": True}}, None),
        ({"fieldRef": {"fieldPath": "metadata.namespace"}}, "ns"),
        ({"fieldRef": {"fieldPath": "metadata.labels['app']"}}, "x"),
        ({"fieldRef": {"fieldPath": "metadata.annotations['none']"}}, ""),
        ({"fieldRef": {"fieldPath": "spec.nodeName"}}, "node1"),
        ({"fieldRef": {"fieldPath": "spec.serviceAccountName"}}, "default"),
        ({"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}, "10"),
        ({"resourceFieldRef": {"resource": "limits.memory", "divisor": "1M"}}, "11"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "3"),
        ({"resourceFieldRef": {"resource": "requests.cpu"}}, "0"),
        ({"resourceFieldRef": {"resource": "requests.memory"}}, "10485760"),
    ],
)
def test_single_values(source: Obj, expected: str | None) -> None:
    """Each source; what is optional and missing is not set at all."""
    assert value(**source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secretKeyRef": {"name": "no", "key": "k"}}, 'secret "no" not found'),
        ({"secretKeyRef": {"name": "s", "key": "k"}}, "couldn't find key k in Secret ns/s"),
        ({"configMapKeyRef": {"name": "m", "key": "k"}}, "couldn't find key k in ConfigMap ns/m"),
        ({"fieldRef": {"fieldPath": "status.podIP"}}, "Pods have no address of their own here"),
        ({"fieldRef": {"fieldPath": "metadata.labels"}}, "metadata.labels['key']"),
        ({"fieldRef": {"fieldPath": "spec.x"}}, "unsupported fieldPath: spec.x"),
        ({"resourceFieldRef": {"resource": "limits.gpu"}}, "unsupported container resource: limits.gpu"),
        ({"resourceFieldRef": {"resource": "limits.cpu", "containerName": "no"}}, "container no not found"),
        ({"somethingElse": {}}, "somethingElse is no source of a value"),
    ],
)
def test_what_is_not_there(source: Obj, message: str) -> None:
    """The variable and the container are named, and what is missing, in kubelet's words."""
    with pytest.raises(FusevolError) as caught:
        value(**source)

    assert str(caught.value).startswith('The variable V of container "c": ')
    assert message in str(caught.value)


def test_a_path_needs_all_its_variables() -> None:
    """subPathExpr: unlike in env, an unknown variable is an error."""
    assert environment.expand_path("a/$(X)$$(Y)", {"X": "1"}) == "a/1$(Y)"
    with pytest.raises(FusevolError, match='missing value for "Z"'):
        environment.expand_path("$(Z)", {"X": "1"})
