"""Who has a pool's leases: this agent, or another node's, which is then waited for. The leases: ``fusevol.lease``."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from pathlib import Path
from typing import Final

from fusevol.errors import ConflictError, UnavailableError
from fusevol.lease import Holder, Lease, LostError, State

_GRACE: Final = 1.25
"""By how much a taker's clock may run faster than a holder's, and signals may be late."""
_TRIES: Final = 100


class Leases:
    """What *holder* has of a pool's leases, and has seen of others'. Thread-safe."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self._seen: dict[Path, tuple[State, float]] = {}
        """Another's lease as it was seen, and since when it is like that (CLOCK_BOOTTIME)."""
        self._mutex = threading.Lock()

    def take(self, directory: Path) -> int:
        """Take the lease on the volume in *directory*; its epoch.

        What this holder has is taken anew: that nobody uses it is the caller's duty. Raises :class:`ConflictError`
        that names the holder while another has it, and :class:`LostError` when the volume is gone.
        """
        lease = Lease(directory)
        for _ in range(_TRIES):
            state = lease.look()
            if not state.free:
                self._check(directory, state, lease.holder(state))
            taken = lease.take(state, self.holder)
            if taken is not None:
                with self._mutex:
                    self._seen.pop(directory, None)
                return taken.epoch
        raise UnavailableError(f"The lease on the volume at {directory} changes all the time: try again.")

    def release(self, directory: Path) -> None:
        """Give the lease up, if this holder has it."""
        lease = Lease(directory)
        with contextlib.suppress(LostError):
            state = lease.look()
            found = lease.holder(state)
            if not state.free and found is not None and found.agent == self.holder.agent:
                lease.release(state.epoch)

    def _check(self, directory: Path, state: State, holder: Holder | None) -> None:
        """Raise :class:`ConflictError` while *holder* may still use what it has."""
        if holder is not None and holder.agent == self.holder.agent:
            return
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        with self._mutex:
            known, since = self._seen.get(directory, (None, now))
            if known != state:
                since = now
                self._seen[directory] = state, since
        wait = (holder or self.holder).seconds * _GRACE - (now - since)
        if wait > 0:
            who = f'the node "{holder.node}"' if holder is not None else "another node"
            raise ConflictError(
                f"Volume {directory.name} is in use by {who}, and by one node at a time: unmount it there. It can be "
                f"had in {math.ceil(wait)} s if that node does not renew its lease until then."
            )
