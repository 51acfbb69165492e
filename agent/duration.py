"""Times as Go's tools write them (``24h``, ``1h30m``, ``1.5h``), or as plain seconds. Pure."""

from __future__ import annotations

import re
from typing import Final

from fusevol.errors import InvalidError

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)", re.ASCII)
_WHOLE: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+", re.ASCII)
_PLAIN: Final = re.compile(r"\d+", re.ASCII)
_LONGEST: Final = 10 * 365 * 86400
"""Seconds; the digits before it are few enough for no time ever to be out of a calendar's range."""


def seconds(text: str, what: str) -> int:
    """Whole seconds, rounded up, of *text*, which is *what*. Raises :class:`InvalidError`."""
    value = -1.0
    if len(text) <= 32:
        if _PLAIN.fullmatch(text):
            value = float(text)
        elif _WHOLE.fullmatch(text):
            value = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if value < 0:
        raise InvalidError(f'{what} "{text}" is not a time: write hours, minutes, seconds such as 24h or 1h30m.')
    if value > _LONGEST:
        raise InvalidError(f'{what} "{text}" is too long: give at most ten years, which are 87600h.')
    return -int(-value // 1)
