"""How long a keeper goes without an understudy."""

from __future__ import annotations

from fusevol.keeper.understudy import pause


def test_pause() -> None:
    """None for the first; then it doubles, up to a minute, and never ends."""
    found = [pause(lives) for lives in (0, 1, 2, 3, 7, 8, 9, 1000)]

    assert found == [0.0, 0.5, 1.0, 2.0, 32.0, 60.0, 60.0, 60.0]
