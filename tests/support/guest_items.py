"""Tests that run in guests, each shown by the host's pytest as a test of its own per kernel.

The host collects a test marked ``guest`` as always, and puts in its place one :class:`GuestItem` per kernel. The first
of a kernel boots a guest, in which another pytest runs all that were selected; it writes its reports into a file as
they come (:class:`Reporter`), so that each item waits for its own only, and a guest that dies says how far it came.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.skips import allowed
from tests.support.guest import POLL, TREE, Guest, GuestError

KERNELS = tuple(os.environ.get("FUSEVOL_GUEST_KERNELS", "6.12 6.1").split())
EVERYTHING = "FUSEVOL_GUEST_KERNELS" in os.environ
"""Whether a test runs on all of them, even if its marker names some: for people, not in CI."""
SECONDS = float(os.environ.get("FUSEVOL_GUEST_SECONDS", "900"))
"""After which a guest is given up, counted from its boot."""
REPORTS = "FUSEVOL_GUESTREPORTS"
_EXPECTED_SKIPS = TREE / "tests" / "expected-skips.txt"
_TROUBLE = re.compile(r"BUG: |Oops: |WARNING: CPU|Call Trace")
Report = dict[str, Any]


class Reporter:
    """In the guest: a pytest plugin that writes each report as a line of JSON."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One of setup, call and teardown is over."""
        self._write(
            nodeid=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            text="\n".join((report.longreprtext, *(f"--- {name}\n{text}" for name, text in report.sections))),
            reason=report.longrepr[2] if isinstance(report.longrepr, tuple) else "",
            xfail=hasattr(report, "wasxfail"),
        )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """The test is over."""
        self._write(nodeid=nodeid, when="end")

    @staticmethod
    def _write(**fields: object) -> None:
        with Path(os.environ[REPORTS]).open("a") as file:
            file.write(json.dumps(fields) + "\n")


class GuestTestError(Exception):
    """A test failed in its guest; the message is what the guest's pytest said."""


def judge(reports: Iterable[Report], *, skip_expected: bool) -> None:
    """Pass, skip or fail as the *reports* of one test say. A skip that nobody expected is a failure."""
    reports = list(reports)
    failures = [r["text"] for r in reports if r["when"] != "end" and r["outcome"] == "failed"]
    if failures:
        raise GuestTestError("\n".join(failures))
    skips = [r["reason"] for r in reports if r["when"] != "end" and r["outcome"] == "skipped" and not r["xfail"]]
    if skips and skip_expected:
        pytest.skip(f"in the guest: {skips[0]}")
    if skips:
        raise GuestTestError(f"It was skipped in the guest ({skips[0]}), and {_EXPECTED_SKIPS.name} does not name it.")
    if not any(r["when"] == "call" and (r["outcome"] == "passed" or r["xfail"]) for r in reports):
        raise GuestTestError("The guest's pytest did not run it.")


class Run:
    """One guest and the tests that it was started for, by their node ids in the guest."""

    def __init__(self, series: str, tests: Sequence[str]) -> None:
        self._series = series
        self._pending = list(tests)
        self._failed = False
        self._directory = Path(tempfile.mkdtemp(prefix=f"guest-{series}-"))
        self._reports = self._directory / "reports"
        self._end = time.monotonic() + SECONDS
        self._guest = Guest(series, self._directory)
        (self._directory / "tests").write_text("\n".join(tests))
        self._guest.start(
            [".venv/bin/python", "-m", "pytest", "-p", "no:cacheprovider", "-v", f"@{self._directory / 'tests'}"],
            {REPORTS: str(self._reports)},
        )

    def of(self, test: str) -> list[Report]:
        """The reports of *test*, waited for. Raises :class:`GuestTestError` if they do not come."""
        self._pending.remove(test)
        while True:
            over = not self._guest.running()  # asked first: what it wrote before its end must be seen
            found = [r for r in self._read() if r["nodeid"] == test]
            if found and found[-1]["when"] == "end":
                return found
            if over or time.monotonic() > self._end:
                raise GuestTestError(self._not_run(over))
            time.sleep(POLL)

    def _read(self) -> list[Report]:
        if not self._reports.exists():
            return []
        text = self._reports.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def _not_run(self, over: bool) -> str:
        said = self._guest.output.read_text(errors="replace") if self._guest.output.exists() else ""
        why = "ended before it" if over else f"had not come to it after {SECONDS:g} s"
        return f"The guest with Linux {self._series} {why}.\n--- {self._guest.output}\n{said}{self._guest.last_words()}"

    def over(self) -> bool:
        """Whether all its tests have been asked for."""
        return not self._pending

    def note_failure(self) -> None:
        """Keep what the guest wrote."""
        self._failed = True

    def close(self) -> None:
        """End the guest; if all went well, remove what it wrote.

        Raises :class:`GuestTestError` if it does not end, or if its kernel was in trouble.
        """
        try:
            if self.over() and not self._failed:
                try:
                    self._guest.wait(max(0.0, self._end - time.monotonic()))
                except GuestError as e:
                    self._failed = True
                    raise GuestTestError(str(e)) from e
            console = self._guest.console.read_text(errors="replace") if self._guest.console.exists() else ""
            if _TROUBLE.search(console):
                self._failed = True
                raise GuestTestError(f"The guest's kernel was in trouble.{self._guest.last_words()}")
        finally:
            self._guest.power_loss()
            if not self._failed:
                shutil.rmtree(self._directory)


class GuestItem(pytest.Item):
    """One test on one kernel."""

    runs = pytest.StashKey[dict[str, Run]]()

    def __init__(self, *, series: str, original: pytest.Item, **options: Any) -> None:
        super().__init__(**options)
        self.series = series
        self.original = original.nodeid
        self.obj = getattr(original, "obj", None)  # pytest-trio looks at each item's
        self._place = original.location
        self.keywords.update(original.keywords)

    @classmethod
    def instead_of(cls, item: pytest.Item) -> list[GuestItem]:
        """The items that stand for *item*: one per kernel, or for those only that its marker names."""
        marker = item.get_closest_marker("guest")
        wanted = [s for s in KERNELS if EVERYTHING or marker is None or not marker.args or s in marker.args]
        name = item.name.removesuffix("]") + ("-" if item.name.endswith("]") else "[")
        return [cls.from_parent(item.parent, name=f"{name}{s}]", series=s, original=item) for s in wanted]

    def runtest(self) -> None:
        """Wait for the guest's verdict."""
        runs = self.config.stash.setdefault(self.runs, {})
        if self.series not in runs:
            chosen = [i for i in self.session.items if isinstance(i, GuestItem) and i.series == self.series]
            runs[self.series] = Run(self.series, [i.original for i in chosen])
        run = runs[self.series]
        classname, _, name = self.nodeid.partition("::")
        known = f"{classname.removesuffix('.py').replace('/', '.')}::{name}"
        try:
            judge(run.of(self.original), skip_expected=known in allowed(_EXPECTED_SKIPS))
        except BaseException as e:
            if not isinstance(e, pytest.skip.Exception):
                run.note_failure()
            raise
        finally:
            if run.over():
                run.close()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The guest's own words, without a traceback of the host."""
        if isinstance(excinfo.value, (GuestTestError, GuestError, RuntimeError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Where the test is."""
        return self._place[0], self._place[1], self.name


def replace(items: list[pytest.Item]) -> None:
    """Put guest items where tests marked ``guest`` are, kernel by kernel."""
    marked = [item for item in items if item.get_closest_marker("guest") and not isinstance(item, GuestItem)]
    if not marked:
        return
    at = items.index(marked[0])
    others = [item for item in items if item not in marked]
    stand_ins = [stand_in for item in marked for stand_in in GuestItem.instead_of(item)]
    items[:] = others[:at] + sorted(stand_ins, key=lambda i: KERNELS.index(i.series)) + others[at:]


def end_all(config: pytest.Config) -> None:
    """End what an interrupted session left running."""
    for run in config.stash.get(GuestItem.runs, {}).values():
        if not run.over():
            run.note_failure()
            run.close()
