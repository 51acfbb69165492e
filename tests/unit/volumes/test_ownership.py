"""fsGroup: who gets which bits, when a pass is skipped, and that links lead it nowhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.volumes import places
from agent.volumes.ownership import Group, give, mode_for
from fusevol.transport import mount

GID = 4321


def given(path: Path, group: Group, *, read_only: bool = False) -> bool:
    """:func:`give` of the tree at *path*."""
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return give(root, group, read_only=read_only)
    finally:
        os.close(root)


@pytest.mark.parametrize(
    ("mode", "directory", "read_only", "after"),
    [
        (0o600, False, False, 0o660),
        (0o400, False, True, 0o440),
        (0o755, True, False, 0o2775),
        (0o700, True, True, 0o2750),
        (0o4711, False, False, 0o4771),
        (0o1777, True, False, 0o3777),
    ],
)
def test_bits_are_added(mode: int, directory: bool, read_only: bool, after: int) -> None:
    """6.4: 0660 or 0440, and for directories setgid and the way in; nothing is taken away."""
    assert mode_for(mode, directory=directory, read_only=read_only) == after


@pytest.mark.root
def test_a_tree_is_given(tmp_path: Path) -> None:
    """All of the tree and its root, once more changes nothing; a link gets the group and its target nothing."""
    host = tmp_path / "host"
    host.write_text("x")
    host.chmod(0o600)
    root = tmp_path / "v"
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "f").touch(mode=0o600)
    (root / "d" / "out").symlink_to(host)
    os.mkfifo(root / "pipe", 0o600)
    given(root, Group(GID))
    found = {p: (root / p).lstat() for p in (".", "d", "d/e", "d/f", "d/out", "pipe")}
    again = given(root, Group(GID))

    assert {s.st_gid for s in found.values()} == {GID}
    assert {p: oct(stat.S_IMODE(s.st_mode)) for p, s in found.items()} == {
        ".": "0o2775",
        "d": "0o2775",
        "d/e": "0o2775",
        "d/f": "0o660",
        "d/out": "0o777",
        "pipe": "0o660",
    }
    assert (host.stat().st_gid, stat.S_IMODE(host.stat().st_mode)) == (0, 0o600)
    assert again


@pytest.mark.root
def test_the_root_decides_on_root_mismatch(tmp_path: Path) -> None:
    """OnRootMismatch: a root that fits ends the pass, one that lacks a bit or the group does not."""
    root = tmp_path / "v"
    root.mkdir()
    first = given(root, Group(GID, "OnRootMismatch"))
    (root / "later").touch(mode=0o600)
    os.chown(root / "later", 0, 0)  # setgid had made it the group's
    second = given(root, Group(GID, "OnRootMismatch"))
    untouched = (root / "later").stat().st_gid
    root.chmod(0o2755)
    third = given(root, Group(GID, "OnRootMismatch"))

    assert (first, second, third) == (True, False, True)
    assert (untouched, (root / "later").stat().st_gid) == (0, GID)


@pytest.mark.root
def test_an_interrupted_pass_is_taken_up(workdir: Path) -> None:
    """The root comes last: after a pass that failed half-way, OnRootMismatch goes over all of it again."""
    root, other = workdir / "v", workdir / "other"
    (root / "frozen").mkdir(parents=True)
    other.mkdir()
    (other / "file").touch(mode=0o600)
    places.bind(other, "", root / "frozen", read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        given(root, Group(GID, "OnRootMismatch"))
    between = root.stat().st_gid
    mount.unmount(root / "frozen")
    (root / "frozen" / "file").touch(mode=0o600)

    assert between == 0
    assert given(root, Group(GID, "OnRootMismatch"))
    assert {p.stat().st_gid for p in (root, root / "frozen", root / "frozen" / "file")} == {GID}
