"""docs/pod-volumes.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_TESTS = {n for file in (_ROOT / "tests").rglob("test_*.py") for n in re.findall(r"def (test_\w+)", file.read_text())}


def test_every_cell_names_a_test() -> None:
    """Each test that the page names is there, and each cell of "What survives what" names one."""
    text = (_ROOT / "docs" / "pod-volumes.md").read_text()
    table = text.partition("## What survives what")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| volume")]
    cells = [cell for line in lines for cell in line.strip("| ").split(" | ")[1:]]

    assert len(lines) == 9
    assert [c for c in cells if "`test_" not in c and "the kind that it names" not in c] == []
    assert set(re.findall(r"`(test_\w+)`", text)) <= _TESTS
