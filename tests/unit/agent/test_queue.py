"""The work queue: no key twice at once, failures again later, changes at once."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from agent.controllers.queue import WorkQueue
from fusevol.errors import UnavailableError


async def test_a_failure_is_tried_again_with_growing_delays(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Back-off doubles, and success ends it."""
    times: list[float] = []

    async def handle(_: str) -> None:
        times.append(trio.current_time())
        if len(times) < 4:
            raise UnavailableError("not yet")

    queue = WorkQueue("q", handle)
    await nursery.start(queue.run)
    queue.add("a")
    await trio.sleep(60)
    nursery.cancel_scope.cancel()
    gaps = [round(b - a, 3) for a, b in itertools.pairwise(times)]

    assert gaps == [0.5, 1.0, 2.0]


async def test_a_change_does_not_wait_for_the_back_off(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Adding a key that waits for its retry has it looked at now, and only once."""
    times: list[float] = []

    async def handle(_: str) -> None:
        times.append(trio.current_time())
        if len(times) == 1:
            raise UnavailableError("not yet")

    queue = WorkQueue("q", handle)
    await nursery.start(queue.run)
    queue.add("a")
    await trio.sleep(0.1)
    queue.add("a")
    await trio.sleep(30)
    nursery.cancel_scope.cancel()

    assert [round(t - times[0], 3) for t in times] == [0.0, 0.1]


async def test_a_key_is_never_worked_on_twice_at_once(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A key that is added during its work is worked on once more afterwards."""
    running = most = count = 0

    async def handle(_: str) -> None:
        nonlocal running, most, count
        running += 1
        most, count = max(most, running), count + 1
        await trio.sleep(1)
        running -= 1

    queue = WorkQueue("q", handle)
    await nursery.start(queue.run)
    for _ in range(3):
        queue.add("a")
        await trio.sleep(0.1)
    await queue.drained()
    nursery.cancel_scope.cancel()

    assert (most, count) == (1, 2)


@pytest.mark.expect_log("the work on a failed")
async def test_a_bug_with_one_key_does_not_stop_the_others(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """An unexpected exception is logged with its traceback and the queue lives on."""
    seen: list[str] = []

    async def handle(key: str) -> None:
        seen.append(key)
        if seen == ["a"]:
            raise ZeroDivisionError

    queue = WorkQueue("q", handle, workers=1)
    await nursery.start(queue.run)
    queue.add("a")
    queue.add("b")
    await trio.sleep(2)
    nursery.cancel_scope.cancel()

    assert seen == ["a", "b", "a"]
