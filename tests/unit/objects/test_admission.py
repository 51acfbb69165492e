"""What is admitted, and with which words the rest is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusevol import objects
from fusevol.errors import InvalidError
from tests.unit.objects.samples import ALL, CLAIM, CLASS, POD, VOLUME, Obj, changed, refusal, says

STORAGE = "spec/resources/requests/storage"
SUBDOMAIN = "a lowercase RFC 1123 subdomain must consist of"


@pytest.mark.parametrize("obj", ALL, ids=lambda o: o["kind"])
def test_admission_is_idempotent_and_leaves_its_argument_alone(obj: Obj) -> None:
    """What was admitted is admitted again without a change; the object given stays as it is."""
    before = copy.deepcopy(obj)
    admitted = objects.admit(obj)

    assert obj == before
    assert objects.admit(admitted) == admitted


def test_defaults() -> None:
    """What is left out is filled in as Kubernetes does."""
    claim, volume, storage_class, pod = (objects.admit(o) for o in (CLAIM, VOLUME, CLASS, POD))

    assert claim["metadata"]["namespace"] == "default"
    assert claim["spec"]["volumeMode"] == "Filesystem"
    assert (volume["spec"]["persistentVolumeReclaimPolicy"], volume["spec"]["hostPath"]["type"]) == ("Retain", "")
    assert (storage_class["reclaimPolicy"], storage_class["volumeBindingMode"]) == ("Delete", "Immediate")
    assert (pod["spec"]["restartPolicy"], pod["metadata"]["namespace"]) == ("Always", "default")


def test_quantities_become_canonical() -> None:
    """Sizes are stored as Kubernetes prints them, numbers as strings."""
    claim = objects.admit(changed(CLAIM, (STORAGE, "1024Mi"), ("spec/resources/limits", {"storage": 2048})))
    volume = objects.admit(changed(VOLUME, ("spec/capacity/storage", "0.5Gi")))
    pod = objects.admit(changed(POD, ("spec/volumes/0/emptyDir", {"sizeLimit": "1.5Gi"})))

    assert claim["spec"]["resources"] == {"requests": {"storage": "1Gi"}, "limits": {"storage": "2048"}}
    assert volume["spec"]["capacity"] == {"storage": "512Mi"}
    assert pod["spec"]["volumes"][0]["emptyDir"] == {"sizeLimit": "1536Mi"}


def test_what_the_server_sets_is_dropped_and_the_unknown_kept() -> None:
    """Output of ``kubectl get -o yaml`` applies; a field that nobody knows survives; null is the same as absent."""
    given_ = changed(
        CLAIM,
        ("metadata/uid", "1f12135e-69dd-424e-97ac-c008e0b2981a"),
        ("metadata/resourceVersion", "7"),
        ("metadata/creationTimestamp", None),
        ("metadata/selfLink", "/api"),
        ("status", {"phase": "Bound"}),
        ("spec/storageClassName", None),
        ("spec/novelty", {"a": [1, None]}),
    )
    admitted = objects.admit(given_)

    assert admitted["metadata"] == {"name": "data", "namespace": "default"}
    assert "status" not in admitted
    assert "storageClassName" not in admitted["spec"]
    assert admitted["spec"]["novelty"] == {"a": [1, None]}


def test_a_namespace_where_none_belongs_is_dropped() -> None:
    """A volume has no namespace, whatever the YAML says; the key has none either."""
    admitted = objects.admit(changed(VOLUME, ("metadata/namespace", "x")))

    assert "namespace" not in admitted["metadata"]
    assert objects.key(admitted) == ("PersistentVolume", "", "disk")


FROM_CLAIM = {"kind": "PersistentVolumeClaim", "name": "a"}
FROM_SNAPSHOT = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "a"}
CUSTOM = {"apiGroup": "example.com", "kind": "Backup", "name": "a"}


@pytest.mark.parametrize(
    ("given", "source", "reference"),
    [
        ({"dataSource": FROM_CLAIM}, FROM_CLAIM, FROM_CLAIM),
        ({"dataSource": FROM_SNAPSHOT}, FROM_SNAPSHOT, FROM_SNAPSHOT),
        ({"dataSourceRef": FROM_CLAIM}, FROM_CLAIM, FROM_CLAIM),
        ({"dataSourceRef": CUSTOM}, CUSTOM, CUSTOM),
        ({"dataSource": CUSTOM}, None, None),
        ({"dataSource": CUSTOM, "dataSourceRef": CUSTOM}, CUSTOM, CUSTOM),
    ],
)
def test_both_names_of_a_source_are_filled_in(given: Obj, source: Obj | None, reference: Obj | None) -> None:
    """4.11: one is copied to the other; what dataSource does not know is dropped when it stands alone."""
    spec = objects.admit(changed(CLAIM, *((f"spec/{k}", v) for k, v in given.items())))["spec"]

    assert (spec.get("dataSource"), spec.get("dataSourceRef")) == (source, reference)


CLAIM_CASES = [
    ([(STORAGE, ...)], "spec.resources.requests.storage: Required value"),
    ([("spec/resources", ...)], "spec.resources.requests.storage: Required value"),
    ([(STORAGE, "0")], 'spec.resources.requests.storage: Invalid value: "0": must be greater than zero'),
    ([(STORAGE, 0)], "spec.resources.requests.storage: Invalid value: 0: must be greater than zero"),
    ([(STORAGE, "-1Gi")], 'spec.resources.requests.storage: Invalid value: "-1Gi": must be greater than zero'),
    (
        [(STORAGE, "10GB")],
        (
            'spec.resources.requests.storage: Invalid value: "10GB": quantities must match the regular expression '
            '\'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$\'; try "10G" or "10Gi"'
        ),
    ),
    (
        [(STORAGE, "9" * 40 + "Gi")],
        f'spec.resources.requests.storage: Invalid value: "{"9" * 40}Gi": must be less than 8Ei (2^63 - 1 bytes)',
    ),
    (
        [(STORAGE, ["1Gi"])],
        'spec.resources.requests.storage: Invalid value: ["1Gi"]: write a number with a unit, such as 10Gi',
    ),
    ([("spec/accessModes", ...)], "spec.accessModes: Required value: at least 1 access mode is required"),
    ([("spec/accessModes", [])], "spec.accessModes: Required value: at least 1 access mode is required"),
    ([("spec/accessModes", "ReadWriteOnce")], 'spec.accessModes: Invalid value: "ReadWriteOnce": must be a list'),
    (
        [("spec/accessModes", ["RWO"])],
        (
            'spec.accessModes[0]: Unsupported value: "RWO": supported values: "ReadOnlyMany", "ReadWriteMany", '
            '"ReadWriteOnce", "ReadWriteOncePod"'
        ),
    ),
    (
        [("spec/accessModes", ["ReadWriteOncePod", "ReadOnlyMany"])],
        "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
    ),
    (
        [("spec/volumeMode", "File")],
        'spec.volumeMode: Unsupported value: "File": supported values: "Block", "Filesystem"',
    ),
    ([("spec/dataSource", {"kind": "PersistentVolumeClaim"})], "spec.dataSource.name: Required value"),
    (
        [("spec/dataSourceRef", {"kind": "Backup", "name": "b"})],
        (
            "spec.dataSourceRef.kind: Invalid value: \"Backup\": must be 'PersistentVolumeClaim' when referencing the "
            "default apiGroup"
        ),
    ),
    (
        [("spec/dataSourceRef", {**FROM_CLAIM, "namespace": "other"})],
        "spec.dataSourceRef.namespace: Forbidden: sources in other namespaces are not served here",
    ),
    (
        [("spec/dataSource", FROM_CLAIM), ("spec/dataSourceRef", {**FROM_CLAIM, "name": "b"})],
        f"spec.dataSource: Invalid value: {json.dumps(FROM_CLAIM)}: must match dataSourceRef",
    ),
    (
        [("spec/selector", {"matchExpressions": [{"key": "a", "operator": "In"}]})],
        (
            "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or "
            "'NotIn'"
        ),
    ),
    (
        [("spec/selector", {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]})],
        (
            "spec.selector.matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or "
            "'DoesNotExist'"
        ),
    ),
    (
        [("spec/selector", {"matchExpressions": [{"key": "a", "operator": "Is"}]})],
        'spec.selector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator',
    ),
    (
        [("spec/accessModes", ...), (STORAGE, ...)],
        (
            "[spec.accessModes: Required value: at least 1 access mode is required, "
            "spec.resources.requests.storage: Required value]"
        ),
    ),
]

ON_NODE_A = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}
ONE_FIELD = ".values: Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
FIELDS = "spec.nodeAffinity.required.nodeSelectorTerms[0].matchFields[0]"
AFFINITY = {"required": {"nodeSelectorTerms": [{"matchExpressions": [ON_NODE_A]}]}}
NO_SOURCE = [("spec/hostPath", ...)]

VOLUME_CASES = [
    ([("spec/capacity", ...)], "spec.capacity: Required value"),
    ([("spec/capacity", {"cpu": 1})], 'spec.capacity: Unsupported value: ["cpu"]: supported values: "storage"'),
    ([("spec/capacity/storage", "0")], 'spec.capacity[storage]: Invalid value: "0": must be greater than zero'),
    ([("spec/accessModes", ...)], "spec.accessModes: Required value"),
    (
        [("spec/persistentVolumeReclaimPolicy", "Keep")],
        (
            'spec.persistentVolumeReclaimPolicy: Unsupported value: "Keep": supported values: '
            '"Delete", "Recycle", "Retain"'
        ),
    ),
    (NO_SOURCE, "spec: Required value: must specify a volume type"),
    (
        [*NO_SOURCE, ("spec/hostpath", {"path": "/"})],
        'spec: Required value: must specify a volume type; "hostpath" must be written "hostPath"',
    ),
    (
        [("spec/nfs", {"server": "a", "path": "/"})],
        "spec.nfs: Forbidden: may not specify more than 1 volume type",
    ),
    ([("spec/hostPath", {})], "spec.hostPath.path: Required value"),
    ([("spec/hostPath/path", "/a/../b")], "spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"),
    (
        [("spec/hostPath/path", "/"), ("spec/persistentVolumeReclaimPolicy", "Recycle")],
        "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
    ),
    (
        [*NO_SOURCE, ("spec/local", {"path": "/srv"})],
        "spec.nodeAffinity: Required value: Local volume requires node affinity",
    ),
    (
        [*NO_SOURCE, ("spec/local", {"path": "/srv"}), ("spec/nodeAffinity", {})],
        "spec.nodeAffinity.required: Required value: must specify required node constraints",
    ),
    (
        [("spec/nodeAffinity", {"required": {}})],
        "spec.nodeAffinity.required.nodeSelectorTerms: Required value: must have at least one node selector term",
    ),
    *(
        ([("spec/nodeAffinity", {"required": {"nodeSelectorTerms": [{"matchFields": [fields]}]}})], FIELDS + said)
        for fields, said in (
            (
                {"key": "metadata.uid", "operator": "In", "values": ["a"]},
                '.key: Invalid value: "metadata.uid": not a valid field selector key',
            ),
            (
                {"key": "metadata.name", "operator": "Exists"},
                '.operator: Invalid value: "Exists": not a valid selector operator',
            ),
            (
                {"key": "metadata.name", "operator": "NotIn", "values": ["a", "b"]},
                ONE_FIELD,
            ),
        )
    ),
    ([*NO_SOURCE, ("spec/csi", {"driver": "d"})], "spec.csi.volumeHandle: Required value"),
    ([*NO_SOURCE, ("spec/csi", {"volumeHandle": "h"})], "spec.csi.driver: Required value"),
    (
        [*NO_SOURCE, ("spec/csi", {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {"name": "s"}})],
        "spec.csi.nodeStageSecretRef.namespace: Required value",
    ),
    ([*NO_SOURCE, ("spec/flexVolume", {})], "spec.flexVolume.driver: Required value"),
    (
        [*NO_SOURCE, ("spec/flexVolume", {"driver": "a/b", "options": {"x.k8s.io/a": "1"}})],
        'spec.flexVolume.options[x.k8s.io/a]: Invalid value: "1": kubernetes.io and k8s.io namespaces are reserved',
    ),
    ([*NO_SOURCE, ("spec/cephfs", {"path": "/"})], "spec.cephfs.monitors: Required value"),
    (
        [*NO_SOURCE, ("spec/nfs", {"server": "a", "path": "b"})],
        'spec.nfs.path: Invalid value: "b": must be an absolute path',
    ),
]

CLASS_CASES = [
    ([("provisioner", ...)], "provisioner: Required value"),
    (
        [("reclaimPolicy", "Recycle")],
        'reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain"',
    ),
    (
        [("volumeBindingMode", "Late")],
        'volumeBindingMode: Unsupported value: "Late": supported values: "Immediate", "WaitForFirstConsumer"',
    ),
    ([("parameters", {"a": 1})], "parameters[a]: Invalid value: 1: must be a string (put it in quotes)"),
    ([("parameters", {str(i): "" for i in range(513)})], "parameters: Too many: 513: must have at most 512 items"),
    ([("parameters", {"a": "x" * 2**18})], "parameters: Too long: may not be more than 262144 bytes"),
    ([("allowVolumeExpansion", "yes")], 'allowVolumeExpansion: Invalid value: "yes": must be true or false'),
]

MOUNT = "spec/containers/0/volumeMounts/0"
MOUNTED = "spec.containers[0].volumeMounts[0]"
V = "spec/volumes/0"

POD_CASES = [
    ([("spec/volumes/0/emptyDir", ...)], "spec.volumes[0]: Required value: must specify a volume type"),
    ([("spec/volumes/0/emptyDir", None)], "spec.volumes[0]: Required value: must specify a volume type"),
    (
        [(f"{V}/hostPath", {"path": "/"})],
        "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
    ),
    (
        [(f"{V}/emptyDir", {"sizeLimit": "-1"})],
        "spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
    ),
    (
        [(f"{V}/emptyDir", {"mode": 0o2000})],
        "spec.volumes[0].emptyDir.mode: Invalid value: 1024: must be between 0 and 1023, inclusive",
    ),
    (
        [(V, {"name": "v", "hostPath": {"path": "/srv/../etc"}})],
        "spec.volumes[0].hostPath.path: Invalid value: \"/srv/../etc\": must not contain '..'",
    ),
    ([(V, {"name": "v", "hostPath": {}})], "spec.volumes[0].hostPath.path: Required value"),
    (
        [(V, {"name": "v", "hostPath": {"path": "/", "type": "Dir"}})],
        (
            'spec.volumes[0].hostPath.type: Unsupported value: "Dir": supported values: "", '
            '"BlockDevice", "CharDevice", '
            '"Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"'
        ),
    ),
    (
        [(V, {"name": "v", "persistentVolumeClaim": {}})],
        "spec.volumes[0].persistentVolumeClaim.claimName: Required value",
    ),
    (
        [(V, {"name": "v", "ephemeral": {}})],
        "spec.volumes[0].ephemeral.volumeClaimTemplate: Required value",
    ),
    ([("spec/volumes", [{"name": "v", "emptyDir": {}}] * 2)], 'spec.volumes[1].name: Duplicate value: "v"'),
    (
        [(f"{V}/name", "a.b"), (f"{MOUNT}/name", "a.b")],
        (
            'spec.volumes[0].name: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case '
            "alphanumeric characters or '-', and must start and end with an alphanumeric character "
            "(e.g. 'my-name',  or "
            "'123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'); try \"a-b\""
        ),
    ),
    ([(f"{MOUNT}/name", "other")], f'{MOUNTED}.name: Not found: "other"'),
    ([(f"{MOUNT}/mountPath", ...)], f"{MOUNTED}.mountPath: Required value"),
    ([(f"{MOUNT}/mountPath", "/a:b")], f"{MOUNTED}.mountPath: Invalid value: \"/a:b\": must not contain ':'"),
    (
        [("spec/containers/0/volumeMounts", [{"name": "v", "mountPath": "/v"}] * 2)],
        'spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/v": must be unique',
    ),
    ([(f"{MOUNT}/subPath", "/a")], f'{MOUNTED}.subPath: Invalid value: "/a": must be a relative path'),
    ([(f"{MOUNT}/subPath", "a/../b")], f"{MOUNTED}.subPath: Invalid value: \"a/../b\": must not contain '..'"),
    (
        [(f"{MOUNT}/subPath", "a"), (f"{MOUNT}/subPathExpr", "b")],
        f'{MOUNTED}.subPathExpr: Invalid value: "b": subPathExpr and subPath are mutually exclusive',
    ),
    (
        [(f"{MOUNT}/mountPropagation", "Bidirectional")],
        (
            f"{MOUNTED}.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged "
            "containers"
        ),
    ),
    (
        [(f"{MOUNT}/recursiveReadOnly", "Enabled")],
        f"{MOUNTED}.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
    ),
    (
        [
            (f"{MOUNT}/recursiveReadOnly", "Enabled"),
            (f"{MOUNT}/readOnly", True),
            (f"{MOUNT}/mountPropagation", "HostToContainer"),
        ],
        f"{MOUNTED}.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified",
    ),
    (
        [("spec/containers/0/volumeDevices", [{"name": "v", "devicePath": "/dev/x"}])],
        (
            '[spec.containers[0].volumeDevices[0].name: Invalid value: "v": can only use volume source type of '
            "PersistentVolumeClaim or Ephemeral for block mode, "
            "spec.containers[0].volumeDevices[0].name: Invalid value: "
            '"v": must not already exist in volumeMounts]'
        ),
    ),
    (
        [
            (
                "spec/volumes",
                [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "w", "emptyDir": {}}],
            ),
            ("spec/containers/0/volumeDevices", [{"name": "v", "devicePath": "/v"}]),
            (f"{MOUNT}/name", "w"),
        ],
        f'{MOUNTED}.mountPath: Invalid value: "/v": must not already exist as a path in volumeDevices',
    ),
    ([("spec/containers", [])], "spec.containers: Required value"),
    ([("spec/containers/0/name", ...)], "spec.containers[0].name: Required value"),
    ([("spec/containers/0/image", ...)], "spec.containers[0].image: Required value"),
    (
        [("spec/containers/0/image", "a ")],
        'spec.containers[0].image: Invalid value: "a ": must not have leading or trailing whitespace',
    ),
    (
        [("spec/initContainers", [{"name": "c", "image": "a"}])],
        'spec.containers[0].name: Duplicate value: "c"',
    ),
    (
        [("spec/restartPolicy", "Sometimes")],
        'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"',
    ),
    ([("spec/containers/0/command", "sh")], 'spec.containers[0].command: Invalid value: "sh": must be a list'),
    (
        [("spec/containers/0/command", [1])],
        "spec.containers[0].command[0]: Invalid value: 1: must be a string (put it in quotes)",
    ),
    ([("spec/containers/0/env", [{"value": "a"}])], "spec.containers[0].env[0].name: Required value"),
]

CASES = [
    *((CLAIM, *case) for case in CLAIM_CASES),
    *((VOLUME, *case) for case in VOLUME_CASES),
    *((CLASS, *case) for case in CLASS_CASES),
    *((POD, *case) for case in POD_CASES),
]


@pytest.mark.parametrize(("obj", "changes", "text"), CASES, ids=[f"{o['kind']} {t[:60]}" for o, _, t in CASES])
def test_refusal(obj: Obj, changes: list[tuple[str, Any]], text: str) -> None:
    """An object with a mistake is refused with Kubernetes' words and the path of the field."""
    assert refusal(changed(obj, *changes)) == says(obj, text)


@pytest.mark.parametrize(
    "changes",
    [
        [("spec/local", {"path": "/srv"}), ("spec/nodeAffinity", AFFINITY)],
        [("spec/csi", {"driver": "fusevol.io", "volumeHandle": "default/a", "volumeAttributes": {"a": "b"}})],
        [("spec/flexVolume", {"driver": "a/b", "options": {"fusevol/claim": "data"}})],
        [("spec/cephfs", {"monitors": ["10.0.0.1:6789"], "secretRef": {"name": "s", "namespace": "n"}})],
        [("spec/nfs", {"server": "a", "path": "/b"})],
        [("spec/rbd", {"anything": "goes"})],
    ],
    ids=lambda c: str(c[0][0]),
)
def test_volume_sources(changes: list[tuple[str, Any]]) -> None:
    """Every source that Kubernetes knows is admitted, and the view names it."""
    admitted = objects.admit(changed(VOLUME, *NO_SOURCE, *changes))

    assert objects.volume.source(admitted) == (changes[0][0].partition("/")[2], changes[0][1])


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({}, "no kind"),
        ([], "must be a mapping"),
        ("Pod", "must be a mapping"),
        ({"kind": "Pod"}, "no apiVersion: write v1"),
        ({"kind": "pvc", "apiVersion": "v1"}, 'no matches for kind "pvc" in version "v1"'),
        ({"kind": "Deployment", "apiVersion": "apps/v1"}, 'no matches for kind "Deployment" in version "apps/v1"'),
        ({"kind": "StorageClass", "apiVersion": "v1"}, "write apiVersion: storage.k8s.io/v1"),
        ({"kind": ["Pod"], "apiVersion": "v1"}, "no kind"),
        ({"kind": "Pod", "apiVersion": "v1"}, "metadata.name: Required value: name or generateName is required"),
        ({"kind": "Pod", "apiVersion": "v1", "metadata": "x"}, 'metadata: Invalid value: "x": must be a mapping'),
        ({**POD, "metadata": {"name": 7}}, "metadata.name: Invalid value: 7: must be a string"),
        ({**POD, "metadata": {"generateName": "a-"}}, "names are not generated here"),
        ({**POD, "spec": ["x"]}, 'spec: Invalid value: ["x"]: must be a mapping'),
    ],
)
def test_what_is_no_object(obj: Any, text: str) -> None:
    """Input of the wrong shape is refused with a sentence, too."""
    assert text in refusal(obj)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"name": "../etc"}, f'metadata.name: Invalid value: "../etc": {SUBDOMAIN}'),
        ({"name": "a" * 254}, "must be no more than 253 bytes"),
        ({"name": "a\nb"}, r'"a\nb"'),
        ({"name": "a", "namespace": "A_B"}, 'metadata.namespace: Invalid value: "A_B"'),
        ({"name": "a", "namespace": "a.b"}, "RFC 1123 label"),
        ({"name": "a", "labels": {"-x": "b"}}, 'metadata.labels: Invalid value: "-x": name part must consist of'),
        ({"name": "a", "labels": {"a/b/c": "b"}}, "a qualified name must consist of"),
        ({"name": "a", "labels": {"/c": "b"}}, "prefix part must be non-empty"),
        ({"name": "a", "labels": {"A_/c": "b"}}, f"prefix part {SUBDOMAIN}"),
        ({"name": "a", "labels": {"a/": "b"}}, "name part must be non-empty"),
        ({"name": "a", "labels": {"c": "b c"}}, 'metadata.labels: Invalid value: "b c": a valid label must be'),
        ({"name": "a", "labels": {"c": "x" * 64}}, "must be no more than 63 bytes"),
        ({"name": "a", "labels": {"c": True}}, "metadata.labels[c]: Invalid value: true: must be a string"),
        ({"name": "a", "annotations": {"c": "x" * 2**18}}, "metadata.annotations: Too long"),
        ({"name": "a", "finalizers": ["b c"]}, 'metadata.finalizers[0]: Invalid value: "b c"'),
        ({"name": "a", "ownerReferences": [{"kind": "X"}]}, "metadata.ownerReferences[0].uid: Required value"),
    ],
)
def test_metadata(metadata: Obj, text: str) -> None:
    """Names, labels, annotations, finalizers and owners follow Kubernetes' rules."""
    assert text in refusal({**CLAIM, "metadata": metadata})


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("emptyDir-path", "emptydir-path"),
        ("My Volume", "my-volume"),
        ("a_b.C_", "a-b.c"),
        ("Größe", "groe"),
        ("-a-", "a"),
        ("..", None),
        ("数据", None),
    ],
)
def test_a_refused_name_proposes_a_valid_one(name: str, proposal: str | None) -> None:
    """The nearest valid name is proposed, and none if nothing is left of it."""
    text = refusal(changed(POD, ("metadata/name", name)))

    assert text.endswith(f'; try "{proposal}"') if proposal else "try" not in text


@given(st.text(min_size=1, max_size=300))
def test_proposals_are_admitted(name: str) -> None:
    """Whatever name is refused, the proposal is not."""
    try:
        objects.admit(changed(POD, ("metadata/name", name)))
    except InvalidError as e:
        proposal = e.message.partition('; try "')[2].rstrip('"')
    else:
        proposal = name

    assert not proposal or objects.admit(changed(POD, ("metadata/name", proposal)))["metadata"]["name"] == proposal


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1Gi", "/a", ".."]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "path", "storage", "key"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def _paths(value: Any, prefix: str = "") -> list[str]:
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in (f"{prefix}{k}", *_paths(v, f"{prefix}{k}/"))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in (f"{prefix}{i}", *_paths(v, f"{prefix}{i}/"))]
    return []


EXPRESSION = {"key": "a", "operator": "Exists"}
INIT = {
    "name": "i",
    "image": "b",
    "env": [{"name": "A", "value": "b"}],
    "volumeDevices": [{"name": "v", "devicePath": "/d"}],
}
KINDS = ("emptyDir", "hostPath", "secret", "projected", "ephemeral", "configMap", "csi")
RICH = [
    changed(
        CLAIM,
        ("spec/selector", {"matchLabels": {"a": "b"}, "matchExpressions": [EXPRESSION]}),
        ("metadata/annotations", {"a": "b"}),
    ),
    changed(
        VOLUME,
        *NO_SOURCE,
        ("spec/local", {"path": "/srv"}),
        ("spec/nodeAffinity", AFFINITY),
        ("spec/claimRef", {"name": "a"}),
    ),
    changed(VOLUME, *NO_SOURCE, ("spec/csi", {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {}})),
    changed(
        CLASS,
        ("parameters", {"a": "b"}),
        ("allowedTopologies", [{"matchLabelExpressions": [{"key": "a", "values": ["b"]}]}]),
    ),
    changed(POD, ("spec/initContainers", [INIT]), (f"{MOUNT}/subPath", "a")),
    changed(POD, ("spec/volumes", [{"name": "v", kind: {}} for kind in KINDS])),
]
"""Objects with many places."""
PLACES = [(obj, path) for obj in RICH for path in _paths(obj)]


@settings(max_examples=400)
@given(st.sampled_from(PLACES), JSON)
def test_any_value_anywhere_is_admitted_or_refused_in_one_sentence(place: tuple[Obj, str], value: Any) -> None:
    """Whatever stands at whatever place: never another exception, never more than one line, never unprintable."""
    obj, path = place
    told = ""
    try:
        json.dumps(objects.admit(changed(obj, (path, value))))
    except InvalidError as e:
        told = e.message

    assert "\n" not in told
    assert told.isprintable()


def test_deep_nesting_is_refused() -> None:
    """An object that is nested too deeply for recursive code is a mistake like others."""
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]

    assert "nested too deeply" in refusal(changed(CLAIM, ("spec/deep", deep)))


def test_all_labels_are_quoted_on_one_line() -> None:
    """A key with line breaks or lone surrogates does not break the message."""
    text = refusal(changed(CLASS, ("parameters", {"a\u2028\ud800\n": 1})))

    assert text.isprintable()
    text.encode()
