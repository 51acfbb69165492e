"""From the words of a command line (``pvc data``, ``pvc/data``, ``pvc,pv``) to kinds, names and API paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.client import Client, path_of
from fusevol import objects
from fusevol.errors import UsageError

Obj = dict[str, Any]

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Selection:
    """One kind's word as it was written, and the names asked for (none: all objects)."""

    word: str
    names: tuple[str, ...]


def selections(what: Sequence[str]) -> list[Selection]:
    """What the positional arguments of get, describe and delete select. Raises :class:`UsageError`.

    A word after a kind that begins with a slash is the name of a mount: its target.
    """
    with_slash = [w for i, w in enumerate(what) if "/" in w and not (i and w.startswith("/"))]
    if with_slash and len(with_slash) != len(what):
        raise UsageError(
            f'"{" ".join(what)}" mixes two ways to name objects: write either KIND NAME... or KIND/NAME KIND/NAME...'
        )
    if with_slash:
        found: list[Selection] = []
        for argument in what:
            word, _, name = argument.partition("/")
            if not word or not name or "/" in name:
                raise UsageError(f'"{argument}" is not of the form KIND/NAME, such as pvc/data.')
            found.append(Selection(word, (name,)))
        return found
    words = [w for w in what[0].split(",") if w]
    if not words:
        raise UsageError("A kind is missing: write for example pvc, pv, sc or pod.")
    if len(words) > 1 and len(what) > 1:
        raise UsageError("Names cannot follow several kinds: write KIND/NAME for each object.")
    return [Selection(w, tuple(what[1:])) for w in words]


def collection_path(kind: objects.Kind, namespace: str | None, **query: str | None) -> str:
    """The API path of all objects of *kind*; *namespace* None: those of every namespace."""
    if kind.namespaced and namespace is not None:
        return path_of("namespaces", namespace, kind.plural, **query)
    return path_of(kind.plural, **query)


def object_path(kind: objects.Kind, namespace: str | None, name: str) -> str:
    """The API path of one object (*namespace* is ignored for kinds that have none)."""
    if kind.namespaced:
        return path_of("namespaces", namespace or DEFAULT_NAMESPACE, kind.plural, name)
    return path_of(kind.plural, name)


def path_to(obj: Obj) -> str:
    """The API path of an object that is at hand."""
    metadata = obj["metadata"]
    return object_path(objects.find_kind(obj["kind"]), metadata.get("namespace"), metadata["name"])


def get_object(client: Client, kind: objects.Kind, namespace: str | None, name: str) -> Obj:
    """One object from the agent. Raises :class:`NotFoundError`."""
    found: Obj = client.request("GET", object_path(kind, namespace, name))
    return found


def list_objects(client: Client, kind: objects.Kind, namespace: str | None, selector: str | None = None) -> list[Obj]:
    """The objects of a kind, *namespace* None: of every namespace; each with its kind and apiVersion filled in."""
    answer = client.request("GET", collection_path(kind, namespace, labelSelector=selector))
    return [{"apiVersion": kind.api_version, "kind": kind.name, **o} for o in answer["items"]]


def shown(kind: objects.Kind, name: str) -> str:
    """``persistentvolumeclaim/data``, as kubectl names an object."""
    group = kind.api_version.rpartition("/")[0]
    return f"{kind.singular}{'.' + group if group else ''}/{name}"
