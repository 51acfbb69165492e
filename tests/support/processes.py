"""Looking at processes that need not be ours."""

from __future__ import annotations

import os
from pathlib import Path

from fusevol.keeper.child import NAME


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
            if Path(errors).parent == directory and (entry / "comm").read_text().strip() == NAME:
                found.append(int(entry.name))
        except OSError:  # ended, or not to be looked at
            continue
    return sorted(found)
