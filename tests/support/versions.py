"""Installed versions of fusevol: copies of its packages, of which one is the installed one at a time."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import fusevol

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("fusevol", "agent")


class Versions:
    """``directory/code`` is what is installed, for ``PYTHONPATH``; each version beside it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "code"

    def install(self, version: str, changes: Mapping[str, tuple[str, str]] | None = None) -> None:
        """Have *version* in place of what was installed. *changes*: for a file of ours a text and what it becomes."""
        copy = Path(tempfile.mkdtemp(prefix=f"code-{version}-", dir=self._directory))
        for package in _PACKAGES:
            shutil.copytree(_ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        own = copy / "fusevol" / "__init__.py"
        own.write_text(own.read_text().replace(f'"{fusevol.__version__}"', f'"{version}"'))
        for file, (text, other) in (changes or {}).items():
            before = (copy / file).read_text()
            assert re.search(re.escape(text), before), f"{file} has no {text}"
            (copy / file).write_text(before.replace(text, other))
        link = self._directory / "code.new"
        link.symlink_to(copy)
        link.rename(self.path)
