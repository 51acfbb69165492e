"""How a volume server starts, what it answers, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.errors import UnavailableError
from fusevol.server.client import call
from fusevol.transport import mount
from tests.conftest import LoopFs, StartServer
from tests.support import eventually
from tests.support.servers import VolumeServer

pytestmark = pytest.mark.root

MIB = 1 << 20


def _du(root: Path) -> tuple[int, int]:
    """Bytes and inodes below and including *root*, as du counts them."""
    size = subprocess.run(["du", "-s", "--block-size=1", str(root)], check=True, capture_output=True, text=True)
    inodes = subprocess.run(["du", "-s", "--inodes", str(root)], check=True, capture_output=True, text=True)
    return int(size.stdout.split()[0]), int(inodes.stdout.split()[0])


def test_status_tells_what_is_served(volume_server: StartServer) -> None:
    """The control socket is for root only, and its status names the mount, the process and the labels."""
    server = volume_server(labels={"claim": "default/data"})
    status = server.call("status")
    mode = Path(server.spec.control).stat().st_mode & 0o777
    listed = mount.find(server.mountpoint)

    assert status["ok"]
    assert status["pid"] == server.pid
    assert status["mountpoint"] == str(server.mountpoint)
    assert status["labels"] == {"claim": "default/data"}
    assert mode == 0o600
    assert listed is not None
    assert listed.fstype == "fuse.fusevol"


def test_unmount_from_outside_ends_the_server_cleanly(volume_server: StartServer) -> None:
    """umount(8) by anybody ends the server with status 0; the next start trusts its checkpoint."""
    server = volume_server(quota="ledger", limit_bytes=64 * MIB)
    (server.mountpoint / "f").write_bytes(b"x" * 100_000)
    used = server.settled()
    status = server.umount()
    server.start()

    assert status == 0
    assert server.ready_lines == ["READY"]
    assert server.call("usage")["usage"] == used
    assert (used["used_bytes"], used["used_inodes"]) == _du(server.source)


def test_unmount_by_request_refuses_while_in_use(volume_server: StartServer) -> None:
    """A mount in use stays, with EBUSY; when it is free it goes, and the server with status 0."""
    server = volume_server()
    with (server.mountpoint / "f").open("w"):
        refused = server.call("unmount")
        still = mount.is_mounted(server.mountpoint)
    done = server.call("unmount")

    assert (refused["ok"], refused["errno"]) == (False, errno.EBUSY)
    assert still
    assert done == {"ok": True}
    assert server.wait() == 0


def test_lazy_unmount_serves_its_last_users(volume_server: StartServer) -> None:
    """After a lazy unmount open files go on working, and the server ends with the last of them."""
    server = volume_server()
    with (server.mountpoint / "f").open("w") as file:
        done = server.call("unmount", lazy=True)
        gone = not mount.is_mounted(server.mountpoint)
        file.write("late")
    status = server.wait()

    assert done["ok"]
    assert gone
    assert (server.source / "f").read_text() == "late"
    assert status == 0


def test_bind_mounts_live_on_after_the_first_mount_is_gone(volume_server: StartServer, workdir: Path) -> None:
    """A volume stays served as long as a bind mount of it exists; a read-only one refuses to write."""
    server = volume_server()
    writable, readable = workdir / "rw", workdir / "ro"
    writable.mkdir()
    readable.mkdir()
    mount.bind(server.mountpoint, writable)
    mount.bind(server.mountpoint, readable, read_only=True)
    mount.unmount(server.mountpoint)
    (writable / "f").write_text("x")
    with pytest.raises(OSError) as refused:  # noqa: PT011  # the errno is what counts
        (readable / "g").write_text("x")
    seen = (readable / "f").read_text()
    mount.unmount(readable)
    mount.unmount(writable)

    assert seen == "x"
    assert refused.value.errno == errno.EROFS
    assert server.wait() == 0


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_unmounts_and_ends(volume_server: StartServer, busy: bool) -> None:
    """SIGTERM takes the mount away, also from those who use it, and leaves a clean checkpoint."""
    server = volume_server(quota="ledger", limit_bytes=64 * MIB)
    held = os.open(server.mountpoint / "f", os.O_CREAT | os.O_WRONLY)
    if not busy:
        os.close(held)
    server.signal(signal.SIGTERM)
    status = server.wait()
    if busy:
        with contextlib.suppress(OSError):  # the connection is gone
            os.close(held)
    again = server.launch()

    assert status == 0
    assert again == "READY"
    assert server.ready_lines == ["READY"]


def test_killed_server_is_replaced_and_counts_right(volume_server: StartServer) -> None:
    """After SIGKILL in the middle of writing, a new server takes the dead mount's place with exact counters."""
    server = volume_server(quota="ledger", limit_bytes=64 * MIB)
    code = "import os,sys\nfor i in range(10**6): open(f'{sys.argv[1]}/{i}', 'wb').write(b'x' * 5000)"
    writer = subprocess.Popen([sys.executable, "-ISc", code, str(server.mountpoint)], stderr=subprocess.DEVNULL)
    eventually(lambda: len(os.listdir(server.source)) > 50, what="writing is under way")
    running = writer.poll() is None
    server.kill()
    failed = writer.wait(20)
    dead = mount.is_dead(server.mountpoint)
    at_start = _du(server.source)
    server.start()
    counted = tuple(server.settled()[k] for k in ("used_bytes", "used_inodes"))
    (server.mountpoint / "after").write_text("x")

    assert running
    assert failed == 1
    assert dead
    assert counted == at_start
    assert tuple(server.settled()[k] for k in ("used_bytes", "used_inodes")) == _du(server.source)


def test_limits_change_while_mounted(volume_server: StartServer) -> None:
    """A new limit holds for the next write, in both directions, and is shown by statvfs."""
    server = volume_server(quota="ledger", limit_bytes=MIB)
    data = b"x" * (2 * MIB)
    with pytest.raises(OSError) as full:  # noqa: PT011  # the errno is what counts
        (server.mountpoint / "f").write_bytes(data)
    raised = server.call("set-limits", limit_bytes=8 * MIB)
    (server.mountpoint / "f").write_bytes(data)
    shown = os.statvfs(server.mountpoint)
    lowered = server.call("set-limits", limit_bytes=MIB)
    with pytest.raises(OSError) as full_again:  # noqa: PT011
        (server.mountpoint / "g").write_bytes(data)
    kept = (server.mountpoint / "f").read_bytes()

    assert (full.value.errno, full_again.value.errno) == (errno.ENOSPC, errno.ENOSPC)
    assert raised["usage"]["limit_bytes"] == shown.f_blocks * shown.f_frsize == 8 * MIB
    assert lowered["usage"]["limit_bytes"] == MIB
    assert kept == data


@pytest.mark.parametrize("limit", [-1, "5", 1.5, True])
def test_bad_limits_change_nothing(volume_server: StartServer, limit: object) -> None:
    """A limit that is no whole number is refused in one sentence."""
    server = volume_server(quota="ledger", limit_bytes=MIB)
    answer = server.call("set-limits", limit_bytes=limit)
    usage = server.call("usage")["usage"]

    assert (answer["ok"], answer["errno"]) == (False, errno.EINVAL)
    assert usage["limit_bytes"] == MIB


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b'{"op": "fly"}\n', b'{"op": []}\n', b"\xff\xfe\n"])
def test_bad_requests_are_answered(mounted: VolumeServer, line: bytes) -> None:
    """What is no request gets an answer that says so, and the next line on the same connection is heard."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as answers:
        connection.settimeout(10)
        connection.connect(mounted.spec.control)
        connection.sendall(line + b'{"op": "usage"}\n')
        first, second = answers.readline(), answers.readline()

    assert b'"ok": false' in first
    assert b'"ok": true' in second


def test_nobody_listening_is_a_sentence(workdir: Path) -> None:
    """Calling a server that is not there raises UnavailableError naming the socket."""
    with pytest.raises(UnavailableError, match=str(workdir)):
        call(workdir / "none.sock", {"op": "status"})


@pytest.mark.expect_log("the connection was aborted")  # by the end of the second one's fixture: it is its mount, too
def test_second_server_on_the_same_mount_is_refused(volume_server: StartServer) -> None:
    """A second server for a mount that is served says so and changes nothing."""
    server = volume_server()
    second = volume_server(server.source, start=False, mountpoint=str(server.mountpoint))
    said = second.launch()
    status = second.wait()

    assert said.startswith("ERROR Something is mounted")
    assert status == 1
    assert server.call("status")["ok"]


def test_missing_volume_is_a_sentence(volume_server: StartServer, workdir: Path) -> None:
    """A volume directory that is not there is one sentence on the ready descriptor, and nothing is mounted."""
    server = volume_server(workdir / "none", start=False)
    said = server.launch()
    status = server.wait()

    assert said.startswith(f"ERROR The volume's directory {workdir}/none is not there")
    assert status == 1
    assert not mount.is_mounted(server.mountpoint)


def test_aborted_connection_ends_the_server(volume_server: StartServer, request: pytest.FixtureRequest) -> None:
    """After an abort of the connection the server ends with status 1 and says that the mount is dead."""
    server = volume_server()
    request.getfixturevalue("logs").expect("the connection was aborted")
    (server.mountpoint / "f").write_text("x")
    aborted = mount.abort(server.mountpoint)
    status = server.wait()

    assert aborted
    assert status == 1
    assert mount.is_dead(server.mountpoint)


def test_privileges_are_few(mounted: VolumeServer) -> None:
    """The server keeps no capability that serving files does not take, and cannot get one back."""
    lines = Path(f"/proc/{mounted.pid}/status").read_text().splitlines()
    sets = {key: int(value, 16) for key, value in (line.split(":\t") for line in lines if line.startswith("Cap"))}
    sys_module, sys_ptrace, net_admin = 16, 19, 12

    assert all(not value >> bit & 1 for value in sets.values() for bit in (sys_module, sys_ptrace, net_admin))
    assert sets["CapPrm"] | sets["CapBnd"] == sets["CapBnd"]


@pytest.fixture
def open_device() -> Iterator[None]:
    """/dev/fuse as distributions have it: open to everybody (some virtual machines forget that)."""
    device = Path("/dev/fuse")
    before = device.stat().st_mode & 0o777
    device.chmod(0o666)
    yield
    device.chmod(before)


@pytest.mark.usefixtures("open_device")
def test_ordinary_user_mounts_through_fusermount(volume_server: StartServer, workdir: Path) -> None:
    """A user without any privilege gets a volume with a quota, and others see it only if fuse.conf allows."""
    checkout = Path(__file__).parents[2]
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    reachable = subprocess.run([*as_user, sys.executable, "-c", "import fusevol"], cwd=checkout, check=False)
    if reachable.returncode != 0:
        pytest.skip("the checkout or its interpreter is not readable to other users")
    home = workdir / "home"
    for directory in (home, home / "src", home / "mnt"):
        directory.mkdir()
        os.chown(directory, 65534, 65534)
    workdir.chmod(0o755)
    names = {field: str(home / field) for field in ("control", "log", "ledger")}
    server = volume_server(
        home / "src",
        start=False,
        mountpoint=str(home / "mnt"),
        command=as_user,
        quota="ledger",
        limit_bytes=MIB,
        **names,
    )
    server.start()

    def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*as_user, *command], check=False, capture_output=True, text=True, timeout=20)

    written = as_nobody("sh", "-c", f"echo hello > {home}/mnt/f && cat {home}/mnt/f")
    too_much = as_nobody("dd", "if=/dev/zero", f"of={home}/mnt/big", "bs=1M", "count=2")
    allowed = any(line.strip() == "user_allow_other" for line in Path("/etc/fuse.conf").read_text().splitlines())
    seen_by_root = os.access(home / "mnt" / "f", os.R_OK)
    ended = server.call("unmount")
    status = server.wait()

    assert written.stdout == "hello\n"
    assert "No space left" in too_much.stderr
    assert seen_by_root == allowed
    assert ended["ok"]
    assert status == 0


def test_scan_reports_progress_and_file_systems_agree(volume_server: StartServer, loop_fs: LoopFs) -> None:
    """A volume that has files but no checkpoint is scanned before it is mounted, and counted as du counts."""
    source = loop_fs("xfs") / "volume"
    shutil.copytree(Path(__file__).parents[2] / "fusevol", source)
    server = volume_server(source, quota="ledger", limit_bytes=64 * MIB)
    usage = server.call("usage")["usage"]

    assert (usage["used_bytes"], usage["used_inodes"]) == _du(source)
