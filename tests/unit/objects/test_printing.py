"""Objects out: YAML, JSON, names and tables."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fusevol import objects
from fusevol.errors import NotFoundError, UsageError
from fusevol.objects.table import duration
from tests.unit.objects.samples import CLAIM, CLASS, POD, VOLUME, Obj, changed

NOW = dt.datetime(2026, 1, 3, tzinfo=dt.UTC)
MADE = ("metadata/creationTimestamp", "2026-01-01T00:00:00Z")


def rows(obj: Obj, *, wide: bool = False, usage: dict[str, int] | None = None) -> dict[str, str]:
    """The table of one object as a mapping."""
    headers, (row,) = objects.table(objects.find_kind(obj["kind"]), [obj], now=NOW, wide=wide, usage=usage)
    return dict(zip(headers, row, strict=True))


BOUND = changed(
    CLAIM,
    MADE,
    ("metadata/uid", "u"),
    ("spec/volumeName", "disk"),
    ("spec/storageClassName", "fast"),
    ("spec/volumeMode", "Filesystem"),
    ("status", {"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}),
)


def test_claims() -> None:
    """A claim's row has kubectl's columns and USED; wide adds the volume mode."""
    assert rows(BOUND, wide=True, usage={"u": 1536 << 20}) == {
        "NAME": "data",
        "STATUS": "Bound",
        "VOLUME": "disk",
        "CAPACITY": "2Gi",
        "ACCESS MODES": "RWO,ROX",
        "STORAGECLASS": "fast",
        "AGE": "2d",
        "USED": "1.5Gi",
        "VOLUMEMODE": "Filesystem",
    }


def test_pending_and_deleted_claims() -> None:
    """What a claim was not given yet stays empty; one that waits for its end says so."""
    pending = rows(changed(CLAIM, ("status", {"phase": "Pending"})))
    ending = rows(changed(BOUND, ("metadata/deletionTimestamp", "2026-01-02T00:00:00Z")))

    assert [pending[c] for c in ("STATUS", "VOLUME", "CAPACITY", "ACCESS MODES", "AGE", "USED")] == [
        "Pending",
        "",
        "",
        "",
        "<unknown>",
        "",
    ]
    assert ending["STATUS"] == "Terminating"


def test_volumes() -> None:
    """A volume's row has kubectl's columns and USED."""
    obj = changed(
        objects.admit(VOLUME),
        MADE,
        ("metadata/uid", "u"),
        ("spec/claimRef", {"namespace": "a", "name": "b"}),
        ("spec/storageClassName", "fast"),
        ("status", {"phase": "Failed", "reason": "VolumeFailedDelete"}),
    )

    assert rows(obj, usage={"u": 0}) == {
        "NAME": "disk",
        "CAPACITY": "1Gi",
        "ACCESS MODES": "RWO",
        "RECLAIM POLICY": "Retain",
        "STATUS": "Failed",
        "CLAIM": "a/b",
        "STORAGECLASS": "fast",
        "REASON": "VolumeFailedDelete",
        "AGE": "2d",
        "USED": "0",
    }


def test_classes() -> None:
    """A class's row marks the default one."""
    annotation = {"storageclass.kubernetes.io/is-default-class": "true"}
    obj = changed(objects.admit(CLASS), MADE, ("metadata/annotations", annotation), ("allowVolumeExpansion", True))

    assert rows(obj) == {
        "NAME": "fast (default)",
        "PROVISIONER": "fusevol.io/fusevol",
        "RECLAIMPOLICY": "Delete",
        "VOLUMEBINDINGMODE": "Immediate",
        "ALLOWVOLUMEEXPANSION": "true",
        "AGE": "2d",
    }


def test_pods() -> None:
    """A Pod's row counts its containers and tells why one waits."""
    states = [{"ready": False, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    obj = changed(POD, MADE, ("status", {"phase": "Running", "containerStatuses": states, "podIP": "10.0.0.1"}))

    assert rows(obj, wide=True) == {
        "NAME": "web",
        "READY": "0/1",
        "STATUS": "CrashLoopBackOff",
        "RESTARTS": "3",
        "AGE": "2d",
        "IP": "10.0.0.1",
        "NODE": "<none>",
        "NOMINATED NODE": "<none>",
        "READINESS GATES": "<none>",
    }
    assert rows(POD)["STATUS"] == "Pending"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (5, "5s"),
        (119, "119s"),
        (120, "2m"),
        (200, "3m20s"),
        (599, "9m59s"),
        (600, "10m"),
        (10799, "179m"),
        (10800, "3h"),
        (12345, "3h25m"),
        (8 * 3600 + 60, "8h"),
        (47 * 3600, "47h"),
        (51 * 3600, "2d3h"),
        (8 * 86400 + 3600, "8d"),
        (700 * 86400, "700d"),
        (800 * 86400, "2y70d"),
        (3000 * 86400, "8y"),
    ],
)
def test_ages(seconds: int, text: str) -> None:
    """Ages have at most two units, as in kubectl."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1Ki"), (1536, "1.5Ki"), (2**30 - 1, "1023.9Mi"), (2**30, "1Gi"), (2**62, "4Ei")],
)
def test_sizes(count: int, text: str) -> None:
    """Sizes are short and never rounded up: a volume that looks full is full."""
    assert objects.size(count) == text


def test_yaml_order() -> None:
    """A reader finds apiVersion, kind, name and spec first and the status last."""
    text = objects.dump(dict(sorted(BOUND.items(), reverse=True)), "yaml")

    assert [line for line in text.splitlines() if not line.startswith((" ", "-"))] == [
        "apiVersion: v1",
        "kind: PersistentVolumeClaim",
        "metadata:",
        "spec:",
        "status:",
    ]
    assert text.index("  name: data") < text.index("  creationTimestamp:")


def test_lists_and_names() -> None:
    """Several objects are a List; names are what kubectl takes."""
    listed = objects.dump([CLAIM, CLASS], "yaml")

    assert objects.load(listed, "x") == [CLAIM, CLASS]
    assert json.loads(objects.dump([CLAIM], "json"))["items"] == [CLAIM]
    assert json.loads(objects.dump(CLAIM, "json")) == CLAIM
    assert objects.dump([CLAIM, VOLUME, CLASS, POD], "name").split() == [
        "persistentvolumeclaim/data",
        "persistentvolume/disk",
        "storageclass.storage.k8s.io/fast",
        "pod/web",
    ]


def test_unknown_form() -> None:
    """Another output format is a usage error."""
    with pytest.raises(UsageError, match="xml"):
        objects.dump(CLAIM, "xml")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "yes",
        "on",
        "~",
        "null",
        "1e3",
        "0o7",
        "1_000",
        "2019-12-29",
        "a\nb\n",
        "a\n\n",
        " a\nb",
        "12:30:45",
        ".5",
        "=",
        "|",
        "- a",
        "#",
        "y",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_yaml_and_json_survive(values: dict[str, Any]) -> None:
    """What is printed is read back as the same object, by us and by YAML's own reader."""
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": values}
    text = objects.dump(obj, "yaml")

    assert objects.load(text, "x") == [obj]
    assert yaml.safe_load(text) == obj
    assert json.loads(objects.dump(obj, "json")) == obj


@pytest.mark.parametrize("text", ["1e3", "0o7", "y", "1_0", ".5", "+1"])
def test_strings_that_other_readers_take_for_numbers_are_quoted(text: str) -> None:
    """Go's reader takes ``1e3`` for a number: it is printed in quotes."""
    assert f'a: "{text}"' in objects.dump({"kind": "Pod", "a": text}, "yaml").replace("'", '"')


def test_long_text_is_a_block() -> None:
    """A script stays readable."""
    assert "a: |\n  x\n  y\n" in objects.dump({"kind": "Pod", "a": "x\ny\n"}, "yaml")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("pvc", "PersistentVolumeClaim"),
        ("PV", "PersistentVolume"),
        ("StorageClasses", "StorageClass"),
        ("sc", "StorageClass"),
        ("storageclass.storage.k8s.io", "StorageClass"),
        ("Pod", "Pod"),
        ("po", "Pod"),
    ],
)
def test_words_for_kinds(word: str, name: str) -> None:
    """A kind is found by name, plural, singular and short name in any case."""
    assert objects.find_kind(word).name == name


def test_unknown_kind() -> None:
    """An unknown kind is told with those that exist."""
    with pytest.raises(NotFoundError, match=r'no kind "frobs".*persistentvolumeclaims \(pvc\)'):
        objects.find_kind("frobs")
