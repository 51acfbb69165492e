"""Kubelet's back-off between the restarts of a container."""

from __future__ import annotations

import pytest

from agent.cli.backoff import Backoff, restarts


@pytest.mark.parametrize(
    ("policy", "zero", "failed"), [("Always", True, True), ("OnFailure", False, True), ("Never", False, False)]
)
def test_who_is_started_again(policy: str, zero: bool, failed: bool) -> None:
    """By the policy and the exit code."""
    assert (restarts(policy, 0), restarts(policy, 1)) == (zero, failed)


def delays(backoff: Backoff, count: int, ran: float = 1.0, now: float = 1000.0) -> list[float]:
    """The waits of a container that ends *count* times from *now* on, each time *ran* seconds after its start."""
    found = []
    for _ in range(count):
        now += ran
        due = backoff.due(now)
        found.append(due - now)
        now = due
        backoff.started(now)
    return found


def test_it_doubles_up_to_five_minutes() -> None:
    """At once, then 10 s, 20 s, 40 s ... 300 s."""
    assert delays(Backoff(), 8) == [0, 10, 20, 40, 80, 160, 300, 300]


def test_a_shorter_limit() -> None:
    """A longest time below ten seconds is the first one, too."""
    assert delays(Backoff(2.0), 4) == [0, 2, 2, 2]


def test_a_long_run_makes_it_forget() -> None:
    """A container that ran for more than ten minutes begins anew; one that ran for nine does not."""
    long, short = Backoff(), Backoff()
    end = 1000.0 + sum(delays(long, 5)) + 5
    delays(short, 5)

    assert delays(long, 2, ran=601.0, now=end) == [0, 0]
    assert delays(short, 1, ran=540.0, now=end) == [160]
