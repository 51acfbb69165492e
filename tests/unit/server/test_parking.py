"""The parking lot: descriptors that outlive whoever has put them there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusevol.server.parking import ParkingLot
from tests.support.sudden import dies


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The sockets of an empty lot."""
    made = ParkingLot.pair()
    yield made
    for end in made:
        end.close()


@pytest.fixture
def lots(ends: tuple[socket.socket, socket.socket]) -> Callable[[], ParkingLot]:
    """Makes lots on one pair of sockets, as one server after another has them."""
    return lambda: ParkingLot(ends)


@pytest.fixture
def park(tmp_path: Path) -> Callable[[ParkingLot, int], None]:
    """Parks a file without a name that says its number."""

    def one(lot: ParkingLot, number: int) -> None:
        path = tmp_path / "f"
        path.write_text(str(number))
        fd = os.open(path, os.O_RDONLY)
        path.unlink()
        lot.park(number, fd)
        os.close(fd)

    return one


def contents(lot: ParkingLot) -> dict[int, str]:
    """What the parked files say, by number."""
    found = {}
    for number, fd in lot.parked().items():
        found[number] = os.pread(fd, 10, 0).decode()
        os.close(fd)
    return found


Make, Park = Callable[[], ParkingLot], Callable[[ParkingLot, int], None]


def test_found_by_the_next_as_often_as_it_looks(lots: Make, park: Park) -> None:
    """All that is parked is there for the next one, and for the one after it, and is what it was."""
    first = lots()
    for number in range(1, 20):
        park(first, number)
    for number in range(1, 20, 2):
        first.unpark(number)
    second = lots()
    found = [contents(second), contents(second), contents(lots())]

    assert all(it == found[0] for it in found)
    assert {k: v for k, v in found[0].items() if k % 2 == 0} == {k: str(k) for k in range(2, 20, 2)}


def test_what_is_not_wanted_goes(lots: Make, park: Park) -> None:
    """However many come and go, the queue has room, and few stay that nobody wants; no descriptor is left open."""
    lot = lots()
    before = len(os.listdir("/proc/self/fd"))
    park(lot, 7)
    for number in range(100, 2000):
        park(lot, number)
        lot.unpark(number)
    found = contents(lot)

    assert found[7] == "7"
    assert len(found) < 100
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_room_for_many(lots: Make, park: Park) -> None:
    """Ten thousand files that were removed while open are kept."""
    lot = lots()
    for number in range(1, 10_001):
        park(lot, number)

    assert len(lot._parked) == 10_000


def test_full(ends: tuple[socket.socket, socket.socket], lots: Make, park: Park) -> None:
    """What has no room is not kept, and everything else is; when some have gone there is room again."""
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    lot = lots()
    for number in range(1, 3000):
        park(lot, number)
    kept = contents(lots())
    for number in range(1, 200):
        lot.unpark(number)
    park(lot, 5000)
    found = contents(lots())

    assert 100 < len(kept) < 2999
    assert kept == {number: str(number) for number in range(1, len(kept) + 1)}
    assert found[5000] == "5000"
    assert all(found[number] == str(number) for number in range(200, len(kept) + 1))


def test_killed_at_any_line_of_a_clearing(lots: Make, park: Park) -> None:
    """A server that is killed while it clears the lot of what nobody wants leaves all that is wanted."""
    lot = lots()
    for number in range(1, 6):
        park(lot, number)
    for number in range(10, 73):
        park(lot, number)
        lot.unpark(number)
    park(lot, 80)

    def clear() -> None:
        mine = lots()
        mine.parked()
        mine._parked = {1, 2, 3, 4, 5, 80}
        mine.unpark(80)

    at, deaths = 0, 0
    while dies(at, clear):
        found = contents(lots())
        assert {number: found.get(number) for number in range(1, 6)} == {n: str(n) for n in range(1, 6)}, at
        deaths += 1
        at += 13

    assert deaths > 20
