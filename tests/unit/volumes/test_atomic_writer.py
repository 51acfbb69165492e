"""Kubelet's atomic writer: what is on disk after each write, after interruptions, and what readers see meanwhile."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.volumes import atomicwriter
from agent.volumes.atomicwriter import File
from fusevol.errors import InvalidError
from tests.support.polling import eventually


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on tmpfs, where these volumes are."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


FILES = {"a": b"1", "dir/b": b"2", "dir/sub/c": b"3"}


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(path: Path, files: dict[str, bytes], mode: int = 0o644, gid: int | None = None) -> bool:
    """Have *path* show *files*."""
    with opened(path) as root:
        return atomicwriter.write(root, {k: File(v, mode) for k, v in files.items()}, gid=gid)


def shown(path: Path) -> dict[str, bytes]:
    """What users see: every file by the path through its visible name."""
    found = {}
    for name in os.listdir(path):
        if name.startswith(".."):
            continue
        place = path / name
        files = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
        found |= {str(f.relative_to(path)): f.read_bytes() for f in files}
    return found


def stamped(path: Path) -> list[str]:
    """The directories that hold files of some state."""
    return sorted(n for n in os.listdir(path) if n.startswith("..2"))


def test_the_shape_on_disk(tmp_path: Path) -> None:
    """3.8: one directory with the files, ``..data`` to it, a link per first element; modes whatever the umask is."""
    before = os.umask(0o077)
    try:
        changed = write(tmp_path, FILES, 0o640)
    finally:
        os.umask(before)
    (directory,) = stamped(tmp_path)

    assert changed
    assert {n: os.readlink(tmp_path / n) for n in os.listdir(tmp_path) if n != directory} == {
        "..data": directory,
        "a": "..data/a",
        "dir": "..data/dir",
    }
    assert shown(tmp_path) == FILES
    assert stat.S_IMODE((tmp_path / directory).stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "dir").stat().st_mode) == 0o700, "directories follow the umask"
    assert {stat.S_IMODE((tmp_path / f).stat().st_mode) for f in FILES} == {0o640}


def test_the_same_again_writes_nothing(tmp_path: Path) -> None:
    """Steps 4 and 5: content decides, a mode does not; a missing visible name comes back."""
    write(tmp_path, FILES)
    before = stamped(tmp_path)
    (tmp_path / "a").unlink()
    changed = write(tmp_path, FILES, 0o600)

    assert not changed
    assert stamped(tmp_path) == before
    assert shown(tmp_path) == FILES


def test_what_is_not_wanted_any_more_goes(tmp_path: Path) -> None:
    """Steps 3, 12 and 13: old names, whole directories and the old state are removed; others keep their links."""
    write(tmp_path, FILES)
    link = (tmp_path / "a").lstat().st_ino
    changed = write(tmp_path, {"a": b"1", "e/f": b"4"})

    assert changed
    assert shown(tmp_path) == {"a": b"1", "e/f": b"4"}
    assert sorted(n for n in os.listdir(tmp_path) if not n.startswith("..")) == ["a", "e"]
    assert (tmp_path / "a").lstat().st_ino == link
    assert len(stamped(tmp_path)) == 1


def test_a_payload_may_be_empty(tmp_path: Path) -> None:
    """An optional object that is gone leaves an empty volume."""
    write(tmp_path, FILES)
    write(tmp_path, {})

    assert shown(tmp_path) == {}
    assert len(stamped(tmp_path)) == 1


def test_a_path_becomes_a_directory(tmp_path: Path) -> None:
    """A name may change from file to directory and back."""
    states = [{"a": b"1"}, {"a/b": b"2"}, {"a": b"3"}]
    seen = []
    for files in states:
        write(tmp_path, files)
        seen.append(shown(tmp_path))

    assert seen == states


@pytest.mark.parametrize(
    "path",
    ["", "/etc/x", "a/../b", "..", "..a", "..data/x", "x" * 256, "a/" * 2100 + "a", ".", "./"],
)
def test_paths_that_may_not_be(tmp_path: Path, path: str) -> None:
    """Step 1: refused before anything is touched."""
    write(tmp_path, FILES)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InvalidError, match="invalid path"):
        write(tmp_path, {"fine": b"x", path: b"y"})

    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    """One path cannot lead through another."""
    with pytest.raises(InvalidError, match="a cannot be a file and the directory of a/b"):
        write(tmp_path, {"a": b"1", "a/b": b"2"})


def test_interrupted_writes_are_cleared_away(tmp_path: Path) -> None:
    """A crash before and after the switch leaves what the next write removes; readers see one state all the time."""
    write(tmp_path, FILES)
    (tmp_path / "..2026_01_01_00_00_00.1").mkdir()
    (tmp_path / "..2026_01_01_00_00_00.1" / "a").write_bytes(b"half")
    (tmp_path / "..data_tmp").symlink_to("..2026_01_01_00_00_00.1")
    seen = shown(tmp_path)
    write(tmp_path, {"a": b"new"})

    assert seen == FILES
    assert shown(tmp_path) == {"a": b"new"}
    assert len(stamped(tmp_path)) == 1
    assert not (tmp_path / "..data_tmp").is_symlink()


def test_links_in_the_volume_lead_the_writer_nowhere(tmp_path: Path) -> None:
    """``..data`` that a privileged container has pointed at the host is replaced; what it points at is not touched."""
    victim = tmp_path / "host"
    victim.mkdir()
    (victim / "precious").write_bytes(b"p")
    volume = tmp_path / "v"
    volume.mkdir()
    (volume / "..2026_01_01_00_00_00.7").symlink_to(victim)
    for target in ("../host", str(victim), "..2026_01_01_00_00_00.7"):
        with suppress(FileNotFoundError):
            (volume / "..data").unlink()
        (volume / "..data").symlink_to(target)
        write(volume, {"precious": b"x"})

    assert (victim / "precious").read_bytes() == b"p"
    assert shown(volume) == {"precious": b"x"}


@pytest.mark.root
def test_the_group_has_the_files_before_they_are_seen(tmp_path: Path) -> None:
    """Step 8 with 6.4: group, group-read for files, setgid for directories; 0400 shows as 0440."""
    write(tmp_path, {"a": b"1", "dir/b": b"2"}, 0o400, gid=4321)
    found = {p: (tmp_path / p).stat() for p in ("..data", "a", "dir", "dir/b")}

    assert {p: (oct(stat.S_IMODE(s.st_mode)), s.st_gid) for p, s in found.items()} == {
        "..data": ("0o2755", 4321),
        "a": ("0o440", 4321),
        "dir": ("0o2755", 4321),
        "dir/b": ("0o440", 4321),
    }


@pytest.mark.root
def test_a_group_that_cannot_be_given_changes_nothing(tmp_path: Path) -> None:
    """Step 8: the files change hands before the switch, so a failure leaves the old state, whole, and no new one."""
    write(tmp_path, FILES)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OverflowError):
        write(tmp_path, {"a": b"new"}, gid=1 << 40)

    assert sorted(os.listdir(tmp_path)) == before
    assert shown(tmp_path) == FILES


def test_places_for_other_mounts(tmp_path: Path) -> None:
    """3.7: directories for nested mounts are made, 0755, and stay through later writes."""
    with opened(tmp_path) as root:
        atomicwriter.make_places(root, ["cache/deep", "dir/x"])
    write(tmp_path, {"a": b"1"})
    with opened(tmp_path) as root:
        atomicwriter.make_places(root, ["cache/deep", "a/b"])
    write(tmp_path, {"a": b"2"})

    assert stat.S_IMODE((tmp_path / "cache" / "deep").stat().st_mode) == 0o755
    assert shown(tmp_path) == {"a": b"2"}


_READER = """
import os, sys
root, seen, opened = sys.argv[1], set(), 0
print("ready", flush=True)
while True:
    try:
        data = os.open(os.path.join(root, "..data"), os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        continue
    try:
        got = []
        for name in ("first", "dir/second", "last"):
            f = os.open(name, os.O_RDONLY, dir_fd=data)
            got.append(os.read(f, 1 << 20))
            os.close(f)
    except FileNotFoundError:
        continue  # the state was replaced, and removed, meanwhile
    finally:
        os.close(data)
    opened += 1
    seen.add(got[0])
    if len(set(got)) != 1 or len(got[0]) != 5000:
        sys.exit("mixed: " + repr([g[:8] for g in got]))
    if got[0].startswith(b"end"):
        break
print(opened, len(seen))
"""


def test_readers_never_see_a_mix(memory: Path) -> None:
    """10,000 updates of three files: who opens ``..data`` once reads all three of one state, and each file is whole."""
    updates = 10_000
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(memory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for word in itertools.chain((f"{i:05}" for i in range(updates)), ["end--"]):
            content = word.encode() * 1000
            write(memory, {"first": content, "dir/second": content, "last": content})
        eventually(lambda: reader.poll() is not None, 20.0, what="the reader has seen the end")
        told, errors = reader.communicate(timeout=10)
    finally:
        reader.kill()
        reader.wait(10)
    reads, states = (int(w) for w in told.split()) if told else (0, 0)

    assert errors == ""
    assert reads >= states >= updates // 20, "the reader was not at it meanwhile"
