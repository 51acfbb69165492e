"""Snapshots of claims at the times that their class says, and the end of those that are too many. Pure.

They are ordinary VolumeSnapshots with a label; nothing else remembers when the last one was taken. Whatever was due
while no agent ran is made up for by one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Self

from agent import duration
from agent.controllers.view import Action, Create, Delete, being_deleted, phase
from fusevol import objects
from fusevol.errors import InvalidError

Obj = dict[str, Any]

LABEL: Final = "fusevol.io/scheduled-for"
"""On a snapshot that was made here: the uid of its claim. One without it is nobody's but the user's."""
PARAMETERS: Final = {"snapshotSchedule", "snapshotKeep"}
_KEEP: Final = "7"
_MOST: Final = 1000
_LOOK: Final = 3600.0
"""The most seconds until the next look: the clock may be set meanwhile."""


class Schedule(NamedTuple):
    """What a class says."""

    every: int
    """Seconds."""
    keep: int

    @classmethod
    def of(cls, storage_class: Obj) -> Self | None:
        """That of a StorageClass, if it has one. Raises :class:`InvalidError`."""
        whose = f'of StorageClass "{storage_class["metadata"]["name"]}"'
        given: Mapping[str, Any] = storage_class.get("parameters") or {}
        if "snapshotSchedule" not in given:
            if "snapshotKeep" in given:
                raise InvalidError(f"The parameter snapshotKeep {whose} needs snapshotSchedule, such as 1h, beside it.")
            return None
        every = duration.seconds(str(given["snapshotSchedule"]), f"The parameter snapshotSchedule {whose}")
        if not every:
            raise InvalidError(f"The parameter snapshotSchedule {whose} must not be 0: leave it out for none.")
        keep = str(given.get("snapshotKeep", _KEEP))
        if not (keep.isascii() and keep.isdigit() and len(keep) < 5 and 0 < int(keep) <= _MOST):
            raise InvalidError(f'The parameter snapshotKeep "{keep}" {whose} is not a number from 1 to {_MOST}.')
        return cls(every, int(keep))


def decide(claim: Obj, schedule: Schedule, snapshots: Iterable[Obj], now: dt.datetime) -> tuple[list[Action], float]:
    """The next steps for *claim*, of which there are *snapshots*; and in how many seconds to look again."""
    if being_deleted(claim) or phase(claim) != "Bound":
        return [], _LOOK
    made = [s for s in snapshots if (s["metadata"].get("labels") or {}).get(LABEL) == claim["metadata"]["uid"]]
    made.sort(key=lambda s: (_created(s), s["metadata"]["name"]))
    ready = [s for s in made if objects.snapshot.is_ready(s) and not being_deleted(s)]
    steps: list[Action] = [Delete(s) for s in ready[: -schedule.keep]]
    if any(not objects.snapshot.is_ready(s) and not being_deleted(s) for s in made):
        return steps, _LOOK  # one that cannot be taken is tried again by itself: another one would not fare better
    wait = (_created(made[-1] if made else claim) + dt.timedelta(seconds=schedule.every) - now).total_seconds()
    if wait <= 0:
        return [*steps, Create(_snapshot(claim, now))], _LOOK
    return steps, min(wait, _LOOK)


def _created(obj: Obj) -> dt.datetime:
    return dt.datetime.fromisoformat(obj["metadata"]["creationTimestamp"])


def _snapshot(claim: Obj, now: dt.datetime) -> Obj:
    metadata = claim["metadata"]
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {
            # 253 bytes are the most that a name may have
            "name": f"{metadata['name'][:230].rstrip('-.')}-{now:%Y%m%d-%H%M%S}",
            "namespace": metadata["namespace"],
            "labels": {LABEL: metadata["uid"]},
        },
        "spec": {"source": {"persistentVolumeClaimName": metadata["name"]}},
    }
