"""Leases: one holder at a time, whoever comes when."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fusevol.errors import ConflictError
from fusevol.lease import Holder, Lease, LostError, State
from fusevol.pool.leases import Leases

ONE = Holder("one", "a" * 16, 30.0)
TWO = Holder("two", "b" * 16, 30.0)
THREE = Holder("three", "c" * 16, 30.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that takers see: the one item."""
    now = [1000.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: now[0])
    return now


@pytest.mark.parametrize("name", ["", "1", "1.", "1.2.3", "1.2.free.free", ".lease", "-1.0", "1.x", "x.1"])
def test_other_files_are_no_state(name: str) -> None:
    """What is in the directory by somebody else's doing is not looked at."""
    assert State.parse(name) is None


@pytest.mark.parametrize("state", [State(0, 0, free=True), State(3, 12, free=False)])
def test_a_state_is_its_name(state: State) -> None:
    """A name and back."""
    assert State.parse(state.name) == state


def test_taken_by_one_and_given_up(tmp_path: Path) -> None:
    """Another one waits until it is given up; what is given up is had at once."""
    one, two = Leases(ONE), Leases(TWO)
    first = one.take(tmp_path)
    with pytest.raises(ConflictError, match=r'by the node "one", .* in 38 s if'):
        two.take(tmp_path)
    two.release(tmp_path)  # not its own
    with pytest.raises(ConflictError):
        two.take(tmp_path)
    one.release(tmp_path)
    second = two.take(tmp_path)

    assert second > first
    with pytest.raises(LostError):
        Lease(tmp_path).renew(first)


def test_one_that_is_not_renewed_is_lost(tmp_path: Path, clock: list[float]) -> None:
    """Only after all of its time, and a quarter more, in which nothing was renewed, by the taker's own clock."""
    epoch, two = Leases(ONE).take(tmp_path), Leases(TWO)
    for _ in range(3):
        for passed in (0.0, 37.0):
            clock[0] += passed
            with pytest.raises(ConflictError):
                two.take(tmp_path)
        Lease(tmp_path).renew(epoch)
    with pytest.raises(ConflictError):
        two.take(tmp_path)
    clock[0] += 38.0
    taken = two.take(tmp_path)

    assert taken == epoch + 1
    assert Lease(tmp_path).holder(Lease(tmp_path).look()) == TWO
    with pytest.raises(LostError):
        Lease(tmp_path).renew(epoch)
    Lease(tmp_path).release(epoch)
    assert Lease(tmp_path).look() == State(taken, 0, free=False)


def test_the_same_holder_has_it_at_once(tmp_path: Path) -> None:
    """After a reboot nobody waits for himself; what his earlier server might still do fails."""
    epoch = Leases(ONE).take(tmp_path)
    again = Leases(ONE).take(tmp_path)

    assert again == epoch + 1
    with pytest.raises(LostError):
        Lease(tmp_path).renew(epoch)


@pytest.mark.parametrize("said", ["", "{}", "[", '{"epoch": 0, "node": "x", "agent": "y", "seconds": 1}'])
def test_a_holder_that_is_not_known_is_waited_for(tmp_path: Path, clock: list[float], said: str) -> None:
    """Nothing, or an earlier holder, is in the file: it is waited for as long as one's own would hold."""
    one, two = Leases(ONE), Leases(TWO)
    one.take(tmp_path)
    lease = Lease(tmp_path)
    (tmp_path / "lease" / lease.look().name).write_text(said)
    with pytest.raises(ConflictError, match="another node"):
        two.take(tmp_path)
    clock[0] += 40.0

    assert two.take(tmp_path) == 2


def test_a_volume_that_is_gone(tmp_path: Path) -> None:
    """It is lost, and nothing is made where it was."""
    place = tmp_path / "volume"
    with pytest.raises(LostError):
        Leases(ONE).take(place)

    assert not place.exists()


def test_a_renewal_and_a_taker_at_once(tmp_path: Path) -> None:
    """Of all who change it at the same moment one has it: never two, and a renewal that was done is not undone."""
    epoch = Leases(ONE).take(tmp_path)
    lease, state = Lease(tmp_path), Lease(tmp_path).look()
    start = threading.Barrier(9)
    taken: list[State] = []
    renewed: list[State] = []

    def take(number: int) -> None:
        start.wait()
        found = lease.take(state, Holder(f"n{number}", str(number), 30.0))
        if found is not None:
            taken.append(found)

    def renew() -> None:
        start.wait()
        try:
            renewed.append(lease.renew(epoch))
        except LostError:
            return

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)] + [threading.Thread(target=renew)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(taken) + len(renewed) == 1
    assert lease.look() == (taken + renewed)[0]


def test_many_make_the_first_one(tmp_path: Path) -> None:
    """A volume that never had a lease gets one, whoever comes first."""
    start = threading.Barrier(8)
    took: list[int] = []

    def take(number: int) -> None:
        start.wait()
        try:
            took.append(Leases(Holder(f"n{number}", str(number), 30.0)).take(tmp_path))
        except ConflictError:
            return

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert took == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lease"]


def test_shares_keep_others_from_having_it_alone(tmp_path: Path) -> None:
    """Many share a volume; nobody has it alone until the last of the others has given its share up."""
    one, two, three = Leases(ONE), Leases(TWO), Leases(THREE)
    one.share(tmp_path)
    two.share(tmp_path)
    for taker in (one, three):
        with pytest.raises(ConflictError, match=r'is in use by the node "(one|two)": unmount it'):
            taker.take(tmp_path)
    two.release(tmp_path)
    with pytest.raises(ConflictError, match='by the node "one"'):
        three.take(tmp_path)
    untouched = Lease(tmp_path).look()
    one.release(tmp_path)
    three.take(tmp_path)
    with pytest.raises(ConflictError, match=r'by the node "three", and by one'):
        one.share(tmp_path)
    three.release(tmp_path)
    one.share(tmp_path)

    assert untouched == State(0, 0, free=True)


def test_who_shares_may_have_it_alone(tmp_path: Path) -> None:
    """Its own share keeps nobody from it, nor its own lease from sharing, which then lets others share."""
    one, two = Leases(ONE), Leases(TWO)
    one.share(tmp_path)
    one.take(tmp_path)
    with pytest.raises(ConflictError):
        two.share(tmp_path)
    one.share(tmp_path)
    two.share(tmp_path)
    one.release(tmp_path)
    two.release(tmp_path)

    assert [s.look().free for s in (Lease(tmp_path), *Lease(tmp_path).shares())] == [True] * 3


def test_a_share_that_is_not_renewed_is_lost(tmp_path: Path, clock: list[float]) -> None:
    """As a lease: after all of its time without a renewal, and then for good, until it is taken anew."""
    one, two = Leases(ONE), Leases(TWO)
    epoch = one.share(tmp_path)
    share = Lease(tmp_path, ONE.agent)
    for _ in range(3):
        for passed in (0.0, 37.0):
            clock[0] += passed
            with pytest.raises(ConflictError):
                two.take(tmp_path)
        share.renew(epoch)
    with pytest.raises(ConflictError):
        two.take(tmp_path)
    clock[0] += 38.0
    two.take(tmp_path)
    with pytest.raises(LostError):
        share.renew(epoch)
    two.release(tmp_path)
    again = one.share(tmp_path)
    share.renew(again)

    assert again > epoch


def test_a_share_that_was_half_ended_is_had_again(tmp_path: Path, clock: list[float]) -> None:
    """Who ends another's share may die over it: it is done when it comes again, and others need not wait for ever."""
    one, two, three = Leases(ONE), Leases(TWO), Leases(THREE)
    one.share(tmp_path)
    share = Lease(tmp_path, ONE.agent)
    share.take(share.look(), TWO)
    two.take(tmp_path)
    two.release(tmp_path)
    after = share.look().free
    share.take(share.look(), TWO)
    for _ in range(2):
        for taker in (one.share, three.take):
            with pytest.raises(ConflictError, match='by the node "two"'):
                taker(tmp_path)
    clock[0] += 38.0

    assert after
    assert one.share(tmp_path) > 0


def test_a_share_of_a_volume_that_is_gone(tmp_path: Path) -> None:
    """It cannot be had, and one that was had is lost; nothing is made where the volume was."""
    volume, aside = tmp_path / "volume", tmp_path / "aside"
    with pytest.raises(LostError):
        Leases(ONE).share(volume)
    volume.mkdir()
    epoch = Leases(ONE).share(volume)
    volume.rename(aside)
    with pytest.raises(LostError):
        Lease(volume, ONE.agent).renew(epoch)

    assert not volume.exists()


def test_one_who_shares_and_one_who_wants_it_alone_at_once(tmp_path: Path) -> None:
    """Whoever is faster, never have both got what they wanted, and who has not leaves nothing taken."""
    had = []
    for number in range(100):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        start = threading.Barrier(2)
        got: list[str] = []

        def attempt(leases: Leases, what: str, directory: Path = directory, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                getattr(leases, what)(directory)
            except ConflictError:
                return
            got.append(what)  # noqa: B023  # the threads end in this turn

        threads = [
            threading.Thread(target=attempt, args=(Leases(ONE), "share")),
            threading.Thread(target=attempt, args=(Leases(TWO), "take")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lease = Lease(directory)
        held = [one.agent for one in (lease, *lease.shares()) if not one.look().free]
        had.append((got, held))

    assert [one for one in had if one not in [(["share"], [ONE.agent]), (["take"], [""]), ([], [])]] == []
