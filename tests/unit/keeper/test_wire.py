"""What the keeper's socket carries, and the list of its servers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.keeper import wire
from fusevol.keeper.children import PAGE, REMEMBERED, Children

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
    """Pages that follow each other have every server once, in order."""
    children = Children()
    for number, name in enumerate(names):
        children.add(name, number, -1)
    found: list[str] = []
    more = True
    while more:
        page = children.page(found[-1] if found else "")
        found += [s["mount_id"] for s in page["servers"]]
        more = page["more"]

    assert found == sorted(names)


def test_the_longest_page_fits() -> None:
    """A full page of the longest names, with as many ends, is within a message."""
    children = Children()
    for number in range(PAGE + REMEMBERED + 10):
        children.add(f"{number:010}" + "n" * 245, 4_000_000 + number, -1)
    for number in range(REMEMBERED + 10):
        child = children.find(f"{number:010}" + "n" * 245)
        assert child is not None
        children.remove(child, -9)

    assert len(wire.encode({"ok": True, **children.page("")})) <= wire.LIMIT


def test_restarts_count_ends_that_were_not_orderly() -> None:
    """A server's restarts are the remembered ends of its mount with a status other than 0."""
    children = Children()
    for status in (0, -9, 1):
        children.remove(children.add("a", 1, -1), status)
    children.add("a", 2, -1)
    children.add("b", 3, -1)

    assert [s["restarts"] for s in children.page("")["servers"]] == [2, 0]
    assert [end["status"] for end in children.page("")["ended"]] == [0, -9, 1]
