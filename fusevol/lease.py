"""Leases on volumes of a pool that several nodes have: one node at a time mounts a volume that is ReadWriteOnce, and
nobody deletes one that others use.

A lease is the *name* of the one file in the directory ``lease`` beside the volume's data: ``EPOCH.SERIAL`` while
somebody has it, ``EPOCH.SERIAL.free`` while nobody has. Every change is one rename of that file, which the filesystem
does for one of those who try; the others find that it is gone (ENOENT).

* Who takes it begins the next epoch. What an earlier holder may still try to do with its own fails.
* The holder counts the serial up, at least every :attr:`Holder.seconds`; if it has not, it stops writing by itself
  (``fusevol.server.tenure``).
* Who wants another's lease must see the same name for that long, and a quarter more, by its own clock. No two nodes'
  clocks are compared, only their rates.

What is in the file says who holds it. It is written after the rename, so it may be an earlier holder's for a moment,
which its epoch tells; it serves messages, and lets a holder that has lost its memory take what is its own at once.

A volume that many nodes mount (ReadWriteMany) has a *share* for each, a lease of its own in a directory beside that
file, which bears the agent's id. Who wants the volume alone, to mount or to delete it, takes the lease and then looks
at the shares; who wants a share takes it and then looks at the lease. So of two at the same moment one at least sees
the other, and gives up what it has.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Final, NamedTuple

from fusevol.errors import UnavailableError
from fusevol.files import sync_directory

ROOM: Final = "lease"
_FREE: Final = "free"
_TRIES: Final = 100


class LostError(UnavailableError):
    """Somebody else has the lease, or the volume is gone."""


class Holder(NamedTuple):
    """Who holds leases."""

    node: str
    """For people."""
    agent: str
    """For ever the same for one agent, and no other's."""
    seconds: float
    """For how long a lease holds without being renewed."""


class State(NamedTuple):
    """A lease as it was seen."""

    epoch: int
    serial: int
    free: bool

    @classmethod
    def parse(cls, name: str) -> State | None:
        """From the file's name; ``None`` for another file."""
        epoch, _, rest = name.partition(".")
        serial, _, tail = rest.partition(".")
        if not (epoch.isdecimal() and serial.isdecimal() and tail in {"", _FREE}):
            return None
        return cls(int(epoch), int(serial), tail == _FREE)

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.epoch}.{self.serial}{f'.{_FREE}' if self.free else ''}"

    def taken(self) -> State:
        """As it is when somebody has taken it."""
        return State(self.epoch + 1, 0, free=False)

    def renewed(self) -> State:
        """As it is when its holder has renewed it."""
        return self._replace(serial=self.serial + 1)

    def released(self) -> State:
        """As it is when its holder has given it up."""
        return self._replace(free=True)


class Lease:
    """The lease on the volume in *directory*, or the share that *agent* has. Thread-safe; raises ``OSError`` for what
    the filesystem says."""

    def __init__(self, directory: Path, agent: str = "") -> None:
        self.directory = directory
        self.agent = agent
        self._room = directory / ROOM / agent

    def __repr__(self) -> str:
        return f"<Lease {self._room}>"

    def look(self) -> State:
        """How it is now. One that was never taken is made, free. Raises :class:`LostError` when the volume is gone."""
        for _ in range(_TRIES):
            try:
                states = [s for s in map(State.parse, os.listdir(self._room)) if s is not None]
            except FileNotFoundError:
                self._make()
                continue
            if states:  # two, if one was renamed while the directory was being read
                return max(states)
        raise UnavailableError(f"The lease {self._room} cannot be read: look at what is in it.")

    def shares(self) -> list[Lease]:
        """All that were ever taken of it."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._room) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
            return [Lease(self.directory, name) for name in names]
        return []

    def _make(self) -> None:
        aside = self._room.with_name(f".{ROOM}.{os.urandom(8).hex()}")
        try:
            aside.mkdir(mode=0o700)
        except FileNotFoundError as e:
            raise LostError(f"The volume at {self.directory} is gone.") from e
        first = aside / State(0, 0, free=True).name
        first.touch(mode=0o600)
        try:
            aside.rename(self._room)
        except OSError:  # somebody else was faster, or it is gone: seen at the next look
            first.unlink()
            aside.rmdir()
        else:
            sync_directory(self._room.parent)

    def holder(self, state: State) -> Holder | None:
        """Who has it in *state*; ``None`` when that cannot be known."""
        try:
            found = json.loads((self._room / state.name).read_bytes())
            if found["epoch"] != state.epoch:
                return None
            return Holder(str(found["node"]), str(found["agent"]), float(found["seconds"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def take(self, state: State, holder: Holder) -> State | None:
        """Take it from *state*; ``None`` if it is not in that state any more."""
        taken = state.taken()
        if not self._change(state, taken):
            return None
        said = json.dumps({"epoch": taken.epoch, **holder._asdict()})
        with contextlib.suppress(OSError):  # the filesystem may be full; it has the lease without it
            (self._room / taken.name).write_text(said)
        sync_directory(self._room)
        return taken

    def renew(self, epoch: int) -> State:
        """Count the serial up. Raises :class:`LostError` when it is not that epoch's any more."""
        for _ in range(_TRIES):
            state = self.look()
            if state.epoch != epoch or state.free:
                break
            renewed = state.renewed()
            if self._change(state, renewed):
                return renewed
        raise LostError(f"The lease of epoch {epoch} on the volume at {self.directory} is lost.")

    def release(self, epoch: int) -> None:
        """Give it up, if it is still that epoch's."""
        with contextlib.suppress(LostError):
            for _ in range(_TRIES):
                state = self.look()
                if state.epoch != epoch or state.free or self._change(state, state.released()):
                    return

    def _change(self, before: State, after: State) -> bool:
        try:
            (self._room / before.name).rename(self._room / after.name)
        except FileNotFoundError:
            return False
        return True
