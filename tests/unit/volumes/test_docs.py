"""docs/pod-volumes.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[3]


def test_every_cell_names_a_test() -> None:
    """Each test that the page names is there, and each cell of "What survives what" names one."""
    text = (_ROOT / "docs" / "pod-volumes.md").read_text()
    known = {
        name
        for file in (_ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    table = text.partition("## What survives what")[2].partition("\n## ")[0]
    rows = [
        r.strip("| ").split(" | ") for r in table.splitlines() if r.startswith("| ") and not r.startswith("| volume")
    ]
    without = [
        cell for _, *cells in rows for cell in cells if "`test_" not in cell and "the kind that it names" not in cell
    ]

    assert len(rows) == 9
    assert set(re.findall(r"`(test_\w+)`", text)) <= known
    assert without == []
