"""The log check: a test fails when anything logs a WARNING or worse that the test did not name."""

from __future__ import annotations

import logging
import re
from pathlib import Path

_LINE = re.compile(r" (WARNING|ERROR|CRITICAL) |^Traceback \(most recent call last\)|^Fatal Python error")


class LogCheck(logging.Handler):
    """Collects records of WARNING and above of this process, and such lines of other processes' log files."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._expected: list[re.Pattern[str]] = []
        self._records: list[str] = []
        self._files: dict[Path, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*, with its traceback."""
        self._records.append(logging.Formatter("%(name)s: %(message)s").format(record))

    def expect(self, *patterns: str) -> None:
        """Allow records and lines that match one of *patterns* (regular expressions, searched)."""
        self._expected += [re.compile(p) for p in patterns]

    def watch(self, file: Path) -> None:
        """Check what is added to the log *file* of another process as well."""
        self._files.setdefault(file, file.stat().st_size if file.exists() else 0)

    def gather(self) -> None:
        """Read the log files for the last time: they are about to be removed."""
        for file in self._files:
            self._records += self._lines(file)
        self._files.clear()

    def seen(self) -> list[str]:
        """All records of WARNING and above so far, expected or not."""
        return [*self._records, *(line for file in self._files for line in self._lines(file))]

    def unexpected(self) -> list[str]:
        """Those that the test did not name."""
        return [record for record in self.seen() if not any(p.search(record) for p in self._expected)]

    def _lines(self, file: Path) -> list[str]:
        if not file.exists():
            return []
        found: list[str] = []
        text = file.read_bytes()[self._files[file] :].decode(errors="replace")
        inside = False
        for line in text.splitlines():
            # the lines of a traceback belong to the record before it
            if inside and (line.startswith((" ", "Traceback")) or re.match(r"^[\w.]+(Error|Exception|Exit)\b", line)):
                found[-1] += "\n" + line
                continue
            inside = _LINE.search(line) is not None
            if inside:
                found.append(f"{file.name}: {line}")
        return found
