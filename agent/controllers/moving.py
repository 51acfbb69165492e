"""What a PersistentVolume says of its move to another pool: whence and whither, for as long as it lasts. Pure.

Its handle says which of the two volumes is the one: the old until the copy is whole, then the new.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from agent.controllers.provisioning import HANDLE, handle_of
from agent.controllers.view import annotate, annotations_of

Obj = dict[str, Any]

MOVE_FROM: Final = "fusevol.io/move-from"
"""Annotation of a PersistentVolume that is being moved: the handle of the volume that it was."""
MOVE_TO: Final = "fusevol.io/move-to"
"""The handle of the volume that it is to be."""


class Move(NamedTuple):
    """A move that has begun and is not over: both handles."""

    source: str
    target: str

    def begin(self, volume: Obj) -> None:
        """Write it into *volume*."""
        annotate(volume).update({MOVE_FROM: self.source, MOVE_TO: self.target})

    def switch(self, volume: Obj) -> None:
        """From now on *volume* is the target."""
        if volume["spec"].get("csi"):
            volume["spec"]["csi"]["volumeHandle"] = self.target
        else:
            volume["metadata"]["annotations"][HANDLE] = self.target


def move_of(volume: Obj) -> Move | None:
    """The move that *volume* is in.

    Annotations are anybody's to write, and what is moved away from is deleted in the end: so they mean a move only if
    both are places of the volume that *volume* is, and different ones.
    """
    annotations, here = annotations_of(volume), handle_of(volume)
    move = Move(annotations.get(MOVE_FROM, ""), annotations.get(MOVE_TO, ""))
    ids = {place.partition("/")[2] for place in move}
    return move if here in move and len(ids) == 1 and move.source != move.target else None


def handles_of(volume: Obj) -> set[str]:
    """The handles of all that *volume* accounts for: while it is moved, of both ends."""
    return {handle for handle in (handle_of(volume), *(move_of(volume) or ())) if handle is not None}


def over(volume: Obj) -> None:
    """*volume* is in no move any more."""
    for name in (MOVE_FROM, MOVE_TO):
        annotate(volume).pop(name, None)
