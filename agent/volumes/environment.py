"""The variables of a container: what ``env`` and ``envFrom`` set, by Kubernetes' rules. Pure.

``$(NAME)`` stands for a variable that was defined before, ``$$(NAME)`` for the text ``$(NAME)``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from agent.volumes import downward
from agent.volumes.node import Node
from agent.volumes.projected import Find
from fusevol import objects
from fusevol.errors import FusevolError, InvalidError, NotFoundError

Obj = dict[str, Any]
_REFERENCE: Final = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_SOURCES: Final = {"secretRef": "Secret", "configMapRef": "ConfigMap"}
_KEYS: Final = {"secretKeyRef": "Secret", "configMapKeyRef": "ConfigMap"}


def of(pod: Obj, container: Obj, find: Find, node: Node) -> dict[str, str]:
    """The variables. Raises a :class:`FusevolError` for a source that is not there, as kubelet does."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        variables |= _whole(source, find)
    for entry in container.get("env") or []:
        if not entry.get("valueFrom"):
            variables[entry["name"]] = expand(str(entry.get("value") or ""), variables)
            continue
        try:
            value = _one(pod, container, entry["valueFrom"], find, node)
        except FusevolError as e:
            raise InvalidError(f'The variable {entry["name"]} of container "{container["name"]}": {e}') from e
        if value is not None:
            variables[entry["name"]] = value
    return variables


def _whole(source: Obj, find: Find) -> dict[str, str]:
    for word, kind in _SOURCES.items():
        if word in source:
            ref = source[word]
            obj = find(kind, str(ref.get("name") or ""))
            if obj is None and not ref.get("optional"):
                raise NotFoundError(f'{kind.lower()} "{ref.get("name")}" not found')
            prefix = str(source.get("prefix") or "")
            values = objects.payload.values(obj) if obj is not None else {}
            return {f"{prefix}{key}": _text(value) for key, value in values.items()}
    raise InvalidError("an entry of envFrom names nothing: write secretRef or configMapRef.")


def _one(pod: Obj, container: Obj, source: Obj, find: Find, node: Node) -> str | None:
    if ref := source.get("fieldRef"):
        return downward.variable(pod, str(ref.get("fieldPath") or ""), node)
    if ref := source.get("resourceFieldRef"):
        return downward.resource(pod, ref, node, container=str(container["name"]))
    for word, kind in _KEYS.items():
        if ref := source.get(word):
            name, key = str(ref.get("name") or ""), str(ref.get("key") or "")
            obj = find(kind, name)
            if obj is None:
                if ref.get("optional"):
                    return None
                raise NotFoundError(f'{kind.lower()} "{name}" not found')
            values = objects.payload.values(obj)
            if key not in values:
                if ref.get("optional"):
                    return None
                raise NotFoundError(f"couldn't find key {key} in {kind} {obj['metadata'].get('namespace')}/{name}")
            return _text(values[key])
    known = ", ".join([*_KEYS, "fieldRef", "resourceFieldRef"])
    raise InvalidError(f"{', '.join(source) or 'nothing'} is no source of a value: write one of {known}.")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """*text* with ``$(NAME)`` replaced where NAME is known, and ``$$`` by ``$``."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)


def expand_path(text: str, variables: Mapping[str, str]) -> str:
    """*text*, a subPathExpr, with its variables. Raises :class:`InvalidError` for one that is not set (6.2)."""
    for match in _REFERENCE.finditer(text):
        if match[1] and match[1] not in variables:
            raise InvalidError(f'failed to expand subPath for volumeMount: missing value for "{match[1]}"')
    return expand(text, variables)
