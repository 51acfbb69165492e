"""The object store: versions, deletion, watches, events, and what survives."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.events import KEPT, Recorder
from agent.store import Key, Store, select
from agent.volumes.attachments import Attachment, Attachments, mount_id
from agent.watch import Change, GoneError, History
from fusevol.errors import AlreadyExistsError, ConflictError, CorruptError, NotFoundError

Obj = dict[str, Any]
KEY = Key("PersistentVolumeClaim", "default", "data")


def claim(name: str = "data", **metadata: Any) -> Obj:
    """A claim as it enters the store."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": {},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "agent.db"


async def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    """Objects, versions and notes survive; versions go on rising."""
    store = Store.open(path)
    first = await store.create(claim())
    await store.remember("x", "1")
    store.close()
    again = Store.open(path)
    second = await again.create(claim("other"))
    note = again.note("x")
    found = again.get(KEY)
    again.close()

    assert (found, note) == (first, "1")
    assert int(second["metadata"]["resourceVersion"]) == int(first["metadata"]["resourceVersion"]) + 1


async def test_of_two_writers_with_one_version_the_second_is_told(path: Path) -> None:
    """Optimistic concurrency: a stale update is a conflict and changes nothing."""
    store = Store.open(path)
    old = await store.create(claim())
    await store.update({**old, "spec": {"a": 1}})
    with pytest.raises(ConflictError):
        await store.update({**old, "spec": {"a": 2}})
    found = store.get(KEY)
    store.close()

    assert found["spec"] == {"a": 1}


async def test_an_update_that_changes_nothing_is_no_write(path: Path) -> None:
    """The version stays, and nobody is woken."""
    store = Store.open(path)
    old = await store.create(claim())
    same = await store.update(old)
    store.close()

    assert same["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]


async def test_names_are_taken_once(path: Path) -> None:
    """A second object of the name is refused in kubectl's words."""
    store = Store.open(path)
    await store.create(claim())
    with pytest.raises(AlreadyExistsError, match='persistentvolumeclaims "data" already exists'):
        await store.create(claim())
    store.close()


async def test_an_object_with_finalizers_waits_for_them(path: Path) -> None:
    """Deletion marks it; the last finalizer's end removes it; watchers see both."""
    store = Store.open(path)
    start = store.version
    await store.create(claim(finalizers=["a"]))
    marked = await store.delete(KEY)
    assert marked["metadata"]["deletionTimestamp"]
    await store.change(KEY, lambda o: o["metadata"].update(finalizers=[]))
    seen = [c.type for c in store.history.after(start)]
    gone = store.find(KEY)
    store.close()

    assert (seen, gone) == (["ADDED", "MODIFIED", "DELETED"], None)


async def test_an_object_without_finalizers_goes_at_once(path: Path) -> None:
    """And a second deletion finds nothing."""
    store = Store.open(path)
    await store.create(claim())
    await store.delete(KEY)
    with pytest.raises(NotFoundError, match='persistentvolumeclaims "data" not found'):
        await store.delete(KEY)
    store.close()


async def test_a_deletion_mark_cannot_be_taken_back(path: Path) -> None:
    """An update keeps uid, creation and deletion times whatever it says itself."""
    store = Store.open(path)
    await store.create(claim(finalizers=["a"]))
    marked = await store.delete(KEY)
    bare = {**marked, "metadata": {"name": "data", "namespace": "default", "finalizers": ["a"]}, "spec": {"x": 1}}
    after = await store.update(bare)
    store.close()

    assert {k: after["metadata"][k] for k in ("uid", "creationTimestamp", "deletionTimestamp")} == {
        k: marked["metadata"][k] for k in ("uid", "creationTimestamp", "deletionTimestamp")
    }


async def test_a_watch_misses_nothing(path: Path, nursery: trio.Nursery) -> None:
    """What came before the watch began and what comes later arrives once, in order."""
    store = Store.open(path)
    start = store.version
    await store.create(claim("a"))
    seen: list[str] = []
    done = trio.Event()

    async def follow() -> None:
        async for change in store.watch(start):
            seen.append(change.object["metadata"]["name"])
            if len(seen) == 3:
                done.set()

    nursery.start_soon(follow)
    await store.create(claim("b"))
    await store.create(claim("c"))
    with trio.fail_after(5):
        await done.wait()
    nursery.cancel_scope.cancel()
    store.close()

    assert seen == ["a", "b", "c"]


def test_a_watch_from_too_long_ago_is_told_to_list_again() -> None:
    """The history is bounded; a gap is never silent."""
    history = History(1, size=2)
    for version in (2, 3, 4):
        history.add(Change(version, "ADDED", {}))
    assert [c.version for c in history.after(2)] == [3, 4]

    with pytest.raises(GoneError) as caught:
        history.after(1)
    assert caught.value.http_status == 410


async def test_a_cancelled_write_is_done_or_not_begun(path: Path) -> None:
    """Memory and disk agree after a cancellation in the middle."""
    store = Store.open(path)
    with trio.move_on_after(0):
        await store.create(claim())
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.create(claim("b"))
    in_memory = [o["metadata"]["name"] for o in store.list("PersistentVolumeClaim")]
    store.close()
    again = Store.open(path)
    on_disk = [o["metadata"]["name"] for o in again.list("PersistentVolumeClaim")]
    again.close()

    assert in_memory == on_disk


async def test_many_writers_lose_no_change(path: Path) -> None:
    """Concurrent changes of one object are all applied."""
    store = Store.open(path)
    await store.create({**claim(), "spec": {"n": 0}})

    def increment(obj: Obj) -> None:
        obj["spec"]["n"] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(store.change, KEY, increment)
    found = store.get(KEY)["spec"]["n"]
    store.close()

    assert found == 8


def test_a_damaged_file_is_a_sentence(path: Path) -> None:
    """Corruption is named with the file, and nothing is overwritten."""
    path.write_bytes(b"this is not a database, but long enough to be taken for one" * 20)
    before = path.read_bytes()
    with pytest.raises(CorruptError, match="cannot be used"):
        Store.open(path)

    assert path.read_bytes() == before


def test_a_newer_format_is_refused(path: Path) -> None:
    """A state written by a later version is not touched."""
    Store.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()

    with pytest.raises(CorruptError, match="newer fusevol"):
        Store.open(path)


async def test_repeated_events_are_counted_and_the_table_is_bounded(path: Path) -> None:
    """The same event again raises its count; the oldest of too many are forgotten; all of it survives."""
    store = Store.open(path)
    events = Recorder(store.database)
    regarding = {**claim(uid="u"), "kind": "PersistentVolumeClaim"}
    for number in range(KEPT + 5):
        await events.normal(regarding, "R", f"m{number}")
    for _ in range(3):
        await events.warning(regarding, "R", "again")
    store.close()
    reopened = Store.open(path)
    found = Recorder(reopened.database).list("u")
    reopened.close()

    assert (len(found), found[-1]["message"], found[-1]["count"]) == (KEPT, "again", 3)


async def test_attachments_survive(path: Path) -> None:
    """What is mounted where is on disk before the mount is made."""
    store = Store.open(path)
    row = Attachment(target="/t", kind="emptyDir", pool="default", volume="v", owned=True)
    await Attachments(store.database).put(row)
    store.close()
    reopened = Store.open(path)
    found = list(Attachments(reopened.database))
    reopened.close()

    assert found == [row]


def test_mount_ids_are_short_and_distinct() -> None:
    """They become part of a unix socket's path, whatever the volume is called."""
    long = "x" * 128
    ids = {mount_id("default", "v"), mount_id("p", "v"), mount_id("default", long), mount_id("default", long[1:])}

    assert len(ids) == 4
    assert max(map(len, ids)) <= 48


@pytest.mark.parametrize(
    ("selector", "count"), [("", 2), ("a=1", 1), ("a==1", 1), ("a!=1", 1), ("a", 1), ("!a", 1), ("a=1,b", 0)]
)
def test_label_selectors(selector: str, count: int) -> None:
    """The forms that kubectl knows."""
    found = [{"metadata": {"labels": {"a": "1"}}}, {"metadata": {}}]

    assert len(select(found, selector)) == count
