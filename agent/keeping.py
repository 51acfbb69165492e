"""``fusevol keeper``: a keeper beside the agent, for where each of the two ends with all its processes.

So it is in a container: what ends with the agent's container must not be what the volume servers live in. The next
generation takes the mounts over from the last one, while that is still there; only then is the last one ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
from pathlib import Path
from typing import Final

import trio

from agent.keeper import KeeperLink
from fusevol.errors import FusevolError

GENERATION: Final = "FUSEVOL_KEEPER_GENERATION"
"""Environment variable of a keeper and of its understudies: which command has started them."""

log = logging.getLogger(__name__)


async def keep(directory: Path, ready: Path | None, *, merge: bool = False) -> None:
    """Have a keeper in *directory* that serves this code, until told to end by SIGTERM or SIGINT.

    One that is there already gives its mounts over. The file *ready* is made when that is done. Once another generation
    has taken over there is nothing left to do but to wait for the end. *merge*: see :mod:`agent.merging`.

    Raises :class:`UnavailableError` if the one before does not give its mounts over; it goes on.
    """
    os.environ[GENERATION] = generation = secrets.token_hex(8)
    await trio.Path(directory).mkdir(mode=0o755, parents=True, exist_ok=True)
    failures: list[FusevolError] = []
    async with trio.open_nursery() as nursery:

        async def lead() -> None:
            try:
                await _lead(KeeperLink(directory, upgrades=False, merge=merge), generation, ready)
            except FusevolError as e:
                failures.append(e)
                nursery.cancel_scope.cancel()

        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            nursery.start_soon(lead)
            async for number in signals:
                log.info("Ending on signal %d.", number)
                nursery.cancel_scope.cancel()
                break
    if failures:
        raise failures[0]


async def _lead(link: KeeperLink, generation: str, ready: Path | None) -> None:
    """Take the lead, until another generation has it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        found = await link.there()
        if not is_of(found.pid, generation):
            await link.upgrade()
            found = await link.there()
        if ready is not None:
            await trio.Path(ready).touch()
        log.info("Keeping %s by pid %d.", link, found.pid)
        while is_of(found.pid, generation):
            await found.ended.wait()
            found = await link.there()
        log.info("Another generation keeps the mounts now (pid %d).", found.pid)
        nursery.cancel_scope.cancel()


def is_of(pid: int, generation: str) -> bool:
    """Whether the process *pid* is a keeper that was started by *generation*."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{GENERATION}={generation}".encode() in words
