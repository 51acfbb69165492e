"""What a volume of docker's or podman's may be called, and what may be said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.plugin import options, settings
from fusevol.errors import FusevolError, InvalidError, UsageError
from fusevol.pool.record import check_id


@pytest.mark.parametrize("name", ["data", "Data", "a_b", "a.b", "x" * 255, "0", "a..b", "A" * 64])
def test_every_name_has_an_id_of_its_own(name: str) -> None:
    """A name that docker allows becomes an id that a pool allows, and no other name has the same."""
    made = options.volume_id(options.check_name(name))

    assert check_id(made) == made
    assert made != options.volume_id(name.swapcase() if name.swapcase() != name else name + "0")


@pytest.mark.parametrize("name", ["", "/", "../x", "a/b", "-x", ".x", "a b", "ä", "x" * 256, None, 7, "a\n"])
def test_other_names_are_refused(name: object) -> None:
    """What could be a path, or is no name, is refused in a sentence."""
    with pytest.raises(InvalidError, match="cannot be the name of a volume"):
        options.check_name(name)


def test_options_go_over_those_of_the_class() -> None:
    """A class's parameters hold where the options say nothing else."""
    got = options.wanted({"size": "64Mi", "mode": "0700"}, {"pool": "fast", "inodes": "9", "mode": "0750"})

    assert got[:5] == (64 << 20, "fast", 9, 0o700, True)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"sise": "1Gi"}, "unknown options sise"),
        ({"size": 5}, "words with texts"),
        (["size=1Gi"], "words with texts"),
        ({}, "has no size"),
        ({"size": "64m"}, "less than 1Mi"),
        ({"size": "-1Gi"}, "less than 1Mi"),
        ({"size": "many"}, "is not a quantity"),
        ({"size": "1Gi", "inodes": "0"}, "not a positive number"),
        ({"size": "1Gi", "mode": "rwx"}, "not octal"),
        ({"size": "1Gi", "quota": "soft"}, "not known"),
    ],
)
def test_a_mistake_gets_a_sentence(given: object, why: str) -> None:
    """An option that cannot be is refused, with the reason."""
    with pytest.raises(FusevolError, match=why):
        options.wanted(options.check(given), {})


def test_no_size_is_needed_where_nobody_counts() -> None:
    """Without a quota there need not be a size."""
    got = options.wanted(options.check({"quota": "none"}), {})

    assert (got.capacity, got.enforced) == (None, False)


@pytest.mark.parametrize(
    ("given", "flag", "socket"),
    [
        (None, None, None),
        (False, None, None),
        (True, None, "/r/plugin.sock"),
        ({}, None, "/r/plugin.sock"),
        ({"socket": "/a/b.sock"}, None, "/a/b.sock"),
        ({"socket": "/a/b.sock"}, "/c.sock", "/c.sock"),
    ],
)
def test_where_it_is_served(given: object, flag: str | None, socket: str | None) -> None:
    """Nowhere unless asked for; in the run directory unless said otherwise; a flag goes over the file."""
    assert settings.parse(given, flag, Path("/r")) == (Path(socket) if socket else None)


@pytest.mark.parametrize("given", ["/a.sock", 5, {"socket": "a.sock"}, {"socket": 5}, {"sock": "/a"}])
def test_a_wrong_setting_gets_a_sentence(given: object) -> None:
    """A setting that cannot be understood is refused."""
    with pytest.raises(UsageError, match="plugin"):
        settings.parse(given, None, Path("/r"))
