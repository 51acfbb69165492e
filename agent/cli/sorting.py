"""``--sort-by``: objects in the order of a field, as kubectl has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fusevol import quantity
from fusevol.errors import InvalidError, UsageError

Obj = dict[str, Any]
Step = str | int

_STEP = re.compile(r"""\.?(?:([^.\[\]{}'"\s]+)|\[(\d+)\]|\['([^']*)'\]|\["([^"]*)"\])""")


def steps(path: str) -> list[Step]:
    """The steps of ``.spec.capacity.storage``, ``{.status.conditions[0].type}`` or ``metadata.labels['a.b/c']``.

    Raises :class:`UsageError` for what is no path of plain fields.
    """
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    found: list[Step] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            break
        name, index, single, double = match.groups()
        found.append(int(index) if index is not None else next(w for w in (name, single, double) if w is not None))
        at = match.end()
    if not found or at < len(text):
        raise UsageError(f'"{path}" is no field to sort by: write for example .metadata.creationTimestamp.')
    return found


def order(objs: Sequence[Obj], path: str) -> list[Obj]:
    """*objs* by what is at *path*: quantities by their size, numbers in texts by their value, objects without it first.

    Raises :class:`UsageError` when no object has the field.
    """
    way = steps(path)
    values = [_at(obj, way) for obj in objs]
    if objs and all(value is None for value in values):
        raise UsageError(f'No object has the field "{path}": `fusevol explain` tells the fields.')
    keys = [_key(value) for value in values]
    return [objs[i] for i in sorted(range(len(objs)), key=keys.__getitem__)]


def _at(value: Any, way: Sequence[Step]) -> Any:
    for step in way:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def _key(value: Any) -> tuple[Any, ...]:
    """Kinds of values apart from each other, so that any two can be compared."""
    if value is None:
        return (0,)
    if isinstance(value, bool | int | float):
        return (1, float(value), "")
    text = str(value)
    try:
        return (1, float(quantity.parse(text)), text)
    except InvalidError:
        return (2, [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", text) if p])
