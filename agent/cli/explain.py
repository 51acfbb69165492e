"""``fusevol explain``: the fields of a kind. Needs no agent."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Iterator
from typing import NamedTuple

from agent.cli.fields import TEXT
from fusevol import objects
from fusevol.errors import EXIT_OK, NotFoundError

_WIDTH = 100


class Entry(NamedTuple):
    """A field."""

    name: str
    type: str
    """As it is written in ``fields``, without ``!``."""
    required: bool
    text: str

    @property
    def inner(self) -> str:
        """The type of what is in it: without the marks of lists and mappings."""
        return self.type.removeprefix("[]").removeprefix("{}")


class Type(NamedTuple):
    """A kind, or the type of a field that has fields."""

    text: str
    fields: dict[str, Entry]


def types(text: str = TEXT) -> dict[str, Type]:
    """All types by name."""
    found = {}
    for block in text.strip().split("\n\n"):
        head, *lines = block.splitlines()
        name, _, about = head.partition(": ")
        fields = {}
        for line in lines:
            field, kind, words = line.split(" ", 2)
            fields[field] = Entry(field, kind.rstrip("!"), kind.endswith("!"), words)
        found[name] = Type(about, fields)
    return found


def command(options: Namespace) -> int:
    """Print what is known of a kind or of a field of it."""
    print("\n".join(page(options.what, recursive=options.recursive)))
    return EXIT_OK


def page(what: str, *, recursive: bool = False) -> Iterator[str]:
    """The lines about ``pvc`` or ``pvc.spec.resources``. Raises :class:`NotFoundError`."""
    known = types()
    word, *path = what.rstrip(".").split(".")
    kind = objects.find_kind(word)
    entry, here, way = None, kind.name, kind.singular
    for name in path:
        fields = known[here].fields if here in known else {}
        entry = fields.get(name)
        if entry is None:
            told = f"it has {', '.join(fields)}" if fields else "it has no fields"
            raise NotFoundError(f'{way} has no field "{name}": {told}.')
        here, way = entry.inner, f"{way}.{name}"
    yield f"KIND:     {kind.name}"
    yield f"VERSION:  {kind.api_version}"
    yield ""
    if entry is not None:
        yield f"FIELD:    {entry.name} <{_shown(entry.type)}>{' -required-' if entry.required else ''}"
        yield ""
    yield from textwrap.wrap(entry.text if entry is not None else known[here].text, _WIDTH)
    if here in known:
        yield ""
        yield "FIELDS:"
        yield from _tree(known, here, "  ", ()) if recursive else _fields(known[here])


def _fields(of: Type) -> Iterator[str]:
    for entry in of.fields.values():
        yield f"  {entry.name} <{_shown(entry.type)}>{' -required-' if entry.required else ''}"
        yield from textwrap.wrap(entry.text, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _tree(known: dict[str, Type], name: str, indent: str, above: tuple[str, ...]) -> Iterator[str]:
    for entry in known[name].fields.values():
        yield f"{indent}{entry.name} <{_shown(entry.type)}>{' -required-' if entry.required else ''}"
        if entry.inner in known and entry.inner not in above:
            yield from _tree(known, entry.inner, f"{indent}  ", (*above, name))


def _shown(kind: str) -> str:
    """A type in kubectl's words."""
    prefix = "[]" if kind.startswith("[]") else "map[string]" if kind.startswith("{}") else ""
    inner = kind.removeprefix("[]").removeprefix("{}")
    return f"{prefix}{'Object' if inner[0].isupper() else inner}"
