"""Fails when a test was skipped that nobody expected to be skipped.

``skips.py JUNIT ALLOWED``: *ALLOWED* has one line per test, ``<test id>  # <why it may be skipped>``; the id is
``classname::name`` as pytest writes it into its XML. Reasons are required.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def allowed(file: Path) -> dict[str, str]:
    """The tests that may be skipped, each with its reason."""
    entries: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, reason = line.partition("#")
        if not reason.strip():
            sys.exit(f"{file}:{number} names a test without a reason: write it behind a #.")
        entries[name.strip()] = reason.strip()
    return entries


def skipped(report: Path) -> dict[str, str]:
    """The tests that were skipped, each with what pytest says of it."""
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 -- pytest's own file
        for mark in case.findall("skipped"):
            if mark.get("type") != "pytest.xfail":
                found[f"{case.get('classname')}::{case.get('name')}"] = mark.get("message") or ""
    return found


def main(report: str, list_file: str) -> int:
    """Compares the two; 1 if a skip is not on the list."""
    if not Path(report).exists():
        print(f"{report} does not exist: run the tests first.", file=sys.stderr)
        return 1
    expected = allowed(Path(list_file))
    surprises = {name: why for name, why in skipped(Path(report)).items() if name not in expected}
    for name, why in surprises.items():
        print(f"Skipped, and not in {list_file}: {name} ({why})", file=sys.stderr)
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
