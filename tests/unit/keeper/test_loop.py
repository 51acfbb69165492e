"""The keeper's loop, and when it starts the next server."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from fusevol.keeper.lives import CALM, PAUSES, Lives
from fusevol.keeper.loop import Loop


def test_timers_and_descriptors_take_turns() -> None:
    """Timers are called in the order of their moments, a cancelled one never, and a descriptor while it is readable."""
    loop = Loop()
    reader, writer = os.pipe()
    called: list[str] = []
    loop.later(0.02, lambda: called.append("later"))
    loop.later(0.01, lambda: called.append("sooner"))
    loop.later(0.0, lambda: called.append("cancelled")).cancel()
    loop.watch(reader, lambda: called.append(os.read(reader, 1).decode()))
    os.write(writer, b"x")
    while len(called) < 3:
        loop.turn()
    loop.unwatch(reader)
    os.close(reader)
    os.close(writer)

    assert called == ["x", "sooner", "later"]


def test_a_descriptor_that_was_let_go_of_is_not_called() -> None:
    """A callback that closes another descriptor keeps that one's callback from being called in the same turn."""
    loop = Loop()
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def read(which: int) -> None:
        called.append(which)
        for reader, _ in pipes:
            loop.unwatch(reader)

    for which, (reader, writer) in enumerate(pipes):
        loop.watch(reader, lambda which=which: read(which))
        os.write(writer, b"x")
    loop.turn()
    for ends in pipes:
        for end in ends:
            os.close(end)

    assert len(called) == 1


@given(st.lists(st.floats(0.0, 100.0), max_size=30))
def test_lives(lives: list[float]) -> None:
    """A server is followed at once when it lived for a while, later and later after short lives, and then no more."""
    so_far = Lives()
    short = 0
    for seconds in lives:
        so_far = so_far.after(seconds)
        short = 0 if seconds >= CALM else short + 1

        assert so_far.pause == (None if short > len(PAUSES) else PAUSES[short - 1] if short else 0.0)

    assert list(PAUSES) == sorted(PAUSES)
    assert PAUSES[0] == 0.0
