"""secret, configMap, downwardAPI and projected: which files a volume shows (volume-semantics 3). Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from agent.volumes import downward
from agent.volumes.atomicwriter import File, Payload
from agent.volumes.node import Node
from fusevol import objects
from fusevol.errors import FusevolError, InvalidError, NotFoundError

Obj = dict[str, Any]
Find = Callable[[str, str], "Obj | None"]
"""From a kind and a name (in the Pod's namespace) to the object."""

Kind = Literal["secret", "configMap", "downwardAPI", "projected"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MODE: Final = 0o644
_PLUGINS: Final = {"downwardAPI": "downward-api"}
_UNSERVED: Final = {
    "serviceAccountToken": "fusevol issues no tokens, since it has no API server that would take them: leave it out",
    "clusterTrustBundle": "fusevol has no such objects: put the certificates into a ConfigMap",
    "podCertificate": "fusevol signs no certificates: put one into a Secret",
}


def kind_of(volume: Obj) -> Kind | None:
    """The kind of an entry of ``spec.volumes``, if it is one of these."""
    return next((k for k in KINDS if k in volume), None)


def target_of(volumes: Path, volume: Obj) -> Path:
    """Where *volume* is below the directory *volumes* of its Pod."""
    kind = kind_of(volume) or "projected"
    return volumes / f"kubernetes.io~{_PLUGINS.get(kind, kind.lower())}" / str(volume["name"])


def root_mode(kind: Kind) -> int:
    """Permission bits of the volume's root: a tmpfs has 1777 by itself; a configMap's is a plain directory upstream."""
    return 0o777 if kind == "configMap" else 0o1777


def mentioned(pod: Obj) -> list[tuple[str, str]]:
    """Kind and name of the objects whose values the Pod's volumes show."""
    found: dict[tuple[str, str], None] = {}
    for volume in pod["spec"].get("volumes") or []:
        kind = kind_of(volume)
        sources = (volume["projected"].get("sources") or []) if kind == "projected" else [volume] if kind else []
        for source in sources:
            for word, name in _named(source):
                found[word, name] = None
    return list(found)


def _named(source: Obj) -> list[tuple[str, str]]:
    found = []
    if secret := source.get("secret"):
        found.append(("Secret", str(secret.get("secretName") or secret.get("name") or "")))
    if config := source.get("configMap"):
        found.append(("ConfigMap", str(config.get("name") or "")))
    return found


def payload(pod: Obj, volume: Obj, find: Find, node: Node) -> Payload:
    """The files of *volume*, an entry of ``spec.volumes``.

    Raises a :class:`FusevolError` with all that is wrong: nothing is written if any source fails.
    """
    kind = kind_of(volume) or "projected"
    options: Obj = volume[kind] or {}
    default = int(options.get("defaultMode", MODE))
    sources: list[Obj] = (options.get("sources") or []) if kind == "projected" else [{kind: options}]
    files: dict[str, File] = {}
    errors: list[FusevolError] = []
    for source in sources:
        try:
            files |= _files(pod, source, find, node, default)
        except FusevolError as e:
            errors.append(e)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InvalidError(f"[{', '.join(str(e) for e in errors)}]")
    return files


def _files(pod: Obj, source: Obj, find: Find, node: Node, default: int) -> dict[str, File]:
    for word, why in _UNSERVED.items():
        if word in source:
            raise InvalidError(f"{word} is not served here: {why}.")
    if "downwardAPI" in source:
        return _downward(pod, source["downwardAPI"] or {}, node, default)
    word = "secret" if "secret" in source else "configMap"
    if word not in source:
        raise InvalidError("a source of the projected volume is empty: name a secret, a configMap or a downwardAPI.")
    ((kind, name),) = _named(source)
    return _selected(source[word], kind, name, find, default)


def _selected(options: Obj, kind: str, name: str, find: Find, default: int) -> dict[str, File]:
    """The values of a Secret or ConfigMap that are asked for."""
    optional = bool(options.get("optional"))
    obj = find(kind, name)
    if obj is None and not optional:
        raise NotFoundError(f'{kind.lower()} "{name}" not found')
    values = objects.payload.values(obj) if obj is not None else {}
    if not options.get("items"):
        return {key: File(value, default) for key, value in values.items()}
    files = {}
    for item in options["items"]:
        key = str(item["key"])
        if key in values:
            files[_path(item)] = File(values[key], int(item.get("mode", default)))
        elif not optional:
            word = "secret" if kind == "Secret" else "config"
            raise NotFoundError(f"references non-existent {word} key: {key}")
    return files


def _downward(pod: Obj, options: Obj, node: Node, default: int) -> dict[str, File]:
    files: dict[str, File] = {}
    errors: list[str] = []
    for item in options.get("items") or []:
        try:
            if "fieldRef" in item:
                text = downward.field(pod, str(item["fieldRef"]["fieldPath"]))
            else:
                text = downward.resource(pod, item["resourceFieldRef"], node)
        except FusevolError as e:
            errors.append(str(e))
            continue
        files[_path(item)] = File(text.encode(), int(item.get("mode", default)))
    if errors:
        raise InvalidError("; ".join(errors))
    return files


def _path(item: Mapping[str, Any]) -> str:
    return posixpath.normpath(str(item["path"]))


def places_inside(pod: Obj, name: str) -> list[str]:
    """Where other volumes are mounted inside the volume *name*: paths in it, the outermost of each branch (3.7)."""
    found: set[str] = set()
    for container in objects.pod.containers(pod):
        mounts = container.get("volumeMounts") or []
        own = [_absolute(m) for m in mounts if m["name"] == name and not _partly(m)]
        for top in own:
            inside = (posixpath.relpath(_absolute(m), top) for m in mounts if _absolute(m).startswith(f"{top}/"))
            for path in sorted(inside):
                if not any(path.startswith(f"{p}/") for p in found):
                    found.add(path)
    return sorted(found)


def _absolute(mount: Obj) -> str:
    return posixpath.normpath("/" + str(mount["mountPath"]).lstrip("/"))


def _partly(mount: Obj) -> bool:
    return bool(mount.get("subPath") or mount.get("subPathExpr"))
