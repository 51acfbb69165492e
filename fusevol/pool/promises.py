"""What a pool has promised, for one that may promise only so much: the capacities of its volumes, kept in memory.

The pool is held by one process, so nobody else promises anything; read once from the records, then kept up to date,
since reading a thousand records for each new volume would be the slowest part of making it. Volumes without a limit
promise nothing. What lies in the trash was promised to somebody who is gone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

from fusevol.errors import InvalidError, NoSpaceError
from fusevol.quantity import format_bytes


def check_ratio(ratio: float) -> float:
    """*ratio*, if a pool can have it. Raises :class:`InvalidError`."""
    if not 0 < ratio < 1e6:
        raise InvalidError(f"A pool cannot promise {ratio} times what it has: give a number above 0, such as 1.0.")
    return ratio


class Promises:
    """Thread-safe."""

    def __init__(self, pool: str, ratio: float, total: Callable[[], int]) -> None:
        """*ratio*: how many times *total*, the size of the filesystem in bytes, may be promised."""
        self._pool = pool
        self._ratio = check_ratio(ratio)
        self._total = total
        self._lock = threading.Lock()
        self._made: dict[str, int] | None = None

    @contextlib.contextmanager
    def promised(
        self, volume: str, nbytes: int | None, read: Callable[[], Iterable[tuple[str, int | None]]]
    ) -> Iterator[None]:
        """*volume* has *nbytes* from now on, unless the context fails; *read* gives what all have, the first time.

        Raises :class:`NoSpaceError` if it is to have more than before, and that is too much for the pool.
        """
        with self._lock:
            if self._made is None:
                self._made = {name: size or 0 for name, size in read()}
            before = self._made.get(volume, 0)
            after = nbytes or 0
            if after > before:
                self._check(sum(self._made.values()) - before, after)
            self._made[volume] = after
        try:
            yield
        except BaseException:
            with self._lock:
                self._made[volume] = before
            raise

    def _check(self, others: int, wanted: int) -> None:
        allowed = int(self._total() * self._ratio)
        if others + wanted > allowed:
            raise NoSpaceError(
                f"The pool {self._pool} has promised {format_bytes(others)} of the {format_bytes(allowed)} that it may "
                f"(overcommit {self._ratio:g}), so there is no room for {format_bytes(wanted)}: delete volumes, grow "
                "the pool, or set its overcommit higher."
            )

    def forget(self, volume: str) -> None:
        """*volume* is deleted."""
        with self._lock:
            if self._made is not None:
                self._made.pop(volume, None)

    def __repr__(self) -> str:
        """Shows the ratio."""
        return f"<Promises of {self._pool} up to {self._ratio:g}>"
