"""The mount table and what is done to it: no mount that hangs or is dead may ever stop the caller."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusevol.transport import mount
from tests.conftest import StartServer
from tests.support import eventually
from tests.support.servers import VolumeServer

LINES = (
    rb"36 35 98:0 /mnt1 /mnt/a\040b\134c\011d\012e\043 rw,noatime master:1 shared:2 - ext4 /dev/r\040t rw,errors=ro"
    b"\n"
    b"40 36 0:42 / /v rw,nosuid - fuse.fusevol claim rw,user_id=0\n"
)


def test_mountinfo_is_understood() -> None:
    """Escaped names, any number of optional fields, and FUSE types are read as proc_pid_mountinfo(5) says."""
    first, second = mount.parse_mountinfo(LINES)

    assert first.mountpoint == "/mnt/a b\\c\td\ne#"
    assert (first.major, first.minor, first.root, first.source) == (98, 0, "/mnt1", "/dev/r t")
    assert (first.is_fuse, second.is_fuse) == (False, True)
    assert second.super_options == ("rw", "user_id=0")


@pytest.mark.parametrize(
    "line", [b"36 35\n", b"36 35 98:0 / /a rw master:1 ext4 /dev/a rw\n", b"x 1 1:1 / / rw - a b c\n"]
)
def test_nonsense_is_refused(line: bytes) -> None:
    """A line that is no mount raises ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011  # the type is the promise
        mount.parse_mountinfo(line)


@pytest.mark.root
def test_strange_names_are_found(workdir: Path, volume_server: StartServer) -> None:
    """A mount point with blanks and backslashes is found, bound, and unmounted by its name."""
    odd = workdir / "a b\\040\tc#"
    odd.mkdir()
    server = volume_server()
    mount.bind(server.mountpoint, odd, read_only=True)
    found = mount.find(odd)
    mount.unmount(odd)

    assert found is not None
    assert found.read_only
    assert not mount.is_mounted(odd)


def _agree(path: Path) -> bool:
    """Whether the table says of *path* what :func:`mount.root` says; and that is whether something is mounted there."""
    listed = [m for m in mount.mounts() if m.mountpoint == str(path)]
    told = mount.root(path)
    assert told == (mount.Root(listed[-1].major, listed[-1].minor) if listed else None), (path, told, listed)
    assert mount.find(path) == (listed[-1] if listed else None)
    return told is not None


@pytest.mark.root
def test_a_look_tells_what_the_table_tells(mounted: VolumeServer, workdir: Path) -> None:
    """Directories, files, links, a mount, a part of it, one over another, nothing at all."""
    (mounted.source / "d").mkdir()
    part, over, file, link = (workdir / name for name in ("part", "over", "file", "link"))
    part.mkdir()
    over.mkdir()
    file.touch()
    link.symlink_to(mounted.mountpoint)
    before = [_agree(p) for p in (workdir, part, over, file, mounted.mountpoint / "d", workdir / "none" / "x")]
    mount.bind(mounted.mountpoint / "d", part)
    mount.bind(workdir / "part", over)
    mount.bind(mounted.mountpoint, over)
    mount.bind(file, file)
    after = [_agree(p) for p in (part, over, file, mounted.mountpoint, Path("/"), Path("/proc"))]
    through_a_link = mount.root(link / "d"), mount.root(link)
    mount.unmount(over)
    still = _agree(over)

    assert before == [False] * 6
    assert after == [True] * 6
    assert through_a_link == (None, None)
    assert still


@pytest.mark.root
@pytest.mark.parametrize("transport", ["kernel", "pyfuse3"])
def test_a_look_asks_no_server(volume_server: StartServer, transport: str) -> None:
    """What is mounted is told although its server stands still or is gone, and nothing is cached."""
    server = volume_server(transport=transport, cache="none", deadline=30.0)
    told = mount.root(server.mountpoint)
    code = "import sys; from fusevol.transport import mount; print(mount.root(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(server.mountpoint)]

    def asked() -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    server.signal(signal.SIGSTOP)
    try:
        stopped = asked()
    finally:
        server.signal(signal.SIGCONT)
    server.kill()

    assert told is not None
    assert stopped == asked() == repr(told)


@pytest.mark.root
def test_read_only_bind_keeps_other_options(mounted: VolumeServer, workdir: Path) -> None:
    """Making a bind mount read-only does not clear nosuid and nodev, and leaves the original writable."""
    target = workdir / "t"
    target.mkdir()
    mount.bind(mounted.mountpoint, target, read_only=True)
    found = mount.find(target)
    (mounted.mountpoint / "f").touch()

    assert found is not None
    assert {"ro", "nosuid", "nodev"} <= set(found.options)


@pytest.mark.root
def test_unmount_says_busy_and_not_mounted(mounted: VolumeServer, workdir: Path) -> None:
    """EBUSY while a file is open, EINVAL where nothing is mounted."""
    with (mounted.mountpoint / "f").open("w"), pytest.raises(OSError) as busy:  # noqa: PT011  # the errno counts
        mount.unmount(mounted.mountpoint)
    with pytest.raises(OSError) as nothing:  # noqa: PT011
        mount.unmount(workdir)

    assert busy.value.errno == errno.EBUSY
    assert nothing.value.errno == errno.EINVAL


@pytest.mark.root
def test_dead_mount_is_recognised(mounted: VolumeServer, workdir: Path) -> None:
    """A mount whose server was killed is dead; a living one and a directory are not."""
    alive = mount.probe(mounted.mountpoint)
    mounted.kill()
    dead = mount.probe(mounted.mountpoint)

    assert (alive, dead, mount.probe(workdir)) == ("alive", "dead", "absent")
    assert mount.is_dead(mounted.mountpoint)


@pytest.mark.expect_log("the connection was aborted", "operations hang")
@pytest.mark.root
def test_hanging_mount_never_hangs_the_caller(volume_server: StartServer, workdir: Path) -> None:
    """A server that does not answer makes a probe say so in time; aborting the connection frees those who wait."""
    (workdir / "faults").mkdir()
    server = volume_server(module="tests.support.faulty_server", cache="none")
    (workdir / "faults" / "statfs.hang").touch()
    code = "import os,sys; os.statvfs(sys.argv[1])"
    client = subprocess.Popen([sys.executable, "-ISc", code, str(server.mountpoint)], stderr=subprocess.DEVNULL)
    eventually(lambda: server.call("status")["stats"]["threads"] > 1, what="the client hangs")
    before = time.monotonic()
    found = mount.probe(server.mountpoint, timeout=0.3)
    took = time.monotonic() - before
    waiting = client.poll() is None
    mount.abort(server.mountpoint)
    freed = client.wait(10)
    (workdir / "faults" / "statfs.hang").unlink()

    assert waiting
    assert found == "hung"
    assert took < 2
    assert freed == 1
