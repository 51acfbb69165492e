"""Holding up whoever uses a volume while it is copied by something that takes time, so that the copy is one moment."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

import trio

from agent.supervisor import Supervisor
from fusevol.errors import FusevolError, UnavailableError

LONGEST = 30.0
"""Seconds for which the users of a volume may be held up."""

log = logging.getLogger(__name__)


class Still:
    """An asynchronous context in which a mounted volume's requests wait; one that is not mounted is still anyway.

    Raises :class:`UnavailableError` when operations that are under way do not end.
    """

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        """*name*: the mount's."""
        self._supervisor = supervisor
        self._name = name
        self._held = False
        self.passing_by = 0
        """Open files whose data goes past the volume server, and was not held up."""

    @property
    def warning(self) -> str:
        """What to tell of a copy that is not of one moment; empty if it is."""
        if not self.passing_by:
            return ""
        return f"{self.passing_by} open files were being written directly: each is of a moment of its own."

    async def __aenter__(self) -> Self:
        self._token = trio.lowlevel.current_trio_token()
        if self._name not in self._supervisor.servers:
            return self
        answer = await self._supervisor.ask(self._name, {"op": "hold", "seconds": LONGEST}, seconds=LONGEST)
        if not answer.get("held"):
            raise UnavailableError(
                str(answer.get("error") or "")
                or f"What is being done in the volume {self._name} does not come to an end: see `fusevol doctor` and "
                "the log of its server. It is tried again."
            )
        self._held, self.passing_by = True, int(answer.get("passing_by") or 0)
        if self.passing_by:
            log.info("While %s is copied, %s", self._name, self.warning)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:
            with trio.CancelScope(shield=True):
                try:
                    await self._release()
                except FusevolError as e:
                    log.warning("The requests of %s go on by themselves at last: %s", self._name, e)

    async def _release(self) -> bool:
        self._held = False
        answer = await self._supervisor.ask(self._name, {"op": "release"}, seconds=5.0)
        return bool(answer.get("held"))

    def end(self) -> None:
        """Let the requests go on. For the thread that has copied.

        Raises :class:`UnavailableError` if they have gone on already.
        """
        if self._held and not trio.from_thread.run(self._release, trio_token=self._token):
            raise UnavailableError(
                f"Copying the volume {self._name} took longer than its users can be held up ({LONGEST:g} s), so the "
                "copy would not be of one moment: unmount the volume, or use a pool whose filesystem copies at once "
                "(btrfs) or shares blocks (XFS)."
            )
