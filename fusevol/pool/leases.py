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
        self._seen: dict[tuple[Path, str], tuple[State, float]] = {}
        """Another's lease or share as it was seen, and since when it is like that (CLOCK_BOOTTIME)."""
        self._mutex = threading.Lock()

    def take(self, directory: Path) -> int:
        """Take the lease on the volume in *directory*; its epoch. No other node has a share of it then.

        What this holder has is taken anew: that nobody uses it is the caller's duty. Raises :class:`ConflictError`
        that names the holder while another has it, and :class:`LostError` when the volume is gone.
        """
        lease = Lease(directory)
        for share in lease.shares():  # before it keeps others from sharing, if only for a moment
            self._check(share, share.look())
        epoch = self._take(lease)
        try:
            for share in lease.shares():
                self._end(share)
        except BaseException:
            lease.release(epoch)
            raise
        return epoch

    def share(self, directory: Path) -> int:
        """Take this holder's share of the lease on the volume in *directory*; its epoch. Others may have theirs.

        That nobody here uses the volume is the caller's duty. Raises as :meth:`take`.
        """
        self.release(directory)
        lease = Lease(directory)
        self._check(lease, lease.look())
        share = Lease(directory, self.holder.agent)
        epoch = self._take(share)
        try:
            self._check(lease, lease.look())
        except BaseException:
            share.release(epoch)
            raise
        return epoch

    def has(self, directory: Path, epoch: int) -> bool:
        """Whether the lease on the volume in *directory* is the one of *epoch* still."""
        state = Lease(directory).look()
        return state.epoch == epoch and not state.free

    def release(self, directory: Path) -> None:
        """Give up the lease, and this holder's share of it, if it has them."""
        lease = Lease(directory)
        own = [share for share in lease.shares() if share.agent == self.holder.agent]
        for had in (lease, *own):
            with contextlib.suppress(LostError):
                state = had.look()
                found = had.holder(state)
                if not state.free and found is not None and found.agent == self.holder.agent:
                    had.release(state.epoch)

    def _take(self, lease: Lease) -> int:
        for _ in range(_TRIES):
            state = lease.look()
            self._check(lease, state)
            taken = lease.take(state, self.holder)
            if taken is not None:
                with self._mutex:
                    self._seen.pop((lease.directory, lease.agent), None)
                return taken.epoch
        raise UnavailableError(f"The lease on the volume at {lease.directory} changes all the time: try again.")

    def _end(self, share: Lease) -> None:
        """See to it that another node's *share* is nobody's; who still has it learns that it is lost."""
        if share.agent != self.holder.agent and not share.look().free:
            share.release(self._take(share))

    def _check(self, lease: Lease, state: State) -> None:
        """Raise :class:`ConflictError` while another holder may still use *lease*, which is in *state*."""
        holder = lease.holder(state)
        if state.free or (holder.agent if holder is not None else lease.agent) == self.holder.agent:
            return
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        with self._mutex:
            known, since = self._seen.get((lease.directory, lease.agent), (None, now))
            if known != state:
                since = now
                self._seen[lease.directory, lease.agent] = state, since
        wait = (holder or self.holder).seconds * _GRACE - (now - since)
        if wait > 0:
            who = f'the node "{holder.node}"' if holder is not None else "another node"
            alone = "" if lease.agent else ", and by one node at a time"
            raise ConflictError(
                f"Volume {lease.directory.name} is in use by {who}{alone}: unmount it there. It can be "
                f"had in {math.ceil(wait)} s if that node does not renew its lease until then."
            )
