"""Looking at processes that need not be ours."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from fusevol.keeper.title import KEEPER, SERVER, UNDERSTUDY
from tests.support.polling import eventually


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie, which only its parent can end, does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def private_bytes(pid: int) -> int:
    """Memory that only this process has (Private_Clean + Private_Dirty of smaps_rollup, see proc_pid_smaps(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process: the clock that clock_getcpuclockid(3) would give."""
    return time.clock_gettime((~pid << 3) | 2)


def descriptors(pid: int) -> dict[int, str]:
    """What each open descriptor of a process is, as /proc shows it."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def logging_into(directory: Path) -> list[int]:
    """Process ids of the volume servers that log into *directory*, whether they answer or not."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            errors = os.readlink(entry / "fd" / "2") if entry.name.isdigit() else ""
            if Path(errors).parent == directory and (entry / "comm").read_text().strip() == SERVER:
                found.append(int(entry.name))
        except OSError:  # ended, or not to be looked at
            continue
    return sorted(found)


def keepers(directory: Path, *, understudies: bool = False) -> list[int]:
    """Process ids of the keepers of *directory*, whether they answer or not; or of their understudies."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            name = (entry / "comm").read_text().strip() if words else ""
        except OSError:  # ended
            continue
        ours = b"fusevol.keeper" in words and os.fsencode(directory) in words and name != SERVER
        begins = name != KEEPER and b"--line-fd" in words
        if ours and (name == UNDERSTUDY or begins) == understudies:
            found.append(int(entry.name))
    return sorted(found)


def end_keepers(directory: Path) -> None:
    """SIGKILL for the keepers of *directory*, and certainty that they have ended and nobody took their place."""

    def ended() -> bool:
        living = [pid for who in (True, False) for pid in keepers(directory, understudies=who) if alive(pid)]
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not living

    eventually(ended, what="the keepers have ended")
