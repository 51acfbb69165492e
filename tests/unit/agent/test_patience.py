"""The times of what may hang, as the configuration gives them."""

from __future__ import annotations

import pytest

from agent.patience import Patience
from fusevol.errors import UsageError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, Patience(20.0, 30.0, None)),
        ({}, Patience(20.0, 30.0, None)),
        ({"giveUpAfter": 5}, Patience(5.0, 30.0, None)),
        ({"giveUpAfter": "500ms", "reportAfter": "1.5m", "abortAfter": "2h"}, Patience(0.5, 90.0, 7200.0)),
        ({"abortAfter": "never"}, Patience(20.0, 30.0, None)),
    ],
)
def test_times_are_read(given: object, wanted: Patience) -> None:
    """Seconds, or a number with a unit, or never; what is not given has its default."""
    assert Patience.parse(given) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("30s", "must be a mapping"),
        ({"abortafter": "1m"}, "unknown keys: abortafter"),
        ({"reportAfter": "soon"}, "give a time such as"),
        ({"reportAfter": "-3s"}, "give a time such as"),
        ({"reportAfter": True}, "give a time such as"),
        ({"giveUpAfter": "never"}, "cannot be never"),
        ({"reportAfter": "5m", "abortAfter": "1m"}, "less than reportAfter"),
    ],
)
def test_mistakes_are_a_sentence(given: object, message: str) -> None:
    """What cannot be understood is refused, and told what to write."""
    with pytest.raises(UsageError, match=message):
        Patience.parse(given)
