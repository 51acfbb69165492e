"""Volume servers that nobody told this agent of: those that an earlier one had started when it died.

They are told by the process table, not by files: a server that has not begun to answer yet has no socket, and would
otherwise go on beside the one that is started in its place. A forked server has its keeper's command line, but its own
name, and its log as standard error from its first moment on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from pathlib import Path

from fusevol.keeper.title import SERVER

log = logging.getLogger(__name__)


def running(directory: Path) -> dict[str, int]:
    """Pids of the volume servers that log into *directory*, by mount id; of this mount namespace."""
    found: dict[str, int] = {}
    ours = os.readlink("/proc/self/ns/mnt")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if (process / "comm").read_text().rstrip("\n") != SERVER or os.readlink(process / "ns" / "mnt") != ours:
                continue
            log_file = Path(os.readlink(process / "fd" / "2"))
        except OSError:  # it has ended
            continue
        if log_file.parent == directory:
            # a log that was renamed or removed ends with .log.1 or .log (deleted)
            found[log_file.name.rpartition(".log")[0]] = int(process.name)
    return found


def runs(pid: int) -> bool:
    """Whether the process lives; a zombie, which waits for its parent, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(pid: int) -> bool:
    """End a process that is not our child; SIGTERM first, so that it can unmount. Whether there was one."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if select.select([pidfd], [], [], 5.0)[0]:
                return True
        log.error("The volume server with pid %d does not even end of SIGKILL: see what its storage waits for.", pid)
        return True
    finally:
        os.close(pidfd)
