"""Things that hang hold up nobody but who wants them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from agent.hazard import Hazard, Hazards
from fusevol.errors import UnavailableError
from tests.support import eventually


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Ends what hangs, at the latest with the test."""
    event = threading.Event()
    yield event
    event.set()


def _hang(stop: threading.Event) -> str:
    assert stop.wait(20)
    return "late"


@pytest.mark.expect_log("has not answered for")
async def test_hanging_is_told_in_time_and_then_at_once(stop: threading.Event) -> None:
    """The first call is given up after its time, the next ones at once; when the thing answers, all is as before."""
    hazard = Hazard("The thing", patience=0.3)
    times = []
    for _ in range(3):
        began = trio.current_time()
        with pytest.raises(UnavailableError, match="The thing has not answered for"):
            await hazard.run(lambda: _hang(stop))
        times.append(trio.current_time() - began)
    stop.set()
    await trio.to_thread.run_sync(lambda: eventually(lambda: not hazard.hangs))
    after = await hazard.run(lambda: "fine")

    assert 0.3 <= times[0] < 5
    assert max(times[1:]) < 0.2
    assert after == "fine"


@pytest.mark.expect_log("has not answered for")
async def test_many_that_hang_take_no_thread_of_others(stop: threading.Event) -> None:
    """A hundred calls on one thing that hangs take four threads, and a call on another thing ends at once meanwhile."""
    bad, good = Hazard("Bad", patience=1.0), Hazard("Good", patience=1.0)
    before = threading.active_count()
    most = 0
    told = []

    async def one() -> None:
        try:
            await bad.run(lambda: _hang(stop))
        except UnavailableError as e:
            told.append(str(e))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        for _ in range(50):
            await good.run(lambda: None)
            await trio.to_thread.run_sync(lambda: None)
        took = trio.current_time() - began
        most = threading.active_count() - before

    assert took < 0.9
    assert most <= 4 + 2
    assert len(told) == 100


async def test_what_a_call_raises_is_the_callers(stop: threading.Event) -> None:
    """An error is no hang: it comes as it is, and the next call is carried out."""
    hazard = Hazard("The thing")
    with pytest.raises(ZeroDivisionError):
        await hazard.run(lambda: 1 // 0)
    after = await hazard.run(lambda: "fine")

    assert not hazard.hangs
    assert after == "fine"


@pytest.mark.expect_log("has not answered for")
async def test_cancelling_waits_for_the_call_but_not_for_ever(stop: threading.Event) -> None:
    """Nobody is let go while a call is at work that may end: two of them could meet. Only what hangs is given up."""
    hazard = Hazard("The thing", patience=0.5)
    began = trio.current_time()
    with trio.move_on_after(0.05), pytest.raises(UnavailableError):
        await hazard.run(lambda: _hang(stop))
    took = trio.current_time() - began

    assert 0.5 <= took < 5
    assert hazard.hangs


async def test_long_work_is_not_hanging(stop: threading.Event) -> None:
    """What may take long is never given up, and does not make others refused."""
    hazard = Hazard("The thing", patience=0.1)
    found: list[str] = []

    async def long() -> None:
        found.append(await hazard.run_long(lambda: _hang(stop)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(long)
        await trio.sleep(0.3)
        meanwhile = await hazard.run(lambda: "fine")
        stop.set()

    assert (meanwhile, found) == ("fine", ["late"])


@pytest.mark.expect_log("has not answered for")
async def test_one_place_is_one_hazard(stop: threading.Event) -> None:
    """What hangs at a place is known to whoever comes there later; another place is not concerned."""
    hazards = Hazards(patience=0.1)
    with pytest.raises(UnavailableError):
        await hazards.of("/a").run(lambda: _hang(stop))
    with pytest.raises(UnavailableError):
        await hazards.of("/a").run(lambda: "fine")
    other = await hazards.of("/b").run(lambda: "fine")

    assert other == "fine"
