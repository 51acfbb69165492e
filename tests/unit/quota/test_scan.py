"""The scan counts what du counts, of every shape of tree."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from fusevol.quota.scan import _LAZY_DEPTH, ScanProgress, Total, scan


def du(path: Path) -> Total:
    """What du says (with -x: the scan stays on one device)."""

    def ask(unit: str) -> int:
        return int(subprocess.run(["du", "-sx", unit, path], check=True, capture_output=True).stdout.split()[0])

    return Total(ask("--block-size=1"), ask("--inodes"))


def deep(path: Path, levels: int) -> None:
    """A chain of directories with a file and an empty directory on every level."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        for name in ("a", "down", "z"):
            os.mkdir(name, dir_fd=fd)
        below = os.open("down", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_every_kind(tmp_path: Path) -> None:
    """Files, sparse files, links of both kinds, pipes, sockets, odd names and empty directories count as in du."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "f").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "d" / "f", tmp_path / "d" / "e" / "same")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 30)
    (tmp_path / "short").symlink_to("d")
    (tmp_path / "long").symlink_to("x" * 3000)
    (tmp_path / "up").symlink_to("..")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"\xff\n")).mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))

    assert scan(tmp_path) == du(tmp_path)


def test_empty(tmp_path: Path) -> None:
    """The root itself is counted."""
    counted = scan(tmp_path)

    assert counted == (tmp_path.stat().st_blocks * 512, 1)


def test_links_inside_and_outside(tmp_path: Path) -> None:
    """An inode with names inside and outside of the tree counts once."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "outside").write_bytes(b"x" * 5000)
    for name in ("a", "b"):
        os.link(tmp_path / "outside", tmp_path / "tree" / name)

    assert scan(tmp_path / "tree") == du(tmp_path / "tree")


def test_deeper_than_paths_and_descriptors(tmp_path: Path) -> None:
    """A tree 1,500 levels deep is counted with few descriptors, all of which are closed again."""
    deep(tmp_path / "t", 1500)
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 2 * _LAZY_DEPTH + 20, hard))
    try:
        counted = scan(tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        after = len(os.listdir("/proc/self/fd"))
        subprocess.run(["rm", "-rf", str(tmp_path / "t")], check=True)

    assert (counted.inodes, after) == (1500 * 4 + 1, before)


def test_memory_of_a_wide_tree(tmp_path: Path) -> None:
    """20,000 files and 2,000 subdirectories in one directory cost no memory that grows with their number."""
    for i in range(20_000):
        os.mknod(tmp_path / f"f{i}")
    for i in range(2_000):
        (tmp_path / f"d{i}").mkdir()
    tracemalloc.start()
    try:
        counted = scan(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counted.inodes == 22_001

    assert peak < 100_000


def test_progress(tmp_path: Path) -> None:
    """Progress grows, comes more than once for a large tree, and ends with the total."""
    for i in range(9000):
        os.mknod(tmp_path / f"f{i}")
    reports: list[ScanProgress] = []
    total = scan(tmp_path, reports.append)

    assert [r.inodes for r in reports] == [4096, 8192, 9001]
    assert reports[-1].nbytes == total.nbytes


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_no_directory(tmp_path: Path, kind: str) -> None:
    """A root that is no directory is an OSError."""
    path = tmp_path / kind
    if kind == "file":
        path.touch()

    with pytest.raises(OSError, match=kind):
        scan(path)


@pytest.mark.root
def test_stays_on_the_tree(workdir: Path) -> None:
    """Neither a tmpfs nor a bind mount of the same filesystem inside the tree is counted."""
    tree = workdir / "tree"
    outside = workdir / "outside"
    for path in (tree / "tmpfs", tree / "bind", outside):
        path.mkdir(parents=True)
    (outside / "big").write_bytes(b"x" * 1_000_000)
    (tree / "own").write_bytes(b"x" * 5000)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tree / "tmpfs")], check=True)
    subprocess.run(["mount", "--bind", str(outside), str(tree / "bind")], check=True)
    (tree / "tmpfs" / "file").write_bytes(b"x" * 10000)
    counted = scan(tree)

    assert counted == (tree.stat().st_blocks * 512 + (tree / "own").stat().st_blocks * 512, 2)
