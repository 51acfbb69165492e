"""``fusevol get``: objects as a table, YAML, JSON or names; and the agent's pools, mounts, servers and events."""

from __future__ import annotations

import datetime as dt
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.cli import fieldpaths, listings, output, sorting, templates
from agent.cli.grammar.common import TEMPLATES
from agent.cli.resources import (
    DEFAULT_NAMESPACE,
    Selection,
    collection_path,
    get_object,
    list_objects,
    selections,
    shown,
)
from agent.client import Client, path_of
from fusevol import objects
from fusevol.errors import EXIT_OK, FusevolError, NotFoundError, UsageError, by_reason

Obj = dict[str, Any]
_SHOWING_USE = {"PersistentVolume", "PersistentVolumeClaim"}


def command(options: Namespace) -> int:
    """Print what is asked for; what exists of it is printed before an error tells what does not."""
    chosen = selections(options.what)
    if options.selector and any(s.names for s in chosen):
        raise UsageError("Names and a selector cannot be given together: leave out one of them.")
    own = options.output.partition("=")[0] in TEMPLATES
    if own and (options.watch or any(s.word.lower() in listings.LISTINGS for s in chosen)):
        raise UsageError("A template is for Kubernetes' objects, and without --watch: leave out one of them.")
    if options.sort_by is not None:
        fieldpaths.steps(options.sort_by)
        if options.watch:
            raise UsageError("A watch prints what changes as it comes: leave out --sort-by or --watch.")
    client = Client(options.socket)
    special = [s for s in chosen if s.word.lower() in listings.LISTINGS]
    others = [s for s in chosen if s not in special]
    if special and options.watch:
        raise UsageError(f"{special[0].word} can only be shown without --watch: ask again to see what changed.")
    if special and others and options.output not in {"table", "wide"}:
        raise UsageError(f"{special[0].word} and Kubernetes' objects can be shown together only as tables.")
    code = _Get(client, options).run(others) if others else EXIT_OK
    for number, selection in enumerate(special):
        if others or number:
            print()
        namespace = None if options.all_namespaces else options.namespace
        listings.show(client, selection, options.output, namespace, options.sort_by)
    return code


class _Get:
    """One call of ``get`` on objects."""

    def __init__(self, client: Client, options: Namespace) -> None:
        self._client = client
        self._output, _, template = options.output.partition("=")
        self._template = templates.parse(template) if self._output == "jsonpath" else []
        self._columns = templates.columns(template) if self._output == "custom-columns" else []
        self._watch: bool = options.watch
        self._selector: str | None = options.selector
        self._sort: str | None = options.sort_by
        self._all: bool = options.all_namespaces
        self._namespace: str | None = None if options.all_namespaces else options.namespace or DEFAULT_NAMESPACE

    def run(self, chosen: Sequence[Selection]) -> int:
        if self._watch:
            return self._follow(chosen)
        groups: list[tuple[objects.Kind, list[Obj]]] = []
        failure: FusevolError | None = None
        for selection in chosen:
            kind = objects.find_kind(selection.word)
            found, failed = self._find(kind, selection.names)
            failure = failure or failed
            if groups and groups[-1][0] == kind:
                groups[-1][1].extend(found)
            else:
                groups.append((kind, found))
        if self._sort is not None:
            groups = [(kind, sorting.order(found, self._sort)) for kind, found in groups]
        everything = [o for _, found in groups for o in found]
        if self._output in {"yaml", "json", "jsonpath"}:
            single = sum(len(s.names) for s in chosen) == 1 and len(everything) == 1
            if self._output == "jsonpath":
                whole = everything[0] if single else {"apiVersion": "v1", "kind": "List", "items": everything}
                print(templates.render(self._template, whole), end="")
            elif everything or not failure:
                print(objects.dump(everything[0] if single else everything, self._output).rstrip("\n"))
        elif self._output == "custom-columns":
            rows = [[column.cell(obj) for column in self._columns] for obj in everything]
            print(output.table([column.header for column in self._columns], rows))
        elif self._output == "name":
            for kind, found in groups:
                for obj in found:
                    print(shown(kind, obj["metadata"]["name"]))
        else:
            self._tables([(k, f) for k, f in groups if f])
        if failure:
            raise failure
        if not everything and self._output not in {"yaml", "json", "jsonpath"}:
            namespaced = any(objects.find_kind(s.word).namespaced for s in chosen)
            where = f" in {self._namespace} namespace" if namespaced and self._namespace else ""
            output.note(f"No resources found{where}.")
        return EXIT_OK

    def _find(self, kind: objects.Kind, names: Sequence[str]) -> tuple[list[Obj], FusevolError | None]:
        if not names:
            return list_objects(self._client, kind, self._namespace, self._selector), None
        if self._all and kind.namespaced:
            raise UsageError("A name cannot be looked up in all namespaces: give -n NS instead of -A.")
        found: list[Obj] = []
        failure: FusevolError | None = None
        for name in names:
            try:
                found.append(get_object(self._client, kind, self._namespace, name))
            except NotFoundError as e:
                failure = failure or e
        return found, failure

    def _tables(self, groups: Sequence[tuple[objects.Kind, list[Obj]]]) -> None:
        usage = usage_of(self._client, [kind for kind, _ in groups])
        blocks = []
        for kind, found in groups:
            headers, rows = self._rows(kind, found, usage, prefix=len(groups) > 1)
            blocks.append(output.table(headers, rows))
        if blocks:
            print("\n\n".join(blocks))

    def _rows(
        self, kind: objects.Kind, found: list[Obj], usage: Mapping[str, int], *, prefix: bool = False
    ) -> tuple[list[str], list[list[str]]]:
        now = dt.datetime.now(dt.UTC)
        headers, rows = objects.table(kind, found, now=now, wide=self._output == "wide", usage=usage)
        cells = [list(row) for row in rows]
        if prefix:
            for row, obj in zip(cells, found, strict=True):
                row[0] = shown(kind, obj["metadata"]["name"])
        if self._all and kind.namespaced:
            cells = [[o["metadata"].get("namespace", ""), *row] for o, row in zip(found, cells, strict=True)]
            return ["NAMESPACE", *headers], cells
        return list(headers), cells

    def _follow(self, chosen: Sequence[Selection]) -> int:
        if len(chosen) != 1:
            raise UsageError("A watch follows one kind: leave out the others.")
        kind, names = objects.find_kind(chosen[0].word), chosen[0].names
        answer = self._client.request("GET", collection_path(kind, self._namespace, labelSelector=self._selector))
        version = answer.get("metadata", {}).get("resourceVersion", "0")
        wanted = [o for o in answer["items"] if not names or o["metadata"]["name"] in names]
        widths: list[int] = []
        self._event(kind, wanted, widths, first=True)
        path = collection_path(
            kind, self._namespace, watch="1", resourceVersion=str(version), labelSelector=self._selector
        )
        for event in self._client.watch(path):
            obj = event.get("object", {})
            if event.get("type") == "ERROR":
                raise by_reason(str(obj.get("reason", "")))(str(obj.get("message", "The watch ended.")))
            if obj.get("kind", kind.name) == kind.name and (not names or obj["metadata"]["name"] in names):
                self._event(kind, [obj], widths, first=False)
        return EXIT_OK

    def _event(self, kind: objects.Kind, found: list[Obj], widths: list[int], *, first: bool) -> None:
        if self._output == "name":
            text = "\n".join(shown(kind, o["metadata"]["name"]) for o in found)
        elif self._output in {"yaml", "json"}:
            separator = "" if first or self._output == "json" else "---\n"
            text = separator + "\n".join(objects.dump(o, self._output).rstrip("\n") for o in found)
        else:
            headers, rows = self._rows(kind, found, usage_of(self._client, [kind]))
            text = output.table(headers if not widths else [], rows, widths)
        if text:
            print(text, flush=True)


def usage_of(client: Client, kinds: Iterable[objects.Kind]) -> dict[str, int]:
    """Used bytes by the uid of a claim or a volume, if tables of *kinds* show any."""
    if not any(kind.name in _SHOWING_USE for kind in kinds):
        return {}
    used: dict[str, int] = client.request("GET", path_of("usage"))
    return used
