"""Paths of fields as kubectl writes them: ``.spec.capacity.storage``, ``{.items[*].metadata.labels['a.b/c']}``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from fusevol.errors import UsageError

Step = str | int | None
"""A field, a place in a list, or (``None``) everything in a list or mapping."""

_STEP: Final = re.compile(r"""\.?(?:([^.\[\]{}'"\s*]+)|\[(\d+)\]|(\[\*\]|\*)|\['([^']*)'\]|\["([^"]*)"\])""")


def steps(path: str) -> list[Step]:
    """The steps of *path*, with or without braces around it; ``.`` and ``$`` are the whole, which has none.

    Raises :class:`UsageError` for what is no path of plain fields, such as one with a filter.
    """
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    if text in {".", "$", "@"}:
        return []
    text = text.removeprefix("$").removeprefix("@")
    found: list[Step] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            break
        name, index, star, single, double = match.groups()
        if index is not None:
            found.append(int(index))
        else:
            found.append(None if star else next(w for w in (name, single, double) if w is not None))
        at = match.end()
    if not found or at < len(text):
        raise UsageError(f'"{path}" is no field: write for example .metadata.creationTimestamp.')
    return found


def values(value: Any, way: Sequence[Step]) -> list[Any]:
    """All that is at *way* in *value*; nothing where a field is missing."""
    found = [value]
    for step in way:
        found = [inner for outer in found for inner in _inside(outer, step)]
    return found


def _inside(value: Any, step: Step) -> list[Any]:
    if step is None:
        return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(step, int):
        return [value[step]] if isinstance(value, list) and step < len(value) else []
    return [value[step]] if isinstance(value, dict) and step in value else []
