"""The pure parts of ``make bench``: ratios, the table, the promises, the plan."""

from __future__ import annotations

import pytest

from tests.bench import plan, promises, report
from tests.bench.kinds import KINDS

NATIVES = {"native": "native", "fusevol": "native", "native-btrfs": "native-btrfs", "noquota-btrfs": "native-btrfs"}
SAMPLES = {
    ("create", "native"): [10.0, 30.0, 20.0],
    ("create", "fusevol"): [40.0, 50.0, 10.0],
    ("mmap read", "native"): [1000.0],
    ("mmap read", "fusevol"): [500.0],
    ("mmap read", "native-btrfs"): [100.0],
    ("mmap read", "noquota-btrfs"): [95.0],
    ("private memory idle", "native"): [0.0],
    ("private memory idle", "fusevol"): [5.0],
}


def _row(workload: str, subject: str, value: float) -> dict[str, object]:
    return {"workload": workload, "subject": subject, "value": value}


def test_rows_are_medians_with_the_ratio_to_their_own_bare_directory() -> None:
    """A ratio above 1 is better than native, whichever direction is good, and btrfs is compared with btrfs."""
    rows = {(row["workload"], row["subject"]): row for row in report.rows(SAMPLES, NATIVES)}

    assert rows["create", "native"]["value"] == 20
    assert rows["create", "fusevol"] == {
        "workload": "create",
        "subject": "fusevol",
        "value": 40,
        "unit": "us/op",
        "better": "lower",
        "ratio_to_native": 0.5,
    }
    assert rows["mmap read", "fusevol"]["ratio_to_native"] == 0.5
    assert rows["mmap read", "noquota-btrfs"]["ratio_to_native"] == 0.95
    assert rows["private memory idle", "fusevol"]["ratio_to_native"] is None
    assert len(rows) == len(SAMPLES)


def test_the_table_has_a_line_per_workload_and_says_what_was_not_measured() -> None:
    """Subjects are columns; a workload that a subject does not run is a dash."""
    lines = report.table(report.rows(SAMPLES, NATIVES), NATIVES).splitlines()

    assert len(lines) == 1 + len(KINDS)
    create = next(line for line in lines if line.startswith("create "))
    assert create.split() == ["create", "us/op", "20.00", "40.00", "(0.50)", "-", "-"]


@pytest.mark.parametrize(
    ("workload", "ours", "theirs", "times"), [("create", 10.0, 25.0, 2.5), ("mmap read", 45.0, 50.0, 0.9)]
)
def test_a_promise_is_held_against_the_number_that_it_names(
    workload: str, ours: float, theirs: float, times: float
) -> None:
    """It holds when the subject is exactly as many times as good as promised, and not at a little less."""
    promise = promises.Promise("a promise", (workload,), "ours", "theirs", times)
    stricter = promises.Promise("a promise", (workload,), "ours", "theirs", times + 0.01)
    results = [_row(workload, "ours", ours), _row(workload, "theirs", theirs)]
    verdict, other = promises.judge(results, [promise, stricter])

    assert verdict.times == {workload: pytest.approx(times)}
    assert verdict.holds is True
    assert other.holds is False


def test_one_workload_that_falls_behind_breaks_a_promise_and_is_named() -> None:
    """The number that is printed is the worst."""
    promise = promises.Promise("a promise", ("create", "rename"), "ours", "theirs", 1.0)
    results = [_row(w, s, v) for w, s, v in (("create", "ours", 1.0), ("create", "theirs", 9.0))]
    results += [_row("rename", "ours", 4.0), _row("rename", "theirs", 3.999)]
    verdicts = promises.judge(results, [promise])

    assert (verdicts[0].holds, verdicts[0].worst) == (False, "rename")
    said = " ".join(promises.table(verdicts).split())
    assert said == "does not hold a promise at least 1, worst 0.99 (rename) create 9.00, rename 0.99"


def test_a_promise_about_a_subject_that_was_left_out_is_not_measured() -> None:
    """It neither holds nor fails."""
    verdicts = promises.judge([_row("create", "fusevol", 1.0)])

    assert {verdict.holds for verdict in verdicts} == {None}
    assert promises.table(verdicts).count("not measured") == len(promises.PROMISES)


def test_promises_name_workloads_that_exist() -> None:
    """A renamed workload would otherwise be promised without ever being looked at."""
    named = {workload for promise in promises.PROMISES for workload in promise.workloads}

    assert named <= {kind.name for kind in KINDS}


def test_the_quick_form_is_asked_for_and_can_be_changed() -> None:
    """BENCH chooses the form, BENCH_ROUNDS and BENCH_FILES change it."""
    assert plan.from_environment({}) == plan.FULL
    assert plan.FULL.rounds >= 5
    assert plan.from_environment({"BENCH": "quick"}) == plan.QUICK
    assert plan.from_environment({"BENCH": "quick", "BENCH_FILES": "7"}).files == 7


@pytest.mark.parametrize("bad", [{"BENCH": "fast"}, {"BENCH_ROUNDS": "0"}, {"BENCH_FILES": "many"}])
def test_a_form_that_there_is_not_is_refused_in_a_sentence(bad: dict[str, str]) -> None:
    """The sentence names the variable."""
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))} .*\.$"):
        plan.from_environment(bad)
