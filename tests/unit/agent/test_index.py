"""Indexes: what is found without a look at everything."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.index import Index
from agent.store import Key, Store
from agent.volumes.attachments import Attachment, Attachments


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.lists(st.sampled_from("abc")))))
def test_an_index_finds_what_a_look_at_everything_finds(changes: list[tuple[int, list[str] | None]]) -> None:
    """Whatever was put, replaced and dropped before."""
    index: Index[int, list[str], str] = Index(lambda value: value)
    values: dict[int, list[str]] = {}
    for key, value in changes:
        if value is None:
            index.drop(key)
            values.pop(key, None)
        else:
            index.put(key, value)
            values[key] = value

    for word in "abcd":
        assert sorted(index.of(word)) == sorted(v for v in values.values() if word in v)
        assert (word in index.words) == any(word in v for v in values.values())


async def test_the_store_keeps_its_indexes(tmp_path: Path) -> None:
    """An index knows what was there before it, and every write after; so do the names of a kind."""

    def pod(name: str, node: str) -> dict[str, object]:
        return {"kind": "Pod", "metadata": {"name": name, "namespace": "ns"}, "spec": {"nodeName": node}}

    store = Store.open(tmp_path / "agent.db")
    await store.create(pod("a", "x"))
    index = store.index("Pod", lambda obj: [obj["spec"]["nodeName"]])
    await store.create(pod("b", "x"))
    await store.create({"kind": "StorageClass", "metadata": {"name": "fast"}, "spec": {"nodeName": "x"}})
    first = [obj["metadata"]["name"] for obj in index.of("x")]
    await store.change(Key("Pod", "ns", "a"), lambda obj: obj["spec"].update(nodeName="y"))
    await store.delete(Key("Pod", "ns", "b"))
    names = list(store.named("Pod")), list(store.named("StorageClass"))
    store.close()

    assert first == ["a", "b"]
    assert (index.of("x"), [obj["metadata"]["name"] for obj in index.of("y")]) == ([], ["a"])
    assert names == ([("ns", "a")], ["fast"])


async def test_attachments_are_found_by_volume_pod_and_claim(tmp_path: Path) -> None:
    """Also those that an earlier agent made, and no longer when they are gone."""
    store = Store.open(tmp_path / "agent.db")
    before = Attachments(store.database)
    whole = Attachment(target="/z", kind="persistent", pool="p", volume="v", claim_uid="c", pod="u")
    part = Attachment(target="/a", kind="persistent", pool="p", volume="v", sub_path="s", pod="u")
    for row in (part, whole):
        await before.put(row)
    rows = Attachments(store.database)
    found = rows.of_mount("p_v"), rows.of_pod("u"), rows.of_claim("c"), "c" in rows.claims
    await rows.remove("/z")
    left = rows.of_mount("p_v"), rows.of_pod("u"), rows.of_claim("c"), "c" in rows.claims
    store.close()

    assert found == ([whole, part], [part, whole], [whole], True)
    assert left == ([part], [part], [], False)
