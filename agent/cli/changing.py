"""``fusevol label``, ``annotate`` and ``patch``: one thing of an object changed, whatever others change of it."""

from __future__ import annotations

import copy
import json
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from agent.cli.resources import DEFAULT_NAMESPACE, get_object, list_objects, path_to, selections, shown
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_OK, ConflictError, InvalidError, NotFoundError, UsageError

Obj = dict[str, Any]
_ATTEMPTS: Final = 5
_MARK: Final = re.compile(r"([^=\s]+)(=(.*)|-)", re.DOTALL)


def command(options: Namespace) -> int:
    """Change what is named, each object by itself."""
    client = Client(options.socket)
    if options.name == "patch":
        words, change, told = options.what, _patcher(options), "patched"
    else:
        words, marks = _divided(options.what)
        field = "labels" if options.name == "label" else "annotations"
        change = _marker(field, marks, overwrite=options.overwrite)
        told = "labeled" if field == "labels" else "annotated"
    for obj in list(_wanted(client, options, words)):
        changed = rewrite(client, obj, change)
        named = shown(objects.find_kind(obj["kind"]), obj["metadata"]["name"])
        no_change = "patched (no change)" if told == "patched" else f"not {told}"
        print(f"{named} {told if changed else no_change}", flush=True)
    return EXIT_OK


def _wanted(client: Client, options: Namespace, words: Sequence[str]) -> Iterator[Obj]:
    """The objects that the command line names, as they are now."""
    namespace = options.namespace or DEFAULT_NAMESPACE
    if not words:
        raise UsageError("Say which object: KIND NAME or KIND/NAME.")
    for selection in selections(words):
        kind = objects.find_kind(selection.word)
        everything, selector = getattr(options, "everything", False), getattr(options, "selector", None)
        if bool(selection.names) == bool(everything or selector):
            raise UsageError(f"Say which {kind.plural} to change: give either names, --all or -l SEL.")
        if selection.names:
            for name in selection.names:
                yield get_object(client, kind, namespace, name)
        else:
            yield from list_objects(client, kind, namespace, selector)


def rewrite(client: Client, obj: Obj, change: Callable[[Obj], Obj]) -> bool:
    """Have the agent keep what *change* makes of *obj*, again if somebody else was faster; whether that is new."""
    kind = objects.find_kind(obj["kind"])
    for attempt in range(_ATTEMPTS):
        current = obj if attempt == 0 else get_object(client, kind, _namespace(obj), obj["metadata"]["name"])
        wanted = change(copy.deepcopy(current))
        if wanted == current:
            return False
        if _identity(wanted) != _identity(current):
            raise InvalidError("kind, name and namespace cannot be changed: apply a new object and delete the old one.")
        try:
            client.request("PUT", path_to(current), wanted)
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return True
    return True


def _namespace(obj: Obj) -> str | None:
    namespace: str | None = obj["metadata"].get("namespace")
    return namespace


def _identity(obj: Obj) -> tuple[Any, ...]:
    metadata = obj.get("metadata") or {}
    return obj.get("kind"), obj.get("apiVersion"), metadata.get("name"), metadata.get("namespace")


# -- labels and annotations -------------------------------------------------------------------------------------------


def _divided(what: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """Objects, and what they get: ``key=value``, or ``key-`` for none (``None``)."""
    at = next((i for i, word in enumerate(what) if i and _MARK.fullmatch(word)), len(what))
    marks: dict[str, str | None] = {}
    for word in what[at:]:
        match = _MARK.fullmatch(word)
        if match is None:
            raise UsageError(f'"{word}" is neither KEY=VALUE nor KEY-: names come before those.')
        if match[1] in marks:
            raise UsageError(f'"{match[1]}" is given twice: leave out one of them.')
        marks[match[1]] = None if match[2] == "-" else match[3]
    if not marks:
        raise UsageError("Say what to change: KEY=VALUE, or KEY- to take it away.")
    return list(what[:at]), marks


def _marker(field: str, marks: dict[str, str | None], *, overwrite: bool) -> Callable[[Obj], Obj]:
    def change(obj: Obj) -> Obj:
        current: dict[str, str] = dict(obj["metadata"].get(field) or {})
        for key, value in marks.items():
            if value is None:
                current.pop(key, None)
            elif not overwrite and current.get(key, value) != value:
                raise ConflictError(f"'{key}' already has a value ({current[key]}), and --overwrite is false")
            else:
                current[key] = value
        if current or obj["metadata"].get(field):
            obj["metadata"][field] = current
        return obj

    return change


# -- patches ----------------------------------------------------------------------------------------------------------


def _patcher(options: Namespace) -> Callable[[Obj], Obj]:
    patch = _load(options)
    if options.type == "json":
        return _json_patch(patch)
    if not isinstance(patch, dict):
        raise UsageError('The patch must be a mapping, such as {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}.')
    if options.type == "strategic":
        _check_plain(patch)
    return lambda obj: _merged(obj, patch)


def _load(options: Namespace) -> Any:
    if (options.patch is None) == (options.patch_file is None):
        raise UsageError("Give the patch by either --patch or --patch-file.")
    text = options.patch
    if text is None:
        try:
            text = Path(options.patch_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise NotFoundError(f"The patch file {options.patch_file} cannot be read: check its name.") from e
    try:
        return json.loads(text)
    except ValueError:
        import yaml  # noqa: PLC0415  # most patches are JSON

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise UsageError(f"The patch is neither JSON nor YAML ({' '.join(str(e).split())}): correct it.") from e


def _merged(value: Any, patch: Any) -> Any:
    """RFC 7396: mappings are merged, null takes away, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    found = dict(value) if isinstance(value, dict) else {}
    for key, part in patch.items():
        if part is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), part)
    return found


def _check_plain(patch: Any) -> None:
    """A strategic patch merges lists of objects by their names, which is not done here."""
    if isinstance(patch, dict):
        if any(str(key).startswith("$") for key in patch):
            raise UsageError("Directives such as $patch are not understood: use --type=json.")
        for part in patch.values():
            _check_plain(part)
    elif isinstance(patch, list) and any(isinstance(part, dict) for part in patch):
        raise UsageError(
            "A strategic patch would merge this list of objects, which is not done here: use --type=merge, which "
            "replaces it, or --type=json."
        )


def _json_patch(patch: Any) -> Callable[[Obj], Obj]:
    import jsonpatch  # noqa: PLC0415  # the only command that needs it

    try:
        parsed = jsonpatch.JsonPatch(patch)
    except (jsonpatch.InvalidJsonPatch, jsonpatch.JsonPointerException, TypeError) as e:
        raise UsageError(f"The patch is no JSON patch ({e}): write [{{op, path, value}}] as RFC 6902 has it.") from e

    def change(obj: Obj) -> Obj:
        try:
            changed: Obj = parsed.apply(obj)
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as e:
            raise InvalidError(f"The patch does not fit the object: {e}.") from e
        return changed

    return change
