"""What is told of requests that do not come to an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import pytest

from fusevol.transport.hangs import Hangs, Request
from tests.support import eventually
from tests.support.logs import LogCheck


class Work:
    """Requests that begin and end when the test says so, and a clock that does, too."""

    def __init__(self) -> None:
        self.now = 100.0
        self.requests: dict[Hashable, Request] = {}
        self.aborted = threading.Event()
        self.looks = 0

    def hangs(self, report: float = 30.0, abort_after: float | None = None) -> Hangs:
        """A watch over them."""
        hangs = Hangs(report, abort_after, self.aborted.set, clock=lambda: self.now)
        hangs.follow(self._source)
        return hangs

    def _source(self) -> dict[Hashable, Callable[[], Request | None]]:
        self.looks += 1
        return {key: lambda key=key: self.requests.get(key) for key in self.requests}  # type: ignore[misc]

    def begin(self, *keys: int) -> None:
        """A write for each key."""
        for key in keys:
            self.requests[key] = Request("write", 7, f"dir/{key}", 0)

    def pass_time(self, hangs: Hangs, seconds: int) -> None:
        """The watchdog looks every second."""
        for _ in range(seconds):
            self.now += 1.0
            hangs.look()


@pytest.fixture
def work() -> Work:
    """Nothing is under way."""
    return Work()


@pytest.mark.expect_log("has not ended")
def test_stuck_after_the_limit(work: Work, logs: LogCheck) -> None:
    """A request is stuck once it is as old as the limit says, is told once, and is forgotten when it ends."""
    hangs = work.hangs()
    work.begin(1)
    hangs.look()
    work.pass_time(hangs, 29)
    before = hangs.status()
    work.pass_time(hangs, 20)
    stuck = hangs.status()
    work.requests.clear()
    work.pass_time(hangs, 1)
    after = hangs.status()

    assert before == {"count": 0, "oldest": 0.0, "requests": []}
    assert stuck == {
        "count": 1,
        "oldest": 49.0,
        "requests": [{"age": 49.0, "operation": "write", "node": 7, "path": "dir/1", "pid": 0}],
    }
    assert after == before
    assert [line for line in logs.seen() if "has not ended for 30 s" in line] == logs.seen()


def test_quick_requests_are_nobodys_business(work: Work, logs: LogCheck) -> None:
    """A volume that is always busy has nothing stuck."""
    hangs = work.hangs(report=3.0)
    for i in range(100):
        work.requests.clear()
        work.begin(i, i + 1)
        work.pass_time(hangs, 1)

    assert hangs.status()["count"] == 0
    assert logs.seen() == []


@pytest.mark.expect_log("has not ended", "do not end")
def test_the_log_stays_short(work: Work, logs: LogCheck) -> None:
    """Five hundred stuck requests for hours are a few lines: eight by name, then one when the time has doubled."""
    hangs = work.hangs()
    work.begin(*range(500))
    work.pass_time(hangs, 4 * 3600)
    found = hangs.status()

    assert found["count"] == 500
    assert len(found["requests"]) == 8  # type: ignore[arg-type]
    assert 8 < len(logs.seen()) <= 8 + 9
    assert "500 requests do not end" in logs.seen()[-1]


@pytest.mark.expect_log("has not ended", "do not end", "the connection is aborted")
def test_abort_when_told_so(work: Work) -> None:
    """The connection is ended at its limit and not before; without a limit never."""
    work.begin(1)
    patient = work.hangs()
    work.pass_time(patient, 10 * 3600)
    never = work.aborted.is_set()
    strict = work.hangs(abort_after=300.0)
    strict.look()
    work.pass_time(strict, 299)
    early = work.aborted.is_set()
    work.pass_time(strict, 1)
    aborted = eventually(work.aborted.is_set, what="the abort")

    assert (never, early, aborted) == (False, False, True)


def test_looks_are_rare(work: Work) -> None:
    """However often the watchdogs ask, the requests are looked at once a second."""
    hangs = work.hangs()
    for _ in range(1000):
        work.now += 0.002
        hangs.look()

    assert work.looks <= 3


def test_looking_waits_for_nobody(work: Work) -> None:
    """While one thread looks, others that come by do not wait for it."""
    hangs = work.hangs()
    inside, leave = threading.Event(), threading.Event()

    def slow() -> dict[Hashable, Callable[[], Request | None]]:
        inside.set()
        leave.wait(10)
        return {}

    hangs.follow(slow)
    first = threading.Thread(target=hangs.look)
    first.start()
    inside.wait(10)
    work.now += 5
    hangs.look()
    returned = not leave.is_set()
    leave.set()
    first.join(10)

    assert returned


def test_a_request_says_who_waits_for_what() -> None:
    """The words of a report: operation, place, process by number and name, as far as they are known."""
    shown = [str(Request("write", 7, "a/b", 1)), str(Request("statfs", 1, None, 0)), str(Request("read", 0, None, 0))]

    assert shown[0].startswith("write of 'a/b' for process 1 (")
    assert shown[1:] == ["statfs of node 1 for an unknown process", "read of an open file for an unknown process"]
