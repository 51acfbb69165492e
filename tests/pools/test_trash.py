"""The trash: deleted volumes come back, or go for ever without taking anything else along."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from pathlib import Path

import pytest

from fusevol.errors import AlreadyExistsError, ConflictError, NotFoundError
from fusevol.pool import Pool, TrashEntry, VolumeRequest
from fusevol.pool.removal import empty
from fusevol.pool.trash import RETENTION
from tests.pools.conftest import OpenPool


class StoppedError(Exception):
    """Raised by a test to interrupt a purge."""


def provision(pool: Pool, volume: str = "v1") -> Path:
    """A volume with a file in it; its data directory."""
    made = pool.provision(VolumeRequest(id=volume, capacity_bytes=1 << 20, owner={"claim": "c"}))
    (made.data / "file").write_text(volume)
    return made.data


def contents(path: Path) -> list[str]:
    """All that is below *path*."""
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_trash_and_restore(pool: Pool) -> None:
    """A deleted volume is out of sight, tells when, why and whose it was, and comes back as it was."""
    provision(pool)
    before = pool.volume("v1")
    entry = pool.trash("v1", "claim deleted")
    assert (entry.volume, entry.reason, entry.owner, entry.purging) == ("v1", "claim deleted", {"claim": "c"}, False)
    assert (pool.volumes(), pool.trashed()) == ([], [entry])
    restored = pool.restore(entry)

    assert (restored, pool.trashed(), (restored.data / "file").read_text()) == (before, [], "v1")
    assert contents(restored.data.parent) == ["data", "data/file", "volume.json"]


def test_same_id_again(pool: Pool) -> None:
    """One id can be deleted many times; only one of them can be restored while it is free."""
    entries = []
    for _ in range(3):
        provision(pool)
        entries.append(pool.trash("v1"))
    pool.restore(entries[1])
    with pytest.raises(AlreadyExistsError, match="Volume v1 exists again"):
        pool.restore(entries[2])

    assert [e.name for e in pool.trashed()] == ["v1.1", "v1.3"]


def test_gone_entries(pool: Pool) -> None:
    """What was purged cannot be restored, and purging it again is no error."""
    provision(pool)
    entry = pool.trash("v1")
    pool.purge(entry)
    pool.purge(entry)

    with pytest.raises(NotFoundError, match=r"There is no v1\.1 in the trash"):
        pool.restore(entry)


def test_interrupted_purge(pool: Pool) -> None:
    """A purge that was stopped is listed as begun, cannot be restored, and is completed by the next one."""
    data = provision(pool)
    for i in range(600):
        (data / f"d{i}").mkdir()
    entry = pool.trash("v1")

    def stop(removed: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        pool.purge(entry, stop)
    (begun,) = pool.trashed()
    assert (begun.purging, begun.owner) == (True, {"claim": "c"})
    assert 0 < len(contents(begun.path)) < 600
    with pytest.raises(ConflictError, match="cannot be restored any more"):
        pool.restore(entry)
    told: list[int] = []
    pool.purge(begun, told.append)

    assert (pool.trashed(), contents(pool.path / "trash")) == ([], [])
    assert told == sorted(told)


def test_purge_follows_no_link(pool: Pool, workdir: Path) -> None:
    """Symbolic links and hard links to the outside are removed, what they lead to stays."""
    outside = workdir / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    data = provision(pool)
    (data / "dir").symlink_to(outside)
    (data / "file link").symlink_to(outside / "precious")
    (data / "up").symlink_to("../../../..")
    (data / "below").mkdir()
    (data / "below" / "dir").symlink_to(outside)
    os.link(outside / "precious", data / "hard")
    pool.purge(pool.trash("v1"))

    assert contents(outside) == ["precious"]
    assert contents(pool.path / "trash") == []


def test_data_is_a_link(pool: Pool, workdir: Path) -> None:
    """A volume whose data directory was replaced by a link is purged without what the link leads to."""
    outside = workdir / "outside"
    provision(pool).parent.joinpath("data").rename(outside)
    (pool.path / "volumes" / "v1" / "data").symlink_to(outside)
    pool.purge(pool.trash("v1"))

    assert contents(outside) == ["file"]
    assert contents(pool.path / "trash") == []


def test_deep_and_wide(pool: Pool) -> None:
    """Trees deeper than any path may be, and unreadable or oddly named ones, are purged with few descriptors."""
    data = provision(pool)
    fd = os.open(data, os.O_RDONLY)
    for _ in range(1500):
        for name in ("sibling", "d" * 100):
            os.mkdir(name, dir_fd=fd)
        os.close(os.open("sibling/f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    (data / os.fsdecode(b"\xff\n")).mkdir(mode=0)
    os.mkfifo(data / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    most: list[int] = []
    pool.purge(pool.trash("v1"), lambda _: most.append(len(os.listdir("/proc/self/fd"))))

    assert contents(pool.path / "trash") == []
    assert max(most) <= before + 6
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
@pytest.mark.parametrize("where", ["data", "data/d/m"])
def test_mounted_volume(pool: Pool, where: str) -> None:
    """While something is mounted in a volume it is neither trashed nor purged, and the sentence names the place."""
    data = provision(pool)
    (data / "d" / "m").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(data.parent / where)], check=True)
    with pytest.raises(ConflictError, match=f"Something is mounted at {data.parent / where}: unmount it"):
        pool.trash("v1")
    assert [v.id for v in pool.volumes()] == ["v1"]
    subprocess.run(["umount", str(data.parent / where)], check=True)
    entry = pool.trash("v1")
    (entry.path / where).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(entry.path / where)], check=True)
    (entry.path / where / "mine").touch()
    with pytest.raises(ConflictError, match="Something is mounted at"):
        pool.purge(entry)
    kept = (entry.path / where / "mine").exists()
    subprocess.run(["umount", str(entry.path / where)], check=True)
    pool.purge(entry)

    assert kept
    assert pool.trashed() == []


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "bind", "bound file"])
def test_removal_stops_at_mounts(workdir: Path, kind: str) -> None:
    """Even if the mount table was not asked, deletion enters no mount, not even a bind mount of the same filesystem."""
    outside = workdir / "outside"
    point = workdir / "tree" / "a" / "b" / "point"
    outside.mkdir()
    (outside / "precious").touch()
    point.parent.mkdir(parents=True)
    if kind == "bound file":
        point.touch()
        subprocess.run(["mount", "--bind", str(outside / "precious"), str(point)], check=True)
    else:
        point.mkdir()
        how = ["-t", "tmpfs", "none"] if kind == "tmpfs" else ["--bind", str(outside)]
        subprocess.run(["mount", *how, str(point)], check=True)
        (point / "precious").touch()
    with pytest.raises(ConflictError, match="is a mount point, a mounted filesystem or on another device"):
        empty(workdir / "tree")

    assert (outside / "precious").exists()


def test_sweeps_a_stray_note(open_pool: OpenPool, pool: Pool) -> None:
    """A note left by a deletion that died before its rename is cleared away, the volume stays."""
    data = provision(pool)
    (data.parent / "trash.json").write_text("{}")
    (data.parent / ".volume.json.tmp").write_text("{")

    assert sorted(pool.sweep()) == ["volumes/v1/.volume.json.tmp", "volumes/v1/trash.json"]
    assert contents(data.parent) == ["data", "data/file", "volume.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": 5, "trashed": 1, "reason": 2}'])
def test_damaged_note(pool: Pool, text: str) -> None:
    """A damaged note takes away the reason, not the volume."""
    provision(pool)
    entry = pool.trash("v1")
    (entry.path / "trash.json").write_text(text)
    (found,) = pool.trashed()

    assert (found.volume, found.owner) == ("v1", {"claim": "c"})
    assert pool.restore(found).id == "v1"


def kept(pool: Pool, seconds: str = "3600") -> TrashEntry:
    """A volume that is to be kept, deleted."""
    pool.provision(VolumeRequest(id="v1", capacity_bytes=1 << 20, owner={"claim": "c"}, labels={RETENTION: seconds}))
    return pool.trash("v1")


def test_retention_is_what_the_record_says(pool: Pool) -> None:
    """An entry is kept from its deletion for as long as its volume's record says, or whoever deletes it."""
    entry = kept(pool)
    trashed = dt.datetime.fromisoformat(entry.trashed)
    pool.restore(entry)

    assert (entry.retention, entry.until - trashed) == (3600, dt.timedelta(hours=1))
    assert pool.trash("v1", retention=0).retention == 0


@pytest.mark.parametrize("note", [None, "{", '{"trashed": "x"}', '{"trashed": 1}', "[]"])
def test_retention_without_a_note(pool: Pool, note: str | None) -> None:
    """A note that is missing or damaged does not shorten the time: the record and the directory tell it."""
    entry = kept(pool)
    if note is None:
        (entry.path / "trash.json").unlink()
    else:
        (entry.path / "trash.json").write_text(note)
    (found,) = pool.trashed()
    late = found.until - entry.until

    assert (found.retention, found.owner) == (3600, {"claim": "c"})
    assert dt.timedelta(0) <= late < dt.timedelta(minutes=1)


@pytest.mark.parametrize("seconds", ["-1", "soon", "", "9" * 12, "٣"])
def test_retention_that_is_no_number(pool: Pool, seconds: str) -> None:
    """A record with nonsense keeps nothing."""
    assert kept(pool, seconds).retention == 0


def test_purge_of_one_that_was_restored_meanwhile(pool: Pool) -> None:
    """A purge that was decided on before the volume was restored does not take what is deleted anew under its name."""
    old = kept(pool)
    pool.restore(old)
    new = pool.trash("v1", retention=7200)
    assert new.name == old.name
    pool.purge(old)
    assert pool.trashed() == [new]
    pool.purge(new)

    assert pool.trashed() == []
