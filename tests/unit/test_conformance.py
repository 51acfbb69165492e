"""docs/conformance.md: every rule has a verdict, and what is claimed to be the same is shown by a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SECTIONS = {"1": 7, "2": 4, "3": 8, "4": 17, "5": 3, "6": 9}
"""How many parts each section of the rules has."""
_BESIDE = "run"
"""Stands for a part in rows of what `fusevol run` does beside the rules."""
_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
_WORDS_OF_A_REASON = 4


def rows() -> list[list[str]]:
    """The cells of all rows."""
    text = (_ROOT / "docs" / "conformance.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| § |")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def exists(file: str, name: str) -> bool:
    """Whether a file of tests has that test, or that state machine."""
    path = _ROOT / "tests" / file
    pattern = rf"^(async )?def {name}\(|^class {name}\(RuleBasedStateMachine\)"
    return path.is_file() and re.search(pattern, path.read_text(), re.MULTILINE) is not None


def test_every_part_has_rules() -> None:
    """No part of the six sections is left out, and each row has its four cells."""
    parts = {row[0] for row in rows()} - {_BESIDE}

    assert [row for row in rows() if len(row) != 4] == []
    assert parts == {f"{section}.{n + 1}" for section, count in _SECTIONS.items() for n in range(count)}


def test_every_verdict_has_its_proof_or_reason() -> None:
    """*same* names tests that exist; *differs* and *not yet* give a reason in words."""
    wrong = []
    for part, rule, verdict, shown in rows():
        tests = _TEST.findall(shown)
        if verdict == "same":
            left = _TEST.sub("", shown).strip(", ")
            wrong += [] if tests and not left else [f"{part} {rule}: names no test"]
            wrong += [f"{part}: {file}::{name} does not exist" for file, name in tests if not exists(file, name)]
        elif verdict in {"differs", "not yet"}:
            wrong += [] if len(shown.split()) >= _WORDS_OF_A_REASON else [f"{part} {rule}: no reason"]
        else:
            wrong.append(f'{part} {rule}: "{verdict}" is no verdict')

    assert wrong == []


def test_the_table_of_drivers_names_tests_that_exist() -> None:
    """Every row of what is tested on which pool names at least one."""
    text = (
        (_ROOT / "docs" / "pool-drivers.md")
        .read_text()
        .partition("## What is tested on which")[2]
        .partition("\n## ")[0]
    )
    named = [_TEST.findall(line) for line in text.splitlines() if line.startswith("| ") and line != "| | test |"]
    wrong = [f"{file}::{name}" for tests in named for file, name in tests if not exists(file, name)]

    assert len(named) > 10
    assert all(named)
    assert wrong == []


def test_tests_named_in_reasons_exist() -> None:
    """A test that a reason names by its name alone is somewhere."""
    known = {
        name
        for file in (_ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    named = {name for *_, shown in rows() for name in re.findall(r"`(test_\w+)`", shown)}

    assert named
    assert named - known == set()
