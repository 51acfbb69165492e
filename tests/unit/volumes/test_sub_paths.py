"""Paths inside volumes: made like the root, links followed only inside, whatever somebody swaps meanwhile."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.volumes import places
from fusevol.errors import InvalidError
from fusevol.transport import mount


def opened(root: Path, path: str, *, create: bool = True) -> os.stat_result:
    """What :func:`places.open_sub_path` leads to."""
    descriptor = places.open_sub_path(root, path, create=create)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def volume(workdir: Path) -> Path:
    """A volume's root, beside a directory of the host."""
    (workdir / "secret").mkdir()
    root = workdir / "v"
    root.mkdir()
    root.chmod(0o2770)
    return root


def test_missing_directories_are_made_like_the_root(volume: Path) -> None:
    """6.5: every missing component gets the mode of the root, setgid included, whatever the umask is."""
    before = os.umask(0o077)
    try:
        opened(volume, "a/b/./c")
    finally:
        os.umask(before)

    assert {stat.S_IMODE((volume / p).stat().st_mode) for p in ("a", "a/b", "a/b/c")} == {0o2770}


def test_a_read_only_volume_gets_no_directories(volume: Path) -> None:
    """6.5: what is not there cannot be made in a read-only volume."""
    with pytest.raises(FileNotFoundError):
        opened(volume, "a", create=False)

    assert list(volume.iterdir()) == []


def test_links_inside_the_volume_are_followed(volume: Path) -> None:
    """As kubelet does: a relative link that stays in the volume leads to what it names, also by way of ``..``."""
    (volume / "d" / "e").mkdir(parents=True)
    (volume / "d" / "up").symlink_to("../file")
    (volume / "link").symlink_to("d")
    (volume / "file").write_text("x")

    assert opened(volume, "link/e").st_ino == (volume / "d" / "e").stat().st_ino
    assert opened(volume, "link/up").st_ino == (volume / "file").stat().st_ino
    assert stat.S_ISDIR(opened(volume, "link/new").st_mode)
    assert (volume / "d" / "new").is_dir()


@pytest.mark.parametrize(
    ("target", "path", "code"),
    [
        ("../secret", "out", errno.EXDEV),
        ("../secret", "out/x", errno.EXDEV),
        ("/etc", "out", errno.EXDEV),
        ("/etc", "out/passwd", errno.EXDEV),
        ("/proc/self/cwd", "out", errno.EXDEV),
        ("nowhere", "out", errno.ELOOP),
        ("out", "out", errno.ELOOP),
        ("file", "out/x", errno.ENOTDIR),
    ],
)
def test_links_lead_nowhere_else(volume: Path, target: str, path: str, code: int) -> None:
    """A link out of the volume is refused, as is one to nothing; the host is not touched."""
    (volume / "file").write_text("x")
    (volume / "out").symlink_to(target)
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        opened(volume, path)

    assert caught.value.errno == code
    assert list((volume.parent / "secret").iterdir()) == []


@pytest.mark.root
def test_a_link_to_etc_is_not_bound(volume: Path) -> None:
    """A subPath that is a symbolic link to /etc: one sentence, no mount, and no target is left."""
    (volume / "conf").symlink_to("/etc")
    target = volume.parent / "pods" / "t"
    with pytest.raises(InvalidError, match='failed to prepare subPath "conf": it leads out of the volume'):
        places.bind(volume, "conf", target, read_only=False)

    assert not mount.is_mounted(target)
    assert not target.exists()


_SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
root = sys.argv[1].encode()
for name in (b"conf", b"deep/conf"):
    os.makedirs(root + b"/" + name, exist_ok=True)
    os.symlink(sys.argv[2], root + b"/" + name + b".link")
print("ready", flush=True)
while True:  # RENAME_EXCHANGE: at every moment there is either the directory or the link
    for name in (b"conf", b"deep/conf"):
        if libc.renameat2(-100, root + b"/" + name, -100, root + b"/" + name + b".link", 2):
            os._exit(3)
"""


@pytest.mark.root
def test_a_swapped_link_never_leads_out(volume: Path) -> None:
    """While somebody swaps a directory with a link to the host's, 2,000 binds show the directory or are refused."""
    host = volume.parent / "secret"
    (host / "passwd").touch()
    target = volume.parent / "pods" / "t"
    swapper = subprocess.Popen(
        [sys.executable, "-c", _SWAPPER, str(volume), str(host)], stdout=subprocess.PIPE, text=True
    )
    bound, refused, escaped = 0, 0, []
    try:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == "ready\n"
        for turn in range(50_000):
            if turn >= 2000 and min(bound, refused) > 50:
                break
            path = ("conf", "deep/conf", "conf/new", "deep/conf/new")[turn % 4]
            try:
                places.bind(volume, path, target, read_only=False)
            except InvalidError:
                refused += 1
                continue
            if (target / "passwd").exists() or not _below(target, volume):
                escaped.append(path)
            mount.unmount(target)
            bound += 1
        assert swapper.poll() is None, "the swapper was not at it"
    finally:
        swapper.kill()
        swapper.wait(10)
        assert swapper.stdout is not None
        swapper.stdout.close()

    assert escaped == []
    assert min(bound, refused) > 50, f"{bound} bound, {refused} refused"
    assert os.listdir(host) == ["passwd"]


def _below(target: Path, volume: Path) -> bool:
    """Whether what is mounted at *target* is a directory of *volume*, by the mount table."""
    found = mount.find(target)
    return found is not None and f"/{volume.parent.name}/{volume.name}/" in found.root + "/"


@pytest.mark.root
def test_a_recursive_mount_is_read_only_all_the_way(workdir: Path) -> None:
    """recursiveReadOnly: mounts inside come along, read-only; later ones do not; the source stays as it is."""
    source, target = workdir / "s", workdir / "t"
    (source / "inner").mkdir(parents=True)
    (source / "later").mkdir()
    other = workdir / "o"
    other.mkdir()
    mount.bind(source, source)
    mount.bind(other, source / "inner")
    (source / "inner" / "file").write_text("x")
    places.bind(source, "", target, read_only=True, recursive=True)
    mount.bind(other, source / "later")
    errors = []
    for place in (target / "new", target / "inner" / "new", target / "inner" / "file"):
        with pytest.raises(OSError, match="Read-only") as caught:
            place.write_text("y")
        errors.append(caught.value.errno)
    (source / "inner" / "new").write_text("y")

    assert errors == [errno.EROFS] * 3
    assert (target / "inner" / "file").read_text() == "x"
    assert list((target / "later").iterdir()) == []


@pytest.mark.root
def test_a_plain_read_only_mount_is_not_recursive(workdir: Path) -> None:
    """The difference that recursiveReadOnly makes: without it, a mount inside is not even shown by our binds."""
    source, target, other = workdir / "s", workdir / "t", workdir / "o"
    (source / "inner").mkdir(parents=True)
    other.mkdir()
    mount.bind(other, source / "inner")
    (source / "inner" / "file").write_text("x")
    places.bind(source, "", target, read_only=True)

    assert list((target / "inner").iterdir()) == []
