"""Programs of others, built or fetched once (scripts/tool.sh)."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

_SCRIPT = Path(__file__).parents[2] / "scripts" / "tool.sh"


@functools.cache
def tool(name: str) -> str:
    """The path of the program *name*; making it may take minutes, once for each checkout."""
    return subprocess.run([_SCRIPT, name], check=True, stdout=subprocess.PIPE, text=True, timeout=900).stdout.strip()


def run(name: str, *arguments: str | Path) -> str:
    """Standard output of a tool that must succeed."""
    done = subprocess.run([tool(name), *arguments], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
