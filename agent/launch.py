"""Starts keepers: the first of a run directory, and one that takes over from a living one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final, NamedTuple

import trio

from fusevol.errors import UnavailableError

START_TIMEOUT: Final = 20.0
"""Seconds that a new keeper may take until it listens."""
STEP_TIMEOUT: Final = 60.0
"""Seconds that one which takes over may say nothing: moving a mount and, should that fail, moving all back."""
_READY: Final = 3
"""The ready pipe's descriptor in a new keeper."""


class Launched(NamedTuple):
    """A keeper that listens."""

    pid: int
    """Our child."""
    moved: int
    """How many mounts it has taken over."""


async def launch(directory: Path, *, take_over: bool = False, merge: bool = False) -> Launched:
    """Start a keeper of the code that is installed now, and return when it listens.

    *merge*: the system may merge equal pages of it and its servers (:mod:`agent.merging`).
    Raises :class:`UnavailableError` with its sentence when it does not; with *take_over* the old keeper goes on then.
    When this is cancelled, a keeper that takes over goes on by itself, another one is ended.
    """
    reader, writer = os.pipe()
    async with trio.lowlevel.FdStream(reader) as ready:
        try:
            pid = await trio.to_thread.run_sync(
                _spawn, directory, writer, _words(directory, take_over=take_over, merge=merge)
            )
        finally:
            os.close(writer)
        try:
            return Launched(pid, await _listening(directory, ready))
        except BaseException as e:
            if not (take_over and isinstance(e, trio.Cancelled)):
                os.kill(pid, signal.SIGKILL)  # our child until it is waited for: the number means no other process
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(os.waitpid, pid, 0)
            raise


async def _listening(directory: Path, ready: trio.lowlevel.FdStream) -> int:
    moved, said, patience = 0, b"", START_TIMEOUT
    while True:
        with trio.move_on_after(patience) as waited:
            chunk = await ready.receive_some(4096)
        if waited.cancelled_caught:
            raise UnavailableError(f"it did not listen within {patience:g} s; see {directory}/keeper.log.")
        if not chunk:
            raise UnavailableError(f"it ended at once: see {directory}/keeper.log.")
        *lines, said = (said + chunk).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "READY":
                return moved
            if word == "ERROR":
                raise UnavailableError(rest)
            if word == "MOVED" and rest.isdigit():
                moved, patience = int(rest), STEP_TIMEOUT


def _words(directory: Path, *, take_over: bool, merge: bool) -> list[str]:
    words = ["-m", "fusevol.keeper", "--dir", os.fspath(directory), "--ready-fd", str(_READY), "--understudy"]
    return words + ["--take-over"] * take_over + ["--merge"] * merge


def _spawn(directory: Path, writer: int, words: list[str]) -> int:
    """Start the process. Not by subprocess, which wants its children to end before their parent."""
    log_file = os.fspath(directory / "keeper.log")
    return os.posix_spawn(
        sys.executable,
        [sys.executable, *words],
        {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, writer, _READY),
        ],
        setsid=True,
    )
