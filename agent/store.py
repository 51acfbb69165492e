"""The objects on disk: SQLite, one row of JSON per object, with Kubernetes' rules for versions and deletion.

Reads come from memory: all objects together are small (a few KiB each), and controllers look at all of them often.
Writes are committed to disk first (WAL, ``synchronous=FULL``: a claim that was acknowledged survives a power cut) in a
worker thread, one at a time, and appear in memory and to watchers only then. A cancelled task either has not begun
its write or sees it through, so memory and disk never differ.

An object that was handed out is shared and must not be changed: copy it (:func:`copy.deepcopy`), or use
:meth:`Store.change`.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import trio

from agent.index import Index
from agent.watch import Change, History
from fusevol import objects
from fusevol.errors import AlreadyExistsError, ConflictError, CorruptError, NotFoundError

Obj = dict[str, Any]
Key = objects.Key
W = TypeVar("W")

_ATTEMPTS = 10
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
  kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (kind, namespace, name)
);
CREATE TABLE IF NOT EXISTS events (
  id TEXT PRIMARY KEY, regarding TEXT NOT NULL, seen REAL NOT NULL, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS attachments (target TEXT PRIMARY KEY, body TEXT NOT NULL);
"""
SCHEMA_VERSION = 1


def now() -> str:
    """The time as Kubernetes writes it: UTC, whole seconds."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def version_of(obj: Mapping[str, Any]) -> int:
    """The resource version of an object; 0 when it has none."""
    text = str(obj["metadata"].get("resourceVersion") or "0")
    return int(text) if text.isdigit() else 0


class Database:
    """The SQLite file. Statements run in a worker thread, one at a time. Raises :class:`CorruptError` on damage."""

    def __init__(self, path: Path) -> None:
        """Open *path*, creating it (mode 0600) and its tables when missing."""
        self.path = path
        path.touch(mode=0o600)
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # before anything is written: a damaged file is left as it is, and found now, not by some later write
            (state,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise self._corrupt(state)
            self._connection.execute("PRAGMA journal_mode=WAL")
            found = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if found > SCHEMA_VERSION:
                raise CorruptError(
                    f"{path} was written by a newer fusevol (format {found}): install that version again."
                )
            self._connection.executescript(_SCHEMA)
            if found != SCHEMA_VERSION:
                self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.Error as e:
            raise self._corrupt(e) from e
        self._lock = trio.Lock()

    def read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a query. For start-up, before anything runs beside it."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as e:
            raise self._corrupt(e) from e

    async def write(self, *statements: tuple[str, tuple[object, ...]], durable: bool = True) -> None:
        """Commit *statements* as one transaction; when this returns they are on the disk.

        With *durable* false they survive the agent's death, but maybe not that of the machine.
        """

        def commit() -> None:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for text, values in statements:
                    self._connection.execute(text, values)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

        async with self._lock:
            try:
                await trio.to_thread.run_sync(commit)
            except sqlite3.Error as e:
                raise self._corrupt(e) from e

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _corrupt(self, why: object) -> CorruptError:
        what = " ".join(str(why).split())
        return CorruptError(
            f"The object store {self.path} cannot be used ({what}): check the disk, or restore the file."
        )


class Store:
    """The objects. All methods are for the trio loop."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._objects: dict[Key, Obj] = {}
        self._kinds: dict[str, dict[Any, Obj]] = {kind.name: {} for kind in objects.KINDS}
        self._indexes: list[tuple[str, Index[Key, Obj, Any]]] = []
        for kind, namespace, name, body in database.read(
            "SELECT kind, namespace, name, body FROM objects ORDER BY rowid"
        ):
            try:
                self._hold(Key(kind, namespace, name), json.loads(body))
            except ValueError as e:
                raise CorruptError(
                    f"{kind} {namespace}/{name} in {database.path} is not JSON ({e}): restore the file from a copy."
                ) from e
        rows = database.read("SELECT value FROM meta WHERE name = 'version'")
        self.history = History(int(rows[0][0]) if rows else 1)
        self._write = trio.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """The store in the file *path*, created when missing. Raises :class:`CorruptError`."""
        return cls(Database(path))

    def __repr__(self) -> str:
        return f"<Store {self.database.path} objects={len(self._objects)} version={self.version}>"

    @property
    def version(self) -> int:
        """Version of the newest write; a list is as new as this."""
        return self.history.version

    def find(self, key: Key) -> Obj | None:
        """An object, None if there is none."""
        return self._objects.get(key)

    def get(self, key: Key) -> Obj:
        """An object. Raises :class:`NotFoundError`."""
        found = self._objects.get(key)
        if found is None:
            raise not_found(key)
        return found

    def list(self, kind: str, namespace: str | None = None) -> list[Obj]:
        """All objects of *kind*, of one namespace or of all, ordered by namespace and name."""
        named = self._kinds.get(kind, {})
        return [named[n] for n in sorted(named) if namespace is None or n[0] == namespace]

    def named(self, kind: str) -> Mapping[Any, Obj]:
        """All objects of *kind* by name, or by namespace and name, the oldest first; as of now, for whoever does not
        wait meanwhile."""
        return self._kinds.get(kind, {})

    def index(self, kind: str, words: Callable[[Obj], Iterable[W]]) -> Index[Key, Obj, W]:
        """The objects of *kind* by the words that *words* finds in each; kept up with every write."""
        made: Index[Key, Obj, W] = Index(words)
        for obj in self._kinds.get(kind, {}).values():
            made.put(objects.key(obj), obj)
        self._indexes.append((kind, made))
        return made

    def _hold(self, key: Key, obj: Obj) -> None:
        self._objects[key] = obj
        self._kinds.setdefault(key.kind, {})[_name(key)] = obj
        for kind, index in self._indexes:
            if kind == key.kind:
                index.put(key, obj)

    def _let_go(self, key: Key) -> None:
        self._objects.pop(key, None)
        self._kinds.get(key.kind, {}).pop(_name(key), None)
        for kind, index in self._indexes:
            if kind == key.kind:
                index.drop(key)

    def watch(self, version: int) -> AsyncIterator[Change]:
        """All changes after *version*. Raises :class:`agent.watch.GoneError` when that is too long ago."""
        return self.history.follow(version)

    async def create(self, obj: Obj) -> Obj:
        """Add an admitted object, with uid, creationTimestamp and version. Raises :class:`AlreadyExistsError`."""
        key = objects.key(obj)
        async with self._write:
            if key in self._objects:
                raise AlreadyExistsError(f'{plural_of(key)} "{key.name}" already exists')
            new = copy.deepcopy(obj)
            metadata = new["metadata"]
            metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now())
            for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
                metadata.pop(field, None)
            return await self._commit(key, "ADDED", new)

    async def update(self, obj: Obj) -> Obj:
        """Replace an object, which must be of the version that is stored (or carry none).

        Raises :class:`ConflictError` when somebody else changed it meanwhile. Nothing is written when nothing
        changes. An object that is being deleted disappears with its last finalizer.
        """
        key = objects.key(obj)
        async with self._write:
            old = self.get(key)
            given = obj["metadata"]
            if given.get("uid") not in {None, old["metadata"]["uid"]} or (
                given.get("resourceVersion") and version_of(obj) != version_of(old)
            ):
                raise ConflictError(
                    f'Operation cannot be fulfilled on {plural_of(key)} "{key.name}": the object has been modified; '
                    "please apply your changes to the latest version and try again"
                )
            new = copy.deepcopy(obj)
            for field in ("uid", "creationTimestamp", "resourceVersion", "deletionTimestamp"):
                _carry(old["metadata"], new["metadata"], field)
            if new == old:
                return old
            if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
                return await self._commit(key, "DELETED", new)
            return await self._commit(key, "MODIFIED", new)

    async def change(self, key: Key, modify: Callable[[Obj], object], *, uid: str | None = None) -> Obj:
        """Apply *modify* to a copy of the object and store it; tried again when somebody else was faster.

        Raises :class:`NotFoundError`, also when *uid* is given and the object now has another one.
        """
        for _ in range(_ATTEMPTS):
            current = self.get(key)
            if uid is not None and current["metadata"]["uid"] != uid:
                raise not_found(key)
            new = copy.deepcopy(current)
            modify(new)
            try:
                return await self.update(new)
            except ConflictError:
                continue
        raise ConflictError(f'{plural_of(key)} "{key.name}" is being changed all the time: try again.')

    async def delete(self, key: Key, *, uid: str | None = None) -> Obj:
        """Delete an object: at once without finalizers, else marked with a deletionTimestamp. The object as it is now.

        Raises :class:`NotFoundError`; :class:`ConflictError` when *uid* is not the object's.
        """
        async with self._write:
            old = self.get(key)
            if uid is not None and old["metadata"]["uid"] != uid:
                raise ConflictError(f'{plural_of(key)} "{key.name}" is another object by now: look at it again.')
            if old["metadata"].get("deletionTimestamp") and old["metadata"].get("finalizers"):
                return old
            new = copy.deepcopy(old)
            if not new["metadata"].get("finalizers"):
                return await self._commit(key, "DELETED", new)
            new["metadata"]["deletionTimestamp"] = now()
            return await self._commit(key, "MODIFIED", new)

    async def _commit(self, key: Key, change: str, obj: Obj) -> Obj:
        version = self.version + 1
        obj["metadata"]["resourceVersion"] = str(version)
        named = (key.kind, key.namespace, key.name)
        if change == "DELETED":
            statement: tuple[str, tuple[object, ...]] = (
                "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?",
                named,
            )
        else:
            # an update leaves the row where it is: the next agent finds the objects in the order of their creation
            statement = (
                "INSERT INTO objects VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
                (*named, json.dumps(obj)),
            )
        counter = ("INSERT OR REPLACE INTO meta VALUES ('version', ?)", (str(version),))
        await self.database.write(statement, counter)
        # no checkpoint from here on: what is on disk is in memory before anybody else runs
        if change == "DELETED":
            self._let_go(key)
        else:
            self._hold(key, obj)
        self.history.add(Change(version, change, obj))
        return obj

    def note(self, name: str) -> str | None:
        """A remembered value that is no object (see :meth:`remember`)."""
        rows = self.database.read("SELECT value FROM meta WHERE name = ?", f"note:{name}")
        return str(rows[0][0]) if rows else None

    async def remember(self, name: str, value: str) -> None:
        """Keep a value that is no object."""
        await self.database.write(("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note:{name}", value)))

    def close(self) -> None:
        """Close the file; the store must not be used after that."""
        self.database.close()


def _carry(old: Mapping[str, Any], new: dict[str, Any], field: str) -> None:
    if field in old:
        new[field] = old[field]
    else:
        new.pop(field, None)


def _name(key: Key) -> Any:
    """How a kind's objects are told apart: by name, or by namespace and name."""
    return (key.namespace, key.name) if key.namespace else key.name


def plural_of(key: Key) -> str:
    """The resource's name in messages: ``persistentvolumeclaims``."""
    return objects.find_kind(key.kind).plural


def not_found(key: Key) -> NotFoundError:
    """kubectl's sentence for an object that does not exist."""
    return NotFoundError(f'{plural_of(key)} "{key.name}" not found')


def select(found: Iterable[Obj], selector: str) -> list[Obj]:
    """The objects whose labels match a selector such as ``app=web,tier!=cache,debug``."""
    terms = [t.strip() for t in selector.split(",") if t.strip()]
    return [o for o in found if all(_matches(o["metadata"].get("labels") or {}, t) for t in terms)]


def _matches(labels: Mapping[str, str], term: str) -> bool:
    if "!=" in term:
        name, _, value = term.partition("!=")
        return labels.get(name.strip()) != value.strip()
    if "=" in term:
        name, _, value = term.replace("==", "=").partition("=")
        return labels.get(name.strip()) == value.strip()
    if term.startswith("!"):
        return term[1:].strip() not in labels
    return term in labels
