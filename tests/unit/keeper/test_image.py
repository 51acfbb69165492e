"""The memory that volume servers are forked from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root]

_SETTLE = """
import logging, os, sys, threading
from pathlib import Path
from fusevol.keeper import image
logging.basicConfig(level=logging.DEBUG)
scratch = Path(sys.argv[1])
before = sorted(os.listdir("/proc/self/fd")), os.umask(0o22)
image.settle(scratch)
print(threading.active_count(), scratch.exists(), (sorted(os.listdir("/proc/self/fd")), os.umask(0o22)) == before)
print(Path("/proc/self/status").read_text())
"""


def test_settling_changes_nothing_else(workdir: Path) -> None:
    """The rehearsals come to their end, and leave no thread, descriptor or directory, and all capabilities."""
    settled = subprocess.run(
        [sys.executable, "-c", _SETTLE, workdir / "scratch"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    first, _, status = settled.stdout.partition("\n")
    wanted = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))

    assert "failed" not in settled.stderr
    assert first == "1 False True"
    assert wanted in status
