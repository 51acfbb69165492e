"""What the keeper's socket carries, the list of its mounts, and the notes of what happened to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.keeper import wire
from fusevol.keeper.mounts import PAGE, REMEMBERED, Mount, Mounts, Server
from fusevol.keeper.notes import PAGE as NOTES_PAGE
from fusevol.keeper.notes import Notes

NAMES = st.sets(st.text(min_size=1, max_size=20), max_size=400)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_sentence(data: bytes) -> None:
    """Decoding gives an object or a ValueError with a sentence, whatever it is given."""
    try:
        found: object = wire.decode(data)
    except ValueError as e:
        found = {"error": str(e)}
        said = str(e)
    else:
        said = "."

    assert isinstance(found, dict)
    assert said.endswith(".")


def test_messages_are_bounded() -> None:
    """The longest message is taken, a longer one is not."""
    longest = b'{"a": "' + b"x" * (wire.LIMIT - 9) + b'"}'

    assert len(wire.decode(longest)["a"]) == wire.LIMIT - 9
    with pytest.raises(ValueError, match="longer than"):
        wire.decode(longest + b" ")


@given(NAMES)
def test_pages_make_the_whole_list(names: set[str]) -> None:
    """Pages that follow each other have every mount once, in order."""
    mounts = Mounts()
    for name in names:
        mounts.add(_mount(name))
    found: list[str] = []
    more = True
    while more:
        page = mounts.page(found[-1] if found else "")
        found += [s["mount_id"] for s in page["servers"]]
        more = page["more"]

    assert found == sorted(names)


def test_the_longest_page_fits() -> None:
    """A full page of the longest names, with as many ends, is within a message."""
    mounts = Mounts()
    for number in range(PAGE + REMEMBERED + 10):
        mount = _mount(f"{number:010}" + "n" * 245)
        mounts.add(mount)
        assert mount.server is not None
        mounts.note_end(mount, mount.server, -9)

    assert len(wire.encode({"ok": True, **mounts.page("")})) <= wire.LIMIT


def _mount(name: str) -> Mount:
    return Mount(name, "/spec", "/log", Server(4_000_000, -1, ours=True))


def test_notes_are_told_until_they_are_heard() -> None:
    """What a listener has not confirmed is told again, in order, and in as many messages as it takes."""
    notes = Notes()
    for number in range(2 * NOTES_PAGE + 1):
        notes.add("ended", f"m{number}")
    again = [notes.after(0), notes.after(0)]
    heard = [n["mount_id"] for n in again[0]]
    after = again[0][-1]["serial"]
    while found := notes.after(after):
        heard += [n["mount_id"] for n in found]
        after = found[-1]["serial"]

    assert again[0] == again[1]
    assert heard == [f"m{number}" for number in range(2 * NOTES_PAGE + 1)]
    assert notes.after(0) == []


def test_notes_of_another_keeper_are_told_like_its_own() -> None:
    """What nobody has heard of the keeper before comes first, under numbers of this one."""
    before, notes = Notes(), Notes()
    before.add("moved", "a", pid=1)
    before.add("moved", "b", pid=2)
    notes.again(before.after(0)[1:])
    notes.add("ended", "c")

    assert [(n["serial"], n["what"], n["mount_id"]) for n in notes.after(0)] == [(1, "moved", "b"), (2, "ended", "c")]


def test_the_longest_notes_fit() -> None:
    """A full answer of the longest names and words is within a message, however they are spelled."""
    notes = Notes()
    for _ in range(NOTES_PAGE + 1):
        notes.add("failed", "\udcff" * 255, old=4_000_000, status=-9, times=8, words="\udcff" * 5000)

    assert len(wire.encode({"ok": True, "notes": notes.after(0)})) <= wire.LIMIT
