"""The lock file of one process: held by the living, not by the dead, whatever keeps those from going."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.files import is_dying, locked
from fusevol.pool import place
from tests.support import eventually

_HOLD = """
import os, sys, threading
from pathlib import Path
from fusevol.files import locked
from fusevol.pool import place
directory = Path(sys.argv[1])
place.hold(directory)
with locked(directory / "agent.lock", lambda pid: RuntimeError(pid)):
    print("held", flush=True)
    # the first thread ends, the process stays: what is left of a process that was killed while a thread of it hangs
    threading.Thread(target=sys.stdin.read).start()
    if sys.argv[2] == "dying":
        import ctypes
        ctypes.CDLL(None).pthread_exit(None)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _holder(directory: Path, how: str) -> Iterator[int]:
    """A process that holds both kinds of lock; *how* is ``living`` or ``dying``."""
    command = [sys.executable, "-c", _HOLD, str(directory), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == b"held\n"
        if how == "dying":
            eventually(lambda: is_dying(process.pid), what="its first thread has ended")
        yield process.pid
    finally:
        process.kill()
        process.wait(20)
        process.stdin.close()
        process.stdout.close()


def test_the_living_keep_their_locks(tmp_path: Path) -> None:
    """A lock that somebody holds is refused, and told whose it is."""
    with _holder(tmp_path, "living") as pid:
        with pytest.raises(RuntimeError) as refused, locked(tmp_path / "agent.lock", RuntimeError):
            pass
        with pytest.raises(Exception, match=str(pid)):
            place.hold(tmp_path)

    assert str(refused.value) == str(pid)


def test_the_dying_lose_theirs(tmp_path: Path) -> None:
    """A process that has ended but cannot go is no obstacle; afterwards the lock is held as any."""
    with _holder(tmp_path, "dying"):
        os.close(place.hold(tmp_path))
        with locked(tmp_path / "agent.lock", RuntimeError):
            ended = subprocess.run(
                [sys.executable, "-c", _HOLD, str(tmp_path), "living"],
                check=False,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
                timeout=20,
            )

    assert f"RuntimeError: {os.getpid()}\n" in ended.stderr
    assert ended.returncode == 1


def test_the_dead_leave_no_lock(tmp_path: Path) -> None:
    """What a killed process held is free at once."""
    with _holder(tmp_path, "living") as pid:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_dying(pid), what="it is dead")
        os.close(place.hold(tmp_path))
        with locked(tmp_path / "agent.lock", RuntimeError):
            pass
        holder = (tmp_path / "agent.lock").read_text()

    assert holder == str(os.getpid())
