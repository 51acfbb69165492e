"""``--sort-by``: objects in the order of a field, as kubectl has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from agent.cli import fieldpaths
from fusevol import quantity
from fusevol.errors import InvalidError, UsageError

Obj = dict[str, Any]


def order(objs: Sequence[Obj], path: str) -> list[Obj]:
    """*objs* by what is at *path*: quantities by their size, numbers in texts by their value, objects without it first.

    Raises :class:`UsageError` when no object has the field.
    """
    way = fieldpaths.steps(path)
    values = [next(iter(fieldpaths.values(obj, way)), None) for obj in objs]
    if objs and all(value is None for value in values):
        raise UsageError(f'No object has the field "{path}": `fusevol explain` tells the fields.')
    keys = [_key(value) for value in values]
    return [objs[i] for i in sorted(range(len(objs)), key=keys.__getitem__)]


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
