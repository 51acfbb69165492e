"""Scheduled snapshots: when one is taken, and which ones go."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from agent.controllers import schedule
from agent.controllers.schedule import LABEL, Schedule
from agent.controllers.view import Create, Delete
from fusevol import objects
from fusevol.errors import InvalidError

Obj = dict[str, Any]

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOURLY = Schedule(3600, 2)


def at(hours: float) -> dt.datetime:
    """So many hours after the claim was made."""
    return START + dt.timedelta(hours=hours)


def claim(name: str = "data", **metadata: str) -> Obj:
    """A bound claim."""
    own = {"name": name, "namespace": "default", "uid": "u", "creationTimestamp": START.isoformat(), **metadata}
    return {"kind": "PersistentVolumeClaim", "metadata": own, "status": {"phase": "Bound"}}


def snapshot(hours: float, *, ready: bool = True, label: str = "u", **metadata: str) -> Obj:
    """A snapshot that was made then."""
    own = {"name": f"s{hours}", "labels": {LABEL: label}, "creationTimestamp": at(hours).isoformat(), **metadata}
    return {"kind": "VolumeSnapshot", "metadata": own, "status": {"readyToUse": ready}}


@pytest.mark.parametrize(
    ("made", "hours", "taken", "deleted", "again"),
    [
        ([], 0.5, False, [], 1800),
        ([], 1, True, [], 3600),
        ([snapshot(1)], 1.75, False, [], 900),
        ([snapshot(1)], 9, True, [], 3600),
        ([snapshot(1, ready=False)], 9, False, [], 3600),
        ([snapshot(1, ready=False, deletionTimestamp="now")], 9, True, [], 3600),
        ([snapshot(3), snapshot(1), snapshot(2), snapshot(4)], 4.5, False, ["s1", "s2"], 1800),
        ([snapshot(3), snapshot(2), snapshot(1, deletionTimestamp="now")], 3.5, False, [], 1800),
        ([snapshot(3), snapshot(2), snapshot(4, ready=False)], 9, False, [], 3600),
        ([snapshot(1), snapshot(2, label="x"), snapshot(3, label="x"), snapshot(4, label="x")], 4.5, True, [], 3600),
    ],
)
def test_what_is_due(made: list[Obj], hours: float, taken: bool, deleted: list[str], again: float) -> None:
    """One per interval, none while one cannot be taken; the oldest go once newer ones are ready; a user's own stay."""
    steps, wait = schedule.decide(claim(), HOURLY, made, at(hours))

    assert [s.object["metadata"]["name"] for s in steps if isinstance(s, Delete)] == deleted
    assert (any(isinstance(s, Create) for s in steps), wait) == (taken, again)


@pytest.mark.parametrize("name", ["data", "a" * 253, "a" * 229 + ".b"])
def test_the_snapshot_is_a_valid_object(name: str) -> None:
    """However long the claim's name is."""
    (step,), _ = schedule.decide(claim(name), HOURLY, [], at(1))
    assert isinstance(step, Create)
    made = objects.admit(step.object)

    assert made["metadata"]["name"].endswith("-20260101-010000")
    assert (made["metadata"]["labels"], objects.snapshot.claim_name(made)) == ({LABEL: "u"}, name)


@pytest.mark.parametrize("given", [claim(deletionTimestamp="now"), {**claim(), "status": {"phase": "Lost"}}])
def test_claims_without_a_future(given: Obj) -> None:
    """Nothing is taken of a claim that is being deleted or has no volume."""
    assert schedule.decide(given, HOURLY, [], at(9))[0] == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"snapshotKeep": "3"}, "needs snapshotSchedule"),
        ({"snapshotSchedule": "0"}, "must not be 0"),
        ({"snapshotSchedule": "daily"}, "is not a time"),
        ({"snapshotSchedule": "1h", "snapshotKeep": "0"}, "is not a number from 1 to 1000"),
        ({"snapshotSchedule": "1h", "snapshotKeep": "-1"}, "is not a number from 1 to 1000"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, str], said: str) -> None:
    """Each with a sentence that names the class."""
    with pytest.raises(InvalidError, match=said) as e:
        Schedule.of({"metadata": {"name": "c"}, "parameters": parameters})

    assert 'of StorageClass "c"' in e.value.message


def test_parameters() -> None:
    """Seven are kept when the class says nothing else; a class without the parameter has no schedule."""
    found = [
        Schedule.of({"metadata": {"name": "c"}, "parameters": p})
        for p in ({}, {"snapshotSchedule": "1h"}, {"snapshotSchedule": "90", "snapshotKeep": "3"})
    ]

    assert found == [None, (3600, 7), (90, 3)]
