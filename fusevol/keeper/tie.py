"""What ties a volume server to its keeper, or to the next one: runs in the server.

A server that is ready reports to the keeper, which from then on holds what another server needs to go on. It sees the
keeper's end by a pidfd. Then it looks for the next keeper on the same socket, more and more seldom: one is there within
a second if an agent runs, and it may take days if none does.

Weighed: a socket pair that each server inherits. It would cost the keeper one descriptor more per mount, and take a
second way for those who must find a new keeper anyway.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from pathlib import Path
from typing import Final

from fusevol.errors import FusevolError
from fusevol.keeper import client
from fusevol.server.held import Held

log = logging.getLogger(__name__)

_PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Seconds between the first looks for a keeper."""
_SELDOM: Final = (60, 10.0)
"""After so many of them there are so many seconds between two."""
_ANSWER: Final = 5.0
"""Seconds in which a keeper must answer."""


class Tie:
    """A :data:`fusevol.server.held.Holder`: call it once, when the mount is usable."""

    def __init__(self, directory: Path, mount_id: str, spec: str, log_file: str, keeper: int, *, held: bool) -> None:
        """*keeper*: a pidfd of the keeper that started this server; *held*: it holds the mount already."""
        self._directory = directory
        self._request = {"op": "adopt", "mount_id": mount_id, "spec": spec, "log": log_file}
        self._keeper = keeper
        self._is_held = held

    def __call__(self, held: Held) -> None:
        """Be held from now on, for as long as this process lives."""
        if not self._is_held:
            self._is_held = self._report(held)
        threading.Thread(target=self._watch, args=(held,), name="keeper", daemon=True).start()

    def _report(self, held: Held) -> bool:
        """Ask the keeper that is there to hold the mount; whether it does."""
        me = os.pidfd_open(os.getpid())
        request = {**self._request, "minor": held.minor, "pid": os.getpid()}
        try:
            answer, received = client.call(self._directory, request, [*held.descriptors, me], _ANSWER)
        except FusevolError as e:
            log.info("not held: %s", e)
            return False
        finally:
            os.close(me)
        if not answer.get("ok") or len(received) != 1:
            log.info("not held: %s", answer.get("error"))
            for descriptor in received:
                os.close(descriptor)
            return False
        os.close(self._keeper)
        self._keeper = received[0]
        return True

    def _watch(self, held: Held) -> None:
        looks = 0
        while True:
            if self._is_held:
                looks = 0
                self._wait_for_its_end()
                log.info("the keeper has ended")
            many, seldom = _SELDOM
            pause = _PAUSES[min(looks, len(_PAUSES) - 1)] if looks < many else seldom
            looks += 1
            time.sleep(pause * (0.5 + os.getpid() % 64 / 64))  # a thousand servers must not ask at once
            self._is_held = self._report(held)

    def _wait_for_its_end(self) -> None:
        poll = select.poll()
        poll.register(self._keeper, select.POLLIN)
        poll.poll()
        self._is_held = False
