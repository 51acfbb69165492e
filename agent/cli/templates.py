"""``get -o jsonpath=TEMPLATE`` and ``-o custom-columns=HEADER:FIELD,…``, as kubectl has them.

Of its templates: text, fields, quoted texts, and ``{range FIELD}…{end}``. Filters are not understood, and said so.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from agent.cli.fieldpaths import Step, steps, values
from fusevol.errors import UsageError

_TOKEN: Final = re.compile(r"""\{((?:[^{}"']|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')*)\}""")
_NONE: Final = "<none>"


class Text(NamedTuple):
    """Printed as it is."""

    text: str


class Field(NamedTuple):
    """Printed as what is there, with a space between several."""

    way: Sequence[Step]


class Range(NamedTuple):
    """Printed once for each of what is there."""

    way: Sequence[Step]
    inner: Sequence[Node]


Node = Text | Field | Range


def parse(template: str) -> list[Node]:
    """The parts of a template. Raises :class:`UsageError`."""
    if not template.strip():
        raise UsageError("The template is empty: write for example jsonpath='{.spec.volumeName}'.")
    if "{" not in template and template.startswith("."):
        template = f"{{{template}}}"  # kubectl takes a field without braces, too
    top: list[Node] = []
    open_ranges: list[tuple[Sequence[Step], list[Node]]] = []
    at = 0
    for match in _TOKEN.finditer(template):
        inside = open_ranges[-1][1] if open_ranges else top
        _add_text(inside, template[at : match.start()])
        at = match.end()
        word = match[1].strip()
        if word.startswith("range "):
            open_ranges.append((steps(word.removeprefix("range ")), []))
        elif word == "end":
            if not open_ranges:
                raise UsageError(f'"{template}" has an {{end}} without a {{range}}: write one before it.')
            way, inner = open_ranges.pop()
            (open_ranges[-1][1] if open_ranges else top).append(Range(way, inner))
        elif word[:1] in {'"', "'"}:
            inside.append(Text(_quoted(word)))
        else:
            inside.append(Field(steps(word)))
    if open_ranges:
        raise UsageError(f'"{template}" has a {{range}} without an {{end}}: write one after it.')
    _add_text(top, template[at:])
    return top


def _add_text(into: list[Node], text: str) -> None:
    if "{" in text or "}" in text:
        raise UsageError(f'"{text}" has a brace without its other one: write fields as {{.metadata.name}}.')
    if text:
        into.append(Text(text))


def _quoted(word: str) -> str:
    try:
        return str(ast.literal_eval(word))
    except (ValueError, SyntaxError) as e:
        raise UsageError(f'{word} is no text in quotes: write for example {{"\\n"}}.') from e


def render(nodes: Sequence[Node], value: Any) -> str:
    """The template filled in with *value*."""
    parts = []
    for node in nodes:
        if isinstance(node, Text):
            parts.append(node.text)
        elif isinstance(node, Field):
            parts.append(" ".join(_shown(found) for found in values(value, node.way)))
        else:
            parts += [render(node.inner, found) for found in values(value, node.way)]
    return "".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))


class Column(NamedTuple):
    """One of a table of one's own."""

    header: str
    way: Sequence[Step]

    def cell(self, obj: Any) -> str:
        """What an object has there."""
        return ",".join(_shown(found) for found in values(obj, self.way)) or _NONE


def columns(spec: str) -> list[Column]:
    """From ``NAME:.metadata.name,SIZE:.spec.capacity.storage``. Raises :class:`UsageError`."""
    found = []
    for part in spec.split(","):
        header, colon, path = part.partition(":")
        if not (header and colon and path):
            raise UsageError(f'"{part}" is no column: write HEADER:FIELD, such as NAME:.metadata.name.')
        found.append(Column(header, steps(path)))
    return found
