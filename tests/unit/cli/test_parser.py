"""The command line as people type it: options before, between and after the arguments."""

from __future__ import annotations

import pytest

from agent.cli.parser import parse
from fusevol.errors import UsageError


@pytest.mark.parametrize(
    "words",
    [
        "get pvc data -n web -o json",
        "get pvc -n web data -o json",
        "get -n web pvc -o json data",
        "get -o json -n web pvc data",
        "-n web get pvc data -o json",
        "--namespace=web get pvc -o json data",
        "-n other get pvc data -n web -o json",
    ],
)
def test_options_stand_anywhere(words: str) -> None:
    """As with kubectl; of two namespaces the one after the command counts."""
    found = parse(words.split())

    assert (found.name, found.what, found.namespace, found.output) == ("get", ["pvc", "data"], "web", "json")


def test_the_namespace_is_optional() -> None:
    """Commands ask for it whether it was given or not."""
    assert parse(["get", "pvc"]).namespace is None


def test_what_follows_two_dashes_is_left_alone() -> None:
    """A command in a container has options of its own."""
    found = parse(["exec", "web", "-n", "prod", "--", "ls", "-n", "x"])

    assert (found.namespace, found.words) == ("prod", ["ls", "-n", "x"])


@pytest.mark.parametrize("words", ["get pvc -x data", "version data", "get pvc data --frob", "events a b"])
def test_what_is_not_known_is_refused(words: str) -> None:
    """What a command has no place for is an error as before."""
    with pytest.raises(UsageError, match="Unrecognized arguments"):
        parse(words.split())
