"""Volume servers without a kernel that are killed between two steps of an operation, and what the next one finds.

A server is forked for the operation that kills it: SIGKILL, in the middle of real system calls on a real filesystem,
with the session memory shared. Where it dies is counted in lines or, finer, in bytecode instructions of fusevol.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import fusevol
from fusevol.fs import FileSystem
from fusevol.quota.ledger import Ledger
from fusevol.quota.scan import ScanProgress
from fusevol.server.memory import SessionMemory

_OURS = str(Path(fusevol.__file__).parent)


class Scanned(Exception):  # noqa: N818  # what happened, not an error
    """A server has counted the volume, which it should not need to."""


def used(root: Path) -> tuple[int, int]:
    """Bytes and inodes of a tree, as du(1) counts them; :func:`tests.fs.machine.du` is du itself, and slower."""
    inodes: dict[int, int] = {}
    for directory, names, files in os.walk(root, followlinks=False):
        for path in (directory, *(os.path.join(directory, name) for name in (*names, *files))):
            st = os.lstat(path)
            inodes[st.st_ino] = st.st_blocks * 512
    return sum(inodes.values()), len(inodes)


class Server:
    """A server's filesystem and ledger on *memory*, which may be an earlier one's."""

    def __init__(self, volume: Volume, *, may_scan: bool = False) -> None:
        kept = volume.memory
        self.memory = SessionMemory(os.dup(kept.fd), (kept.lot[0].dup(), kept.lot[1].dup()))
        self.volume = volume
        before = self.memory.journal.valid

        def scanned(progress: ScanProgress) -> None:
            if before and not may_scan:
                raise Scanned(progress)

        self.ledger = Ledger.open(
            volume.checkpoint,
            volume.source,
            limit_bytes=volume.limit,
            limit_inodes=None,
            progress=scanned,
            counters=self.memory.journal,
        )
        self.fs = FileSystem(str(volume.source), quota=self.ledger, memory=self.memory)
        assert self.fs.survives

    def expected(self) -> tuple[int, int]:
        """What must be counted: what du finds, and what has no name but is open, or known to the kernel."""
        nbytes, inodes = used(self.volume.source)
        nameless: dict[int, int] = {}
        fds = [thing.fd for thing in [*self.fs._files.values(), *self.fs._dirs.values()]]
        for fd in fds + [node.fd for node in self.fs._nodes.awake() if node.fd >= 0]:
            st = os.fstat(fd)
            if st.st_nlink == 0:
                nameless[st.st_ino] = st.st_blocks * 512
        return nbytes + sum(nameless.values()), inodes + len(nameless)

    def counted(self) -> tuple[int, int]:
        """What is counted, after a look at what may move by itself."""
        self.fs.settle()
        return self.ledger.usage()[:2]

    def leave(self) -> None:
        """Its death, as far as this process is concerned: nothing is told to anybody."""
        self.fs._close_files()
        self.fs._nodes.close()
        for end in self.memory.lot:
            end.close()
        os.close(self.memory.fd)


class Volume:
    """A directory with a ledger, and what outlives its servers."""

    def __init__(self, place: Path, limit: int | None = None) -> None:
        self.source = place / "source"
        self.source.mkdir()
        self.checkpoint = place / "ledger"
        self.limit = limit
        self.memory = SessionMemory.create()

    def close(self) -> None:
        """Give it up."""
        for end in self.memory.lot:
            end.close()
        os.close(self.memory.fd)


def dies(at: int, action: Callable[[], object], *, unit: Literal["line", "opcode"] = "line") -> bool:
    """Fork, carry *action* out there, and kill that process when *at* steps of fusevol's code have begun.

    ``False``: it had carried it out by then. It dies then, too. Raises what went wrong otherwise.
    """
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            left = at

            def step(frame: FrameType, event: str, _argument: Any) -> Any:
                nonlocal left
                if event == unit:
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                return step

            def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
                if not frame.f_code.co_filename.startswith(_OURS):
                    return None
                frame.f_trace_opcodes = unit == "opcode"
                return step

            sys.settrace(enter)
            action()
            sys.settrace(None)
            code = 0
        except BaseException:  # noqa: BLE001  # the parent is told by the status
            sys.settrace(None)
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the operation failed: see its traceback"
    return False
