"""What goes to the terminal: tables, ages, sizes."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], widths: list[int] | None = None) -> str:
    """Left-aligned columns three blanks apart, as kubectl prints them.

    *widths* (changed in place) carries column widths over from one call to the next, for a watch.
    """
    lines = [[str(c) for c in row] for row in ([headers] if headers else [])] + [[str(c) for c in r] for r in rows]
    if widths is None:
        widths = []
    for line in lines:
        widths.extend([0] * (len(line) - len(widths)))
        for i, cell in enumerate(line):
            widths[i] = max(widths[i], len(cell))
    return "\n".join(
        "   ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=False)).rstrip() for line in lines
    )


def note(text: str) -> None:
    """A remark that is not the command's result: to stderr."""
    print(text, file=sys.stderr)


def instant(text: object) -> dt.datetime | None:
    """The time that an RFC 3339 string or a number of seconds since 1970 says; None if neither."""
    if isinstance(text, int | float):
        return dt.datetime.fromtimestamp(text, dt.UTC)
    try:
        when = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


def age(since: object, now: dt.datetime | None = None) -> str:
    """How long ago, in kubectl's short form: ``12s``, ``3m20s``, ``5h``, ``8d``; ``<unknown>`` without a time."""
    start = instant(since)
    if start is None:
        return "<unknown>"
    return seconds(((now or dt.datetime.now(dt.UTC)) - start).total_seconds())


def seconds(count: float) -> str:
    """A time in the same form."""
    whole = max(0, int(count))
    if whole < 120:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m{whole % 60}s" if whole % 60 else f"{whole // 60}m"
    if whole < 3 * 3600:
        return f"{whole // 60}m"
    if whole < 48 * 3600:
        return f"{whole // 3600}h"
    return f"{whole // 86400}d"


def owner(words: object) -> str:
    """Whom a volume was made for, as its record has it."""
    if not isinstance(words, dict) or not words:
        return "<none>"
    return ",".join(f"{k}={v}" for k, v in sorted(words.items()))


def size(count: object) -> str:
    """Bytes for a person: ``512Mi``, ``1.5Gi``; ``<none>`` for no number."""
    if not isinstance(count, int | float):
        return "<none>"
    value, units = float(count), ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f}".rstrip("0").rstrip(".") + units[0]
