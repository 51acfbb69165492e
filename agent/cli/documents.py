"""Reading and checking the files of ``-f``: everything is read and checked before anything is changed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agent.cli.resources import DEFAULT_NAMESPACE
from fusevol import objects
from fusevol.errors import InvalidError, NotFoundError, UsageError

Obj = dict[str, Any]

_SUFFIXES = {".yaml", ".yml", ".json"}


def read(files: Sequence[str], namespace: str | None) -> list[Obj]:
    """The objects of all *files* in order, each with its namespace set, all of them valid.

    Returned as written (not defaulted), so that the agent can tell what the user asked for. Raises
    :class:`InvalidError` for the first document that is not valid, :class:`NotFoundError` for a file that is not there.
    """
    if len([f for f in files if f == "-"]) > 1:
        raise UsageError("The standard input can be read only once: give `-f -` one time.")
    found: list[Obj] = []
    for source, text in _texts(files):
        loaded = objects.load(text, source)
        for obj in loaded:
            _set_namespace(obj, namespace)
            objects.admit(obj)
        found += loaded
    if not found:
        raise InvalidError(f"There is no object in {', '.join(files)}: write at least one YAML document.")
    _refuse_duplicates(found)
    return found


def _texts(files: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in files:
        if name == "-":
            yield "<standard input>", _decode("<standard input>", sys.stdin.buffer.read())
            continue
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())
            if not inside:
                raise NotFoundError(
                    f"The directory {path} has no .yaml, .yml or .json file: name the files themselves."
                )
            for file in inside:
                yield str(file), _load(file)
        else:
            yield str(path), _load(path)


def _load(path: Path) -> str:
    try:
        return _decode(str(path), path.read_bytes())
    except OSError as e:
        raise NotFoundError(f"The file {path} cannot be read ({e.strerror}): check its name and permissions.") from e


def _decode(source: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as e:
        raise InvalidError(f"{source} is not a UTF-8 text (byte {e.start}): give a YAML or JSON file.") from e


def _set_namespace(obj: Obj, namespace: str | None) -> None:
    kind = objects.find_kind(str(obj.get("kind")))
    metadata = obj.get("metadata")
    if not kind.namespaced or not isinstance(metadata, dict):
        return
    own = metadata.get("namespace")
    if own and namespace and own != namespace:
        raise UsageError(
            f'{kind.name} "{metadata.get("name")}" is in the namespace "{own}", the command says "{namespace}": '
            "leave out one of them."
        )
    if not own:
        metadata["namespace"] = namespace or DEFAULT_NAMESPACE


def _refuse_duplicates(found: list[Obj]) -> None:
    seen = set()
    for obj in found:
        key = objects.key(obj)
        if key in seen:
            raise InvalidError(f'{key.kind} "{key.name}" is described twice: remove one of the documents.')
        seen.add(key)
