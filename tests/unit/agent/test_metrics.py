"""Metrics as text, what they are counted by, and where they are served."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from agent.address import Address
from agent.metrics import Seen, ServerSeen, render
from agent.tally import BOUNDS, Durations, Timings
from fusevol.errors import UsageError
from fusevol.pool import PoolCapacity
from tests.support.metrics import Samples

LABELS = ("pvc-1", "default", "ns", 'a "claim"\n', "")


def seen(**fields: Any) -> Seen:
    """A scrape that found *fields*."""
    return Seen(**({"ready": True, "keeper": True, "attachments": 0} | fields))


def values(**fields: Any) -> Samples:
    """The metrics of a scrape that found *fields*."""
    return Samples(render(seen(**fields)).decode())


def test_a_pool_that_does_not_answer_has_no_numbers() -> None:
    """Pools are told apart by whether they answer; one that does not has no capacity, rather than a wrong one."""
    got = values(pools={"a": PoolCapacity(100, 60, 300, 2), "b": None})

    assert (got("pool_answers", "a"), got("pool_answers", "b")) == (1, 0)
    assert got("pool_capacity_bytes", "a") == 100
    assert got("pool_available_bytes", "a") == 60
    assert got("pool_provisioned_bytes", "a") == 300
    assert got("pool_volumes", "a") == 2
    assert got.all("pool_capacity_bytes", "b") == got.all("pool_volumes", "b") == []


def test_a_volume() -> None:
    """A volume has its use and its server's, under the names of its claim, whatever those are."""
    status = {
        "usage": {"used_bytes": 4096, "limit_bytes": 8192, "used_inodes": 3, "limit_inodes": None},
        "stats": {"under_way": 2, "threads": 5},
        "stuck": {"count": 1, "oldest": 31.5},
    }
    got = values(servers=[ServerSeen(LABELS, 7, status)])

    assert got("volume_used_bytes", *LABELS) == 4096
    assert got("volume_limit_bytes", *LABELS) == 8192
    assert got("volume_used_inodes", *LABELS) == 3
    assert got.all("volume_limit_inodes") == []
    assert got("server_requests_under_way", *LABELS) == 2
    assert got("server_threads", *LABELS) == 5
    assert got("server_requests_hanging", *LABELS) == 1
    assert got("server_oldest_hang_seconds", *LABELS) == 31.5
    assert got("server_takeovers_total", *LABELS) == 7


@pytest.mark.parametrize("status", [None, {}, {"usage": None, "stats": {"threads": "many"}}])
def test_a_server_that_says_little(status: dict[str, Any] | None) -> None:
    """What a server does not say is missing, and nothing fails."""
    got = values(servers=[ServerSeen(LABELS, 0, status)])

    assert got("server_answers", *LABELS) == (status is not None)
    assert got.all("server_threads") == []


def test_durations_are_cumulative() -> None:
    """A bucket has all that were no longer than its bound; the last one has all."""
    durations = Durations()
    for seconds in (0.001, 0.005, 0.3, 1000.0):
        durations.add(seconds)
    got = values(provisioning={("default", "ok"): durations})
    buckets = [got("provisioning_seconds_bucket", "default", "ok", str(b)) for b in (*BOUNDS, "+Inf")]

    assert (buckets[0], buckets[BOUNDS.index(0.25)], buckets[BOUNDS.index(0.5)], buckets[-1]) == (2, 2, 3, 4)
    assert buckets == sorted(buckets)
    assert got("provisioning_seconds_count", "default", "ok") == 4
    assert got("provisioning_seconds_sum", "default", "ok") == pytest.approx(1000.306)


async def test_timings_tell_failures_apart() -> None:
    """What fails is counted as well, as an error; so is what is cancelled."""
    timings = Timings()
    with timings.timed("p"):
        pass
    with pytest.raises(ValueError, match="x"), timings.timed("p"):
        raise ValueError("x")
    with trio.CancelScope() as scope:
        scope.cancel()
        with timings.timed("p"):
            await trio.sleep(1)

    assert {key: sum(d.counts) for key, d in timings.found.items()} == {("p", "ok"): 1, ("p", "error"): 2}


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9805", ("127.0.0.1", 9805)), ("[::1]:1", ("::1", 1)), ("10.1.2.3:65535", ("10.1.2.3", 65535))],
)
def test_an_address(text: str, address: tuple[str, int]) -> None:
    """An IP address and a port, as URLs have them."""
    found = Address.parse({"listen": text})

    assert found == address
    assert str(found) == text


@pytest.mark.parametrize(
    "given",
    [
        "127.0.0.1:9805", {}, {"listen": 9805}, {"listen": "9805"}, {"listen": ":9805"}, {"listen": "localhost:9805"},
        {"listen": "::1:9805"}, {"listen": "[127.0.0.1]:9805"}, {"listen": "127.0.0.1:0"},
        {"listen": "127.0.0.1:65536"}, {"listen": "127.0.0.1:x"}, {"listen": "127.0.0.1"},
        {"listen": "127.0.0.1:9805", "path": "/m"},
    ],
)  # fmt: skip
def test_no_address(given: object) -> None:
    """What is none is refused in a sentence."""
    with pytest.raises(UsageError, match="metrics"):
        Address.parse(given)
