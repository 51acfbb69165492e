"""``fusevol completion bash``, in a real bash."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from agent.cli import completion, parser


def complete(tmp_path: Path, line: str) -> list[str]:
    """What bash proposes at the end of *line*; a `fusevol` that knows two claims stands in for the real one."""
    fake = tmp_path / "fusevol"
    fake.write_text('#!/bin/sh\n[ "$1 $3 $4" = "get -o name" ] && echo "$2/data" && echo "$2/other"\n')
    fake.chmod(0o755)
    script = tmp_path / "completion.bash"
    script.write_text(completion.bash(parser.build()))
    words = line.split(" ")
    program = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); "
        f"COMP_CWORD={len(words) - 1}; _fusevol; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("fusevol de", ["delete", "describe"]),
        ("fusevol get persistentvolumec", ["persistentvolumeclaims"]),
        ("fusevol get poo", ["pool", "pools"]),
        ("fusevol get pvc d", ["data"]),
        ("fusevol get -o y", ["yaml"]),
        ("fusevol get -n shop pvc ", ["data", "other"]),
        ("fusevol get --sort", ["--sort-by"]),
        ("fusevol --socket /s get pvc o", ["other"]),
        ("fusevol pool cre", ["create"]),
        ("fusevol pool create --fo", ["--force"]),
        ("fusevol mount d", ["data"]),
        ("fusevol explain storagec", ["storageclasses"]),
        ("fusevol completion ", ["bash"]),
        ("fusevol apply -f ", []),
        ("fusevol apply --filen", ["--filename"]),
    ],
)
def test_proposals(tmp_path: Path, line: str, proposed: list[str]) -> None:
    """Commands, kinds, names, options and their values, each where it can stand; files are left to bash."""
    assert complete(tmp_path, line) == proposed


def test_every_command_is_proposed(tmp_path: Path) -> None:
    """The script knows each command, and each option of it."""
    commands = completion._commands(parser.build())
    flags = {name: sorted(f for a in one._actions for f in a.option_strings) for name, one in commands.items()}

    assert complete(tmp_path, "fusevol ") == sorted(commands)
    assert {name: sorted(complete(tmp_path, f"fusevol {name} -")) for name in commands} == flags
