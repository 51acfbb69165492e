"""The page for people who know kubectl: every command on it is run, in its order, and what is printed compared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.agent import Agent

pytestmark = pytest.mark.root
PAGE = Path(__file__).parents[2] / "docs" / "coming-from-kubectl.md"


class Shown(NamedTuple):
    """A command of the page, and the lines below it."""

    command: str
    lines: list[str]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def commands() -> list[Shown]:
    """All commands, in order."""
    found: list[Shown] = []
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Shown(line.removeprefix("$ "), []))
            else:
                found[-1].lines.append(line)
    return found


def fits(printed: str, lines: list[str]) -> bool:
    """Whether *printed* is what the page shows: columns may be wider; ``...`` stands for anything in a line, or, if
    that is all of the line, for any lines."""
    pattern = "".join(
        r"(?:[^\n]*\n)*"
        if line == "..."
        else r"[ ]*" + r"[ ]+".join(re.escape(word).replace(r"\.\.\.", r"[^\n]*") for word in line.split()) + r"[ ]*\n"
        for line in lines
    )
    return re.fullmatch(pattern, printed) is not None


@pytest.mark.parametrize(
    ("printed", "lines", "expected"),
    [
        ("a   b\n", ["a b"], True),
        ("a b\nc\n", ["a b"], False),
        ("a pvc-1 x\n", ["a pvc-... x"], True),
        ("a\nb\nc\n", ["a", "...", "c"], True),
        ("a\nb\n", ["a", "...", "c"], False),
        ("a pvc-1 x\nb pvc-2 x\n", ["a pvc-... x"], False),
        ("a b\nother Lost\n", ["a ..."], False),
        ("a\nb", ["a b"], False),
        ("", [], True),
        ("x", [], False),
    ],
)
def test_comparing(printed: str, lines: list[str], expected: bool) -> None:
    """What the comparison below lets pass."""
    assert fits(printed, lines) is expected


def test_every_command(agent: Agent) -> None:
    """Each does what the page shows, and fails where it shows an error."""
    bin_ = agent.directory / "bin"
    bin_.mkdir()
    wrapper = bin_ / "fusevol"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent.cli.main "$@"\n')
    wrapper.chmod(0o755)
    for name, text in zip(("claim.yaml", "pod.yaml"), blocks("yaml"), strict=True):
        assert f"`{name}`" in PAGE.read_text()
        (agent.directory / name).write_text(text)
    environment = agent.environment | {"PATH": f"{bin_}:{agent.environment['PATH']}"}
    wrong = []
    found = commands()
    for shown in found:
        done = subprocess.run(
            ["sh", "-c", shown.command],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env=environment,
            cwd=agent.directory,
        )
        refused = bool(shown.lines) and shown.lines[0].startswith("Error: ")
        if not fits(done.stdout, shown.lines) or (done.returncode != 0) != refused:
            wrong.append(f"$ {shown.command}\n{done.stdout}[{done.returncode}]")

    assert wrong == []
    assert len(found) > 25
