"""What is made of a look at a volume that programs wait for."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent.hangs import Action, Seen, State, judge
from agent.patience import Patience

PATIENCE = Patience(give_up=20, report=30, abort=120)


def _looks(*seen: Seen, patience: Patience = PATIENCE, every: float = 5.0) -> list[tuple[float, Action]]:
    """What is done, and when, in looks that are *every* seconds apart."""
    state = State()
    done: list[tuple[float, Action]] = []
    for i, one in enumerate(seen):
        state, actions = judge(state, one, i * every, patience)
        done += [(i * every, action) for action in actions]
    return done


def test_a_quiet_volume_is_left_alone() -> None:
    """Nothing is done where nobody waits, or not for long."""
    assert _looks(Seen(0, 0), Seen(3, 0), Seen(5, 0), Seen(0, 0)) == []


def test_hanging_storage_is_told_once_and_when_it_is_over() -> None:
    """One event when requests are stuck, one when they are not any more; again when it happens again."""
    bad, good = Seen(4, 2), Seen(0, 0)

    assert _looks(bad, bad, bad, good, good, bad) == [
        (0, "storage hangs"),
        (15, "recovered"),
        (25, "storage hangs"),
    ]


def test_a_silent_server_is_told_and_then_ended() -> None:
    """Told after the time to report, ended once after the time to abort."""
    silent = [Seen(1, None)] * 40

    assert _looks(*silent) == [(30, "server hangs"), (120, "end")]


def test_without_a_limit_nothing_is_ended() -> None:
    """The default is to wait for as long as it takes."""
    silent = [Seen(1, None)] * 100_000

    assert _looks(*silent, patience=PATIENCE._replace(abort=None)) == [(30, "server hangs")]


def test_one_answer_begins_the_time_anew() -> None:
    """A server that answers now and then is busy, not gone."""
    looks = [*[Seen(1, None)] * 5, Seen(1, 0)] * 50

    assert _looks(*looks) == []


def test_a_kernel_that_does_not_tell_is_no_reason_to_worry() -> None:
    """Without the kernel's count the server's word counts, and its silence."""
    assert _looks(Seen(None, 0), Seen(None, 3), Seen(None, 0)) == [(5, "storage hangs"), (10, "recovered")]
    assert _looks(*[Seen(None, None)] * 30) == [(30, "server hangs"), (120, "end")]


@given(st.lists(st.builds(Seen, st.sampled_from([None, 0, 1, 9]), st.sampled_from([None, 0, 1, 9])), max_size=60))
def test_events_come_in_turn(looks: list[Seen]) -> None:
    """Never the same twice in a row, never a recovery of nothing, never an end before its time."""
    done = _looks(*looks)
    actions = [action for _, action in done]

    assert all(a != b for a, b in itertools.pairwise(actions))
    assert actions[:1] != ["recovered"]
    assert all(when >= 120 for when, action in done if action == "end")
