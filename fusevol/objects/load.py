"""YAML and JSON to objects.

The text is composed by PyYAML and turned into plain values here, because an object is JSON at heart: times stay
strings, keys are strings, and a key that is given twice, an alias that contains itself, or aliases that unfold to
millions of nodes are mistakes (or attacks) that PyYAML's own constructor lets pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from fusevol.errors import InvalidError
from fusevol.objects.kinds import MAX_DEPTH, Obj

_NODES = 1_000_000
"""Values in one text, aliases unfolded."""
_BITS = 64
"""Of an integer; JSON readers of other languages have no more."""
_PROMPT = re.compile(r"(\[[^]\n]*@[^]\n]*\]|[\w.-]+@[\w.:~/-]+)?[$#%] ?(k|kubectl|fusevol|oc) [^\n]*")
"""A command after a shell's prompt, as it is copied together with what it printed."""
_STRINGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}


def load(text: str, source: str) -> list[Obj]:
    """The objects of a multi-document YAML (or JSON) *text*; a ``List`` is flattened, empty documents are skipped.

    Raises :class:`InvalidError`, one sentence with *source* (a file's name), line and column. Whether the objects
    are valid is not checked, only that each is a mapping with a kind.
    """
    found: list[Obj] = []
    text = _without_mark(text, source)
    if pasted := _PROMPT.match(text):
        raise InvalidError(f'{source}, line 1: "{pasted[0]:.60}" is a command: remove it, or put "# " before it.')
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            value = None if node is None else _Values(source).read(node)
            if node is not None and value is not None:
                found += _flat(value, f"{source}, line {node.start_mark.line + 1}")
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise InvalidError(_sentence(source, mark, " ".join(filter(None, (e.context, e.problem))))) from e
    except yaml.YAMLError as e:
        raise InvalidError(_sentence(source, None, str(e))) from e
    except RecursionError as e:
        raise InvalidError(f"{source}: the YAML is nested too deeply: write at most {MAX_DEPTH} levels.") from e
    finally:
        loader.dispose()
    return found


def _without_mark(text: str, source: str) -> str:
    """*text* without a byte order mark, free of characters that YAML forbids (PyYAML tells only their position)."""
    text = text.removeprefix("\ufeff")
    match = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if match:
        line = text.count("\n", 0, match.start()) + 1
        column = match.start() - text.rfind("\n", 0, match.start())
        raise InvalidError(
            f"{source}, line {line}, column {column}: the character U+{ord(match[0]):04X} is not allowed in YAML."
        )
    return text


def _sentence(source: str, mark: Any, problem: str) -> str:
    where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
    hint = " (indent with blanks, not tabs)" if "'\\t'" in problem else ""
    return f"{where}: {' '.join(problem.split())}{hint}."


def _flat(value: Any, where: str) -> Iterator[Obj]:
    if not isinstance(value, dict):
        raise InvalidError(f"{where}: this is not an object: write apiVersion, kind, metadata and spec.")
    kind = value.get("kind")
    if not isinstance(kind, str) or not kind:
        raise InvalidError(f"{where}: the object has no kind: write one such as PersistentVolumeClaim.")
    if kind.endswith("List") and "items" in value:
        items = value["items"]
        if items is not None and not isinstance(items, list):
            raise InvalidError(f"{where}: the items of a {kind} must be a list.")
        for item in items or []:
            if isinstance(item, dict) and kind != "List":  # a PersistentVolumeClaimList may leave it to its own kind
                typed = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix("List"), **item}
            else:
                typed = item
            yield from _flat(typed, f"{where} (an item of the {kind})")
    else:
        yield value


class _Values:
    """Nodes of one document to plain values."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._constructor = yaml.constructor.SafeConstructor()
        self._count = 0
        self._open: set[int] = set()

    def read(self, node: yaml.Node) -> Any:
        """The value of *node*. Raises :class:`InvalidError`."""
        self._count += 1
        if self._count > _NODES:
            raise self._refusal(node, f"the text unfolds to more than {_NODES} values: write fewer aliases")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise self._refusal(node, "an alias contains itself: write the value out")
        if len(self._open) >= MAX_DEPTH:
            raise self._refusal(node, f"nested too deeply: write at most {MAX_DEPTH} levels")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self.read(item) for item in node.value]
            if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
                return self._mapping(node)
        finally:
            self._open.discard(id(node))
        raise self._refusal(node, f"the tag {node.tag} is not allowed: write plain YAML")

    def _mapping(self, node: yaml.MappingNode) -> Obj:
        merged: Obj = {}
        own: Obj = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                for part in reversed(self._merged(value_node)):
                    merged.update(part)
                continue
            key = self._key(key_node)
            if key in own:
                raise self._refusal(key_node, f'the key "{key}" is given twice: remove one')
            own[key] = self.read(value_node)
        return {**merged, **own}

    def _merged(self, node: yaml.Node) -> list[Obj]:
        value = self.read(node)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise self._refusal(node, "only mappings can be merged with <<")
        return parts

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._refusal(node, "a key must be a string")
        value = self._scalar(node)
        return value if isinstance(value, str) else str(node.value)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        tag = node.tag
        if tag in _STRINGS:  # a time stays the text that it is
            return node.value
        try:
            if tag == "tag:yaml.org,2002:null":
                return None
            if tag == "tag:yaml.org,2002:bool":
                return self._constructor.construct_yaml_bool(node)
            if tag == "tag:yaml.org,2002:int":
                whole: int = self._constructor.construct_yaml_int(node)
                if whole.bit_length() <= _BITS:
                    return whole
            if tag == "tag:yaml.org,2002:float":
                number = self._constructor.construct_yaml_float(node)
                if math.isfinite(number):
                    return number
        except (ValueError, KeyError, OverflowError) as e:
            raise self._refusal(
                node, f'"{node.value[:40]}" cannot be read as {tag.rpartition(":")[2]}: quote it'
            ) from e
        raise self._refusal(node, f'"{node.value[:40]}" has a type that JSON does not know: quote it')

    def _refusal(self, node: yaml.Node, problem: str) -> InvalidError:
        return InvalidError(_sentence(self._source, node.start_mark, problem))
