"""What may hang, kept from holding up anybody else: a pool's filesystem, a volume's mount, a path of the host.

A thread that waits in the kernel for a disk, for a network filesystem or for a FUSE server can be ended by nobody, and
such a wait may last for ever. So whatever touches such a thing does so in a thread of *its* hazard: there are few, and
what does not hang never waits for one of them. Whoever wanted something is let go after a while, with a sentence; and
for as long as a call hangs, others are refused at once. When it comes back, all is as before.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Final, Literal, TypeVar
from weakref import WeakValueDictionary

import trio

from fusevol.errors import UnavailableError

PATIENCE: Final = 20.0
"""Seconds that a call may take."""
THREADS: Final = 4
"""Calls of one hazard at the same time."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class Recoveries:
    """Who wants to know when something that hung answers again. For the trio loop."""

    def __init__(self) -> None:
        self._followers: list[Callable[[], None]] = []

    def follow(self, tell: Callable[[], None]) -> None:
        """Call *tell* each time from now on."""
        self._followers.append(tell)

    def announce(self) -> None:
        """Something answers again."""
        for tell in self._followers:
            tell()


class Hazard:
    """One thing that may hang. For the trio loop."""

    def __init__(self, what: str, *, patience: float = PATIENCE, recoveries: Recoveries | None = None) -> None:
        """*what* begins a sentence: ``The pool "fast"``."""
        self._what = what
        self._patience = patience
        self._recoveries = recoveries or Recoveries()
        self._limiter = trio.CapacityLimiter(THREADS)
        self._long = trio.CapacityLimiter(2)
        self._glances = trio.CapacityLimiter(1)
        self._lock = threading.Lock()
        """Guards what follows, which the hazard's threads change."""
        self._given_up: dict[object, float] = {}
        """Calls that hang, the first one first, and when they began."""

    def __repr__(self) -> str:
        return f"<Hazard {self._what} given_up={len(self._given_up)}>"

    @property
    def hangs(self) -> bool:
        """Whether a call that was given up has not come back yet."""
        return bool(self._given_up)

    async def run(self, action: Callable[[], T]) -> T:
        """The result of *action*, which a thread carries out.

        Raises what *action* raises, and :class:`UnavailableError` when that hangs, or another one does. What was given
        up may still come about later, when the thing answers again.
        """
        self._refuse_if_it_hangs()
        call = object()
        began = trio.current_time()
        token = trio.lowlevel.current_trio_token()
        state: Literal["waiting", "running", "over"] = "waiting"

        def work() -> T:
            nonlocal state
            state = "running"
            try:
                return action()
            finally:
                with self._lock:
                    state = "over"
                    if self._given_up.pop(call, None) is not None and not self._given_up:
                        log.info("%s answers again.", self._what)
                        with contextlib.suppress(trio.RunFinishedError):
                            token.run_sync_soon(self._recoveries.announce)

        # whoever gives up for another reason waits as well, or two calls could be at work on one thing
        with trio.move_on_after(self._patience, shield=True):
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        with self._lock:
            if state == "running":
                self._given_up[call] = began
                log.warning("%s has not answered for %g s.", self._what, self._patience)
        self._refuse_if_it_hangs()
        raise UnavailableError(f"{self._what} was too busy to answer within {self._patience:g} s: try again.")

    async def run_long(self, action: Callable[[], T]) -> T:
        """The result of *action*, which may take as long as it likes; it is given up when cancelled."""
        return await trio.to_thread.run_sync(action, abandon_on_cancel=True, limiter=self._long)

    async def glance(self, action: Callable[[], T], seconds: float) -> T:
        """The result of *action*, which is of use at once or not at all; whether it hangs is no concern of others.

        Raises :class:`UnavailableError` after *seconds*.
        """
        with trio.move_on_after(seconds):
            return await trio.to_thread.run_sync(action, abandon_on_cancel=True, limiter=self._glances)
        raise UnavailableError(f"{self._what} has not answered for {seconds:g} s.")

    def _refuse_if_it_hangs(self) -> None:
        with self._lock:
            since = next(iter(self._given_up.values()), None)
        if since is not None:
            raise UnavailableError(
                f"{self._what} has not answered for {trio.current_time() - since:.0f} s: see what its storage waits "
                "for (`dmesg`, the server of a network filesystem)."
            )


class Hazards:
    """A hazard for each of many things that come and go, by name."""

    def __init__(self, *, patience: float = PATIENCE, recoveries: Recoveries | None = None) -> None:
        self._patience = patience
        self._recoveries = recoveries
        self._known: WeakValueDictionary[str, Hazard] = WeakValueDictionary()

    def of(self, what: str) -> Hazard:
        """The hazard of *what*, the same one for as long as anything is done, or hangs, there."""
        found = self._known.get(what)
        if found is None:
            found = self._known[what] = Hazard(what, patience=self._patience, recoveries=self._recoveries)
        return found
