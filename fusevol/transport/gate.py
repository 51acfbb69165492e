"""Holding a mount's requests up for a moment, so that what is copied meanwhile is one moment in time.

A thread passes the gate before it carries a request out. While the gate is shut, a request that has come waits in its
thread, the others wait in the kernel, and the programs that made them wait for their system calls. That ends by itself
after a while, whatever becomes of whoever shut it.

Data that programs read and write by passthrough, or have only in their page cache (mmap(2)), does not come here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic


class Gate:
    """One mount's gate. Open at first."""

    def __init__(self) -> None:
        self.shut = False
        """Looked at before each request; :meth:`stand` is for when it is true."""
        self._changed = threading.Condition()
        self._timer: threading.Timer | None = None

    def __repr__(self) -> str:
        return f"<Gate {'shut' if self.shut else 'open'}>"

    def stand(self) -> None:
        """Wait until it is open. The caller carries nothing out, and says so before it calls this."""
        with self._changed:
            self._changed.notify_all()
            while self.shut:
                self._changed.wait()

    def left(self) -> None:
        """Something was carried out while the gate was being shut."""
        with self._changed:
            self._changed.notify_all()

    def hold(self, under_way: Callable[[], int], patience: float, limit: float) -> bool:
        """Shut the gate, and wait until nothing is carried out; at most *limit* seconds later it opens again.

        ``False``, with the gate open, if something is still under way after *patience* seconds, or it was shut before.
        """
        with self._changed:
            if self.shut:
                return False
            self.shut = True
            timer = self._timer = threading.Timer(limit, self.open)
            timer.daemon = True
            timer.start()
            end = monotonic() + patience
            while under_way():
                if not self.shut or not self._changed.wait(end - monotonic()):
                    break
            else:
                return self.shut
        self.open()
        return False

    def open(self) -> bool:
        """Let requests through; whether they were held up until now."""
        with self._changed:
            was, self.shut = self.shut, False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._changed.notify_all()
        return was
