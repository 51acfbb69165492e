"""docs/transports.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from fusevol.transport.kernel.features import TABLE
from tests.fs.differences import DIFFERENCES

TEXT = (Path(__file__).parents[3] / "docs" / "transports.md").read_text()


def test_features() -> None:
    """The table of features has those that are negotiated, with the same words."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([0-9.]+) \| (.+) \|$", TEXT, re.MULTILINE)

    assert rows == [(f.name, f.kernel or "5.4", f.without) for f in TABLE]


def test_differences() -> None:
    """Every reason for which a case of the conformance table does not hold is told, for its transport."""
    kernel, pyfuse3 = (" ".join(part.split()) for part in TEXT.split("\n## pyfuse3\n"))
    missing = [
        reason
        for transport, text in (("kernel", kernel), ("pyfuse3", pyfuse3))
        for reason in DIFFERENCES[transport].values()
        if reason not in text
    ]

    assert missing == []
