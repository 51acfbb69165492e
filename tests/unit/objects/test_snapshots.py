"""The snapshot kinds: what is refused, what may change, how they are listed."""

from __future__ import annotations

import datetime as dt

import pytest

from fusevol import objects
from tests.unit.objects.samples import (
    SNAPSHOT,
    SNAPSHOT_CLASS,
    SNAPSHOT_CONTENT,
    Obj,
    changed,
    refusal,
    update_refusal,
)

CLAIM = "spec/source/persistentVolumeClaimName"
CONTENT = "spec/source/volumeSnapshotContentName"


@pytest.mark.parametrize(
    ("obj", "told"),
    [
        (changed(SNAPSHOT, ("spec/source", ...)), "spec.source: Required value: exactly one of"),
        (changed(SNAPSHOT, (CONTENT, "c")), "exactly one of persistentVolumeClaimName and volumeSnapshotContentName"),
        (changed(SNAPSHOT, ("spec/volumeSnapshotClassName", "")), "must not be the empty string when set"),
        (changed(SNAPSHOT_CLASS, ("deletionPolicy", ...)), "deletionPolicy: Required value"),
        (changed(SNAPSHOT_CLASS, ("deletionPolicy", "Keep")), 'supported values: "Delete", "Retain"'),
        (
            changed(SNAPSHOT_CONTENT, ("spec/source/volumeHandle", "v")),
            "exactly one of volumeHandle and snapshotHandle",
        ),
        (changed(SNAPSHOT_CONTENT, ("spec/volumeSnapshotRef/namespace", ...)), "volumeSnapshotRef.namespace: Required"),
    ],
)
def test_what_is_refused(obj: Obj, told: str) -> None:
    """Each mistake is named with its field."""
    assert told in refusal(obj)


def test_a_source_stays() -> None:
    """What a snapshot is of cannot change."""
    assert "spec.source: Invalid value" in update_refusal(SNAPSHOT, changed(SNAPSHOT, (CLAIM, "other")))
    assert "spec.driver" in update_refusal(SNAPSHOT_CONTENT, changed(SNAPSHOT_CONTENT, ("spec/driver", "other")))


def test_columns() -> None:
    """As kubectl shows them: empty while nothing is known."""
    now = dt.datetime(2026, 1, 1, 0, 1, tzinfo=dt.UTC)
    taken: Obj = {
        **objects.admit(SNAPSHOT),
        "status": {"readyToUse": True, "restoreSize": "1Gi", "creationTime": "2026-01-01T00:00:00Z"},
    }
    taken["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    headers, rows = objects.table(objects.find_kind("vs"), [objects.admit(SNAPSHOT), taken], now=now)

    assert headers[1] == "READYTOUSE"
    assert rows[0][1] == ""
    assert rows[1] == ["before", "true", "data", "", "1Gi", "", "", "60s", "60s"]
