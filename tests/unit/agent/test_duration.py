"""Times in parameters."""

from __future__ import annotations

import pytest

from agent import duration
from fusevol.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("24h", 86400), ("1h30m", 5400), ("1.5h", 5400), ("2m0.1s", 121), ("300ms", 1), ("0s", 0)],
)
def test_times(text: str, seconds: int) -> None:
    """Plain seconds, or what Go's tools write; a part of a second counts as one."""
    assert duration.seconds(text, "It") == seconds


@pytest.mark.parametrize("text", ["", "-1h", "h", "1d", "1 h", "1h ", "1h5", "1.5", "nan", "٣", "9" * 40])
def test_other_words(text: str) -> None:
    """What is no time is refused in a sentence that says how to write one."""
    with pytest.raises(InvalidError, match=r"^It .* is not a time: write hours"):
        duration.seconds(text, "It")


def test_too_long() -> None:
    """Ten years are the most."""
    assert duration.seconds("87600h", "It") == 87600 * 3600
    with pytest.raises(InvalidError, match="at most ten years"):
        duration.seconds("87600h1s", "It")
