"""Pools: provisioning, adoption, records and damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fusevol.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptError,
    FusevolError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from fusevol.pool import Pool, Volume, VolumeRequest
from fusevol.quota.ledger import Ledger
from tests.pools.conftest import OpenPool

_ROOT = Path(__file__).parents[2]


def request(volume: str = "v1", capacity: int | None = 1 << 20, **fields: Any) -> VolumeRequest:
    """A request of 1 MiB."""
    return VolumeRequest(id=volume, capacity_bytes=capacity, **fields)


def tree(path: Path) -> dict[str, tuple[int, bytes]]:
    """All that is below *path*: modes and contents."""
    return {
        str(p.relative_to(path)): (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"")
        for p in sorted(path.rglob("*"))
    }


def test_provision(pool: Pool) -> None:
    """A volume has the directory, mode, limits, owner and labels that were asked for, and can be read back."""
    umask = os.umask(0o077)
    try:
        made = pool.provision(request(inode_limit=9, owner={"claim": "c"}, labels={"kind": "k"}, mode=0o1770))
    finally:
        os.umask(umask)
    assert (made.capacity_bytes, made.inode_limit, made.owner, made.labels) == (
        1 << 20,
        9,
        {"claim": "c"},
        {"kind": "k"},
    )
    assert (made.data.stat().st_mode & 0o7777, made.ledger.parent) == (0o1770, made.data.parent)

    assert pool.volume("v1") == made
    assert pool.volumes() == [made]
    assert pool.check() == []


@pytest.mark.parametrize(
    ("fields", "quota"),
    [
        ({}, "ledger"),
        ({"capacity": None, "inode_limit": 9}, "ledger"),
        ({"capacity": None}, "none"),
        ({"enforced": False}, "none"),
    ],
)
def test_who_keeps_the_limits(pool: Pool, fields: dict[str, Any], quota: str) -> None:
    """The ledger, unless there is no limit or it was not wanted; the record says so, also after a resize."""
    made = pool.provision(request(**fields))
    record = json.loads((made.data.parent / "volume.json").read_text())

    assert (made.quota, record["quota"], pool.volume("v1").quota) == (quota, quota, quota)
    assert pool.resize("v1", 2 << 20, None).quota == quota
    assert pool.check() == []


def test_provision_again(pool: Pool) -> None:
    """The same request again is the same volume with its data."""
    made = pool.provision(request())
    (made.data / "kept").touch()
    again = pool.provision(request())

    assert (again, (again.data / "kept").exists()) == (made, True)


@pytest.mark.parametrize("other", [request(capacity=2 << 20), request(capacity=None), request(inode_limit=5)])
def test_provision_other_size(pool: Pool, other: VolumeRequest) -> None:
    """The same id with another size is refused with both sizes, and changes nothing."""
    made = pool.provision(request())

    with pytest.raises(AlreadyExistsError, match=r"^Volume v1 exists .* 1048576 bytes, not .*\.$"):
        pool.provision(other)
    assert pool.volumes() == [made]


def test_provision_concurrently(pool: Pool) -> None:
    """16 threads that ask for the same volume get the same one, whole, and nothing is left over."""
    start = threading.Barrier(16)
    made: list[Volume] = []

    def ask() -> None:
        start.wait()
        made.append(pool.provision(request()))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert made == [pool.volume("v1")] * 16
    assert list((pool.path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "volume",
    [
        "",
        ".",
        "..",
        "a..b",
        "a/b",
        "../x",
        "/x",
        "A",
        "-a",
        ".a",
        "a_b",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "a" * 129,
        "a\u0660",
    ],
)
def test_volume_ids(pool: Pool, volume: str) -> None:
    """What is no volume id is refused everywhere before the disk is touched."""
    before = tree(pool.path)
    for call in (
        lambda: pool.provision(request(volume)),
        lambda: pool.volume(volume),
        lambda: pool.trash(volume),
        lambda: pool.resize(volume, 1, None),
    ):
        with pytest.raises(InvalidError, match="is no volume id: use "):
            call()

    assert tree(pool.path) == before


@pytest.mark.parametrize("volume", ["a", "0", "a.b", "a" * 128, "pvc-1.data-", "3f2c.tmp"])
def test_good_volume_ids(pool: Pool, volume: str) -> None:
    """Every id that the rule allows can be made, deleted and purged."""
    pool.provision(request(volume))
    pool.purge(pool.trash(volume))

    assert (pool.volumes(), pool.trashed()) == ([], [])


@pytest.mark.parametrize("fields", [{"capacity": 0}, {"capacity": -1}, {"inode_limit": 0}, {"mode": 0o10000}])
def test_impossible_requests(pool: Pool, fields: dict[str, int]) -> None:
    """Sizes and modes that cannot be are refused, nothing is made."""
    with pytest.raises(InvalidError, match=r"^Volume v1 cannot have the .*\.$"):
        pool.provision(request(**fields))

    assert pool.volumes() == []


def test_resize(pool: Pool) -> None:
    """New limits are in the record, and the rest of it is as it was."""
    made = pool.provision(request(owner={"claim": "c"}))
    pool.resize("v1", 5 << 20, 77)

    assert pool.volume("v1") == made.with_limits(5 << 20, 77)


def test_unknown_volume(pool: Pool) -> None:
    """A volume that does not exist is not found, by whatever call."""
    for call in (lambda: pool.volume("no"), lambda: pool.trash("no"), lambda: pool.resize("no", 1, 1)):
        with pytest.raises(NotFoundError, match="There is no volume no in pool p"):
            call()

    assert pool.volumes() == []


def test_capacity(pool: Pool) -> None:
    """Capacity shows the filesystem and what was promised, which may be more."""
    st = os.statvfs(pool.path)
    total = st.f_blocks * st.f_frsize
    pool.provision(request("a", total))
    pool.provision(request("b", total))
    pool.provision(request("c", None))
    capacity = pool.capacity()

    assert (capacity.total, capacity.provisioned, capacity.volumes) == (total, 2 * total, 3)
    assert 0 < capacity.available < total


def test_adoption(open_pool: OpenPool, workdir: Path) -> None:
    """A pool that was moved is opened with all its volumes, trash and its own description, under another name too."""
    first = open_pool(workdir / "one")
    made = [first.provision(request(f"v{i}", owner={"n": str(i)})) for i in range(3)]
    (made[0].data / "file").write_text("data")
    first.trash("v2")
    description = (workdir / "one" / "pool.json").read_text()
    first.close()
    (workdir / "one").rename(workdir / "two")
    second = open_pool(workdir / "two", create=False)

    assert [(v.id, v.owner) for v in second.volumes()] == [("v0", {"n": "0"}), ("v1", {"n": "1"})]
    assert (second.volume("v0").data / "file").read_text() == "data"
    assert [e.name for e in second.trashed()] == ["v2.1"]
    assert (workdir / "two" / "pool.json").read_text() == description


def test_held(pool: Pool) -> None:
    """While one agent has the pool another is refused, with the holder's process id; afterwards it is not."""
    script = (
        "import sys; from pathlib import Path; from fusevol.pool import Pool; from fusevol.errors import FusevolError\n"
        "try: Pool.open(Path(sys.argv[1]), 'p')\n"
        "except FusevolError as e: sys.exit(type(e).__name__ + ': ' + e.message)"
    )

    def other() -> tuple[int, str]:
        command = [sys.executable, "-c", script, str(pool.path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=_ROOT, timeout=30)
        return done.returncode, done.stderr

    held = other()
    pool.close()
    free = other()

    expected = f"ConflictError: The pool {pool.path} is held by another agent (process {os.getpid()}): "
    assert held == (1, f"{expected}stop that one, or use another pool.\n")
    assert free == (0, "")


def test_closed(pool: Pool) -> None:
    """A closed pool makes nothing any more, it may be somebody else's."""
    pool.close()

    with pytest.raises(UnavailableError, match="was closed"):
        pool.provision(request())


@pytest.mark.parametrize("left", [[], ["lost+found"], ["lock"], ["lock", "volumes", "trash", "tmp", ".pool.json.tmp"]])
def test_creation(open_pool: OpenPool, workdir: Path, left: list[str]) -> None:
    """A pool is made in an empty directory, a fresh filesystem, or where a creation was interrupted."""
    path = workdir / "pool"
    path.mkdir()
    for name in left:
        if name in {"lock", ".pool.json.tmp"}:
            (path / name).touch()
        else:
            (path / name).mkdir()
    pool = open_pool(path)

    assert pool.provision(request()).data.is_dir()


def refused(path: Path, error: type[FusevolError], says: str, *, create: bool = True) -> None:
    """Opening is refused with one sentence."""
    with pytest.raises(error, match=says) as caught:
        Pool.open(path, "p", create=create)
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize("content", ["file", "volumes/x/file", ".hidden", "tmp"])
def test_foreign_directory(workdir: Path, content: str) -> None:
    """A directory that has something else in it is no pool, and nothing in it is touched."""
    file = workdir / "home" / content
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = tree(workdir)
    refused(workdir / "home", InvalidError, "is no pool and not empty")

    assert tree(workdir) == before


def test_refused_places(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root, relative paths, files, links to such and places that do not exist are refused with the reason."""
    monkeypatch.chdir(workdir)
    (workdir / "file").touch()
    (workdir / "root").symlink_to("/")
    (workdir / "loop").symlink_to("loop")
    (workdir / "empty").mkdir()
    before = tree(workdir)
    refused(Path("pool"), InvalidError, "is relative")
    refused(Path("/"), InvalidError, "cannot be a pool")
    refused(workdir / "root", InvalidError, "cannot be a pool")
    refused(workdir / "loop", InvalidError, "cannot be resolved")
    refused(workdir / "file", InvalidError, "is not a directory")
    refused(workdir / "file" / "below", FusevolError, "directory")
    refused(workdir / "missing", NotFoundError, "There is no pool", create=False)
    refused(workdir / "empty", NotFoundError, "There is no pool", create=False)

    assert tree(workdir) == before


@pytest.mark.parametrize("name", ["", "A", "a_b", "../x", "-a", "a" * 64])
def test_pool_names(workdir: Path, name: str) -> None:
    """What cannot name a pool is refused before anything is made."""
    with pytest.raises(InvalidError, match="is no name for a pool"):
        Pool.open(workdir / "pool", name, create=True)

    assert not (workdir / "pool").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 9, "driver": "plain"}', '{"version": 1, "driver": "zfs"}']
)
def test_damaged_description(pool: Pool, text: str) -> None:
    """A pool.json that cannot be understood keeps the pool closed, and stays as it is."""
    file = pool.path / "pool.json"
    pool.close()
    file.write_text(text)
    refused(pool.path, CorruptError, r"pool\.json")

    assert file.read_text() == text


_GOOD = {
    "version": 1, "id": "v1", "capacity_bytes": 1, "inode_limit": None, "owner": {}, "labels": {}, "created": "x",
    "quota": "ledger",
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", '{"id": ', "[]", "null", "\x00" * 300, "[" * 100_000]
    + [json.dumps({k: v for k, v in _GOOD.items() if k != missing}) for missing in _GOOD]
    + [
        json.dumps(_GOOD | change)
        for change in ({"version": 2}, {"id": "v2"}, {"capacity_bytes": "1Gi"}, {"capacity_bytes": -1}, {"owner": []},
                       {"labels": {"a": 1}}, {"inode_limit": True}, {"quota": "hope"})
    ],
)  # fmt: skip
def test_damaged_record(pool: Pool, text: str) -> None:
    """A damaged volume.json hides no other volume, is named with a remedy, found by check, kept, and deletable."""
    damaged = pool.provision(request())
    good = pool.provision(request("v2"))
    record = damaged.data.parent / "volume.json"
    record.write_text(text)
    before = tree(pool.path)
    for call in (lambda: pool.volume("v1"), lambda: pool.provision(request()), lambda: pool.resize("v1", 1, None)):
        with pytest.raises(CorruptError, match=r"volume\.json .*: put it back from a backup, or"):
            call()
    (finding,) = pool.check()
    assert (finding.severity, finding.subject) == ("error", "volumes/v1/volume.json")
    assert str(record) in finding.message
    assert pool.volumes() == [good]
    assert tree(pool.path) == before

    pool.purge(pool.trash("v1"))
    assert pool.check() == []


def test_other_damage(pool: Pool) -> None:
    """Check tells of every thing that is wrong and changes nothing."""
    for name in ("lost", "miscounted", "torn", "used", "fine"):
        made = pool.provision(request(name))
        ledger = Ledger.open(made.ledger, made.data, limit_bytes=None, limit_inodes=None)
        if name != "used":
            ledger.close()
    (pool.volume("lost").data).rmdir()
    (pool.volume("miscounted").data / "behind its back").write_bytes(b"x" * 9999)
    (pool.volume("used").data / "being written").write_bytes(b"x" * 9999)
    pool.volume("torn").ledger.write_text("{")
    (pool.path / "volumes" / "README.md").touch()
    (pool.path / "trash" / "junk").touch()
    (pool.path / "tmp" / "half").mkdir()
    before = tree(pool.path)
    findings = {f.subject: f.severity for f in pool.check()}

    assert findings == {
        "volumes/README.md": "warning",
        "volumes/lost/data": "error",
        "volumes/miscounted/ledger.json": "error",
        "volumes/torn/ledger.json": "warning",
        "trash/junk": "warning",
        "tmp/half": "warning",
    }
    assert tree(pool.path) == before


def test_sweep_spares_the_living(open_pool: OpenPool, workdir: Path) -> None:
    """A sweep removes what the dead left and not what another thread is building at that moment."""
    reached, go = threading.Event(), threading.Event()

    def step(name: str) -> None:
        if name == "provision: data made":
            reached.set()
            assert go.wait(20)

    pool = open_pool(workdir / "pool", step=step)
    (pool.path / "tmp" / "dead" / "data").mkdir(parents=True)
    thread = threading.Thread(target=pool.provision, args=(request(),))
    thread.start()
    try:
        assert reached.wait(20)
        swept, found = pool.sweep(), pool.check()
    finally:
        go.set()
        thread.join()

    assert (swept, found) == (["tmp/dead"], [])
    assert pool.volume("v1").data.is_dir()


def test_conflict_is_a_conflict(open_pool: OpenPool, pool: Pool) -> None:
    """A pool cannot be opened twice in one process either."""
    with pytest.raises(ConflictError, match="held by another agent"):
        open_pool(pool.path)
