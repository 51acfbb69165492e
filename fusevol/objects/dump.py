"""Objects to YAML, JSON and names, as kubectl prints them."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from fusevol.errors import UsageError
from fusevol.objects.kinds import BY_NAME, Obj

_TOP = ("apiVersion", "kind", "metadata", "spec")
_METADATA = ("name", "namespace", "labels", "annotations")
# What YAML 1.2 and Go's reader take for something else than a string, and PyYAML does not.
_AMBIGUOUS = re.compile(
    r"[-+]?(\.?[0-9][0-9_.]*([eE][-+]?[0-9]+)?|0[oO][0-7]+|0[xX][0-9a-fA-F]+|\.inf)|[yYnN]|\.nan|=|<<", re.IGNORECASE
)


def dump(obj: Obj | list[Obj], form: str) -> str:
    """One object, or several as a ``List``, as text that ends with a newline. Raises :class:`UsageError`."""
    if form == "name":
        return "".join(f"{_name(o)}\n" for o in (obj if isinstance(obj, list) else [obj]))
    shaped: Obj = (
        {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [_ordered(o) for o in obj]}
        if isinstance(obj, list)
        else _ordered(obj)
    )
    if form == "json":
        return json.dumps(shaped, indent=4, ensure_ascii=False) + "\n"
    if form == "yaml":
        text: str = yaml.dump(shaped, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)
        return text
    raise UsageError(f'"{form}" is no output format: use yaml, json or name.')


def _name(obj: Obj) -> str:
    kind = BY_NAME[obj["kind"]]
    group = kind.api_version.rpartition("/")[0]
    return f"{kind.singular}{'.' + group if group else ''}/{obj['metadata']['name']}"


def _ordered(obj: Obj) -> Obj:
    """*obj* with its fields where a reader looks for them: status last, metadata with the name first."""
    first = {k: obj[k] for k in _TOP if k in obj}
    if isinstance(first.get("metadata"), dict):
        metadata = first["metadata"]
        rest = {k: metadata[k] for k in sorted(metadata) if k not in _METADATA}
        first["metadata"] = {**{k: metadata[k] for k in _METADATA if k in metadata}, **rest}
    rest = {k: obj[k] for k in obj if k not in _TOP and k != "status"}
    return {**first, **rest, **({"status": obj["status"]} if "status" in obj else {})}


class _Dumper(yaml.SafeDumper):
    """Writes every string so that YAML 1.1 and 1.2 read it as that string; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class's signature
        return True


def _represent(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    lines = text.split("\n")
    if _AMBIGUOUS.fullmatch(text) or not all(line.isprintable() for line in lines):
        style = '"'
    elif len(lines) > 1 and all(line == line.rstrip() for line in lines):
        style = "|"  # PyYAML itself falls back to quotes where a block would not do
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)
