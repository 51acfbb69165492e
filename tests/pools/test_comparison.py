"""Which differences between two trees are seen."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusevol.pool.comparison import first_difference

pytestmark = pytest.mark.root


def _tree(root: Path) -> Path:
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_bytes(bytes(3 << 20))
    os.link(root / "d" / "f", root / "g")
    (root / "link").symlink_to("d")
    (root / "empty").touch()
    os.setxattr(root / "empty", "user.a", b"1")
    return root


def _flip(root: Path) -> None:
    """One byte, and nobody could tell by the times."""
    file = root / "d" / "f"
    times = file.stat()
    with file.open("r+b") as opened:
        opened.seek((2 << 20) + 5)
        opened.write(b"x")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _unlinked(root: Path) -> None:
    """Two files instead of one with two names."""
    found = (root / "g").stat()
    (root / "g").unlink()
    subprocess.run(["cp", "-a", root / "d" / "f", root / "g"], check=True)
    os.utime(root / "g", ns=(found.st_atime_ns, found.st_mtime_ns))
    os.utime(root, ns=(root.stat().st_atime_ns, root.stat().st_mtime_ns))


def _relinked(root: Path) -> None:
    """A name that leads elsewhere, at the same time."""
    found = os.lstat(root / "link")
    (root / "link").unlink()
    (root / "link").symlink_to("x")
    os.utime(root / "link", ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (_flip, "d/f is not the same: the content differs within the 1048576 bytes from 2097152 on"),
    "size": (lambda r: os.truncate(r / "empty", 1), "empty is not the same: "),
    "mode": (lambda r: (r / "empty").chmod(0o600), "mode"),
    "owner": (lambda r: os.chown(r / "empty", 5, -1), "owner (5, 0) instead of (0, 0)"),
    "time": (lambda r: os.utime(r / "empty", ns=(0, 1)), "time of change"),
    "attribute": (lambda r: os.setxattr(r / "empty", "user.a", b"2"), "extended attributes"),
    "names of a file": (_unlinked, "number of names"),
    "symbolic link": (_relinked, "it leads elsewhere"),
    "missing": (lambda r: (r / "empty").unlink(), "is not the same: "),
    "too much": (lambda r: (r / "d" / "new").touch(), "is not the same: "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_difference(workdir: Path, name: str) -> None:
    """A copy by cp is the same, until something of it is changed; then the sentence says what."""
    one, other = _tree(workdir / "one"), workdir / "other"
    subprocess.run(["cp", "--archive", one, other], check=True)
    before = first_difference(one, other)
    root = other.stat()
    change, sentence = CHANGES[name]
    change(other)
    os.utime(other, ns=(root.st_atime_ns, root.st_mtime_ns))
    found = first_difference(one, other)

    assert before is None
    assert found is not None
    assert sentence in found
