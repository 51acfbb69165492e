"""A real Ceph cluster of one node, from Debian's packages: one monitor, manager, OSD (in memory) and MDS on loopback.

All its state is in one directory. The keyring that the monitor is born with has everybody in it, so that the cluster
needs four commands and is up in about two seconds. cephx is on.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from tests.support.polling import eventually
from tests.support.processes import alive

Daemon = Literal["mon", "mgr", "osd", "mds"]
PROGRAMS: Final = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-fuse", "ceph", "monmaptool")
FILESYSTEM: Final = "cephfs"
RESTRICTED: Final = "/open"
"""The only directory that the client ``restricted`` may change; it may set no quota."""

_CAPS: Final[Mapping[str, Mapping[str, str]]] = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mds": "allow *", "mgr": "allow *"},
    "client.restricted": {
        "mon": "allow r",
        "mds": f"allow r, allow rw path={RESTRICTED}",
        "osd": f"allow rw tag cephfs data={FILESYSTEM}",
    },
    "mgr.x": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
    "osd.0": {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"},
    "mds.a": {"mon": "allow profile mds", "mgr": "allow profile mds", "osd": "allow rwx", "mds": "allow *"},
}
_CONFIG: Final = """\
[global]
fsid = {fsid}
mon host = [v2:{address}:{v2},v1:{address}:{v1}]
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {directory}/keyring
run dir = {directory}
admin socket = {directory}/$name.asok
log file = {directory}/$name.log
crash dir = {directory}/crash
public addr = {address}
cluster addr = {address}
osd objectstore = memstore
memstore device bytes = {size}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
# an MDS that waits for a stopped OSD is not replaced meanwhile: its clients would be shut out
mds beacon grace = 300
mds session blocklist on timeout = true
[mon]
mon data = {directory}/mon
mon cluster log file = {directory}/cluster.log
paxos propose interval = 0.05
[mgr]
mgr data = {directory}/mgr
mgr initial modules =
[osd]
osd data = {directory}/osd
[mds]
mds data = {directory}/mds
"""


def why_not() -> str | None:
    """Why there can be no cluster here, in words; ``None`` if there can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no Ceph: {', '.join(missing)} not found (scripts/setup.sh installs Debian's packages where it can)"
    return None


def _secret() -> str:
    """A new cephx key: type 1 (AES), creation time, length, 16 random bytes; little-endian, in base64."""
    return base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)).decode()


def _free_port(address: str) -> int:
    with socket.socket() as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])


class Cluster:
    """A running cluster below *directory*. Made by :func:`cluster`."""

    def __init__(self, directory: Path, size: int, address: str) -> None:
        """*size*: bytes of the OSD. Use :func:`cluster`."""
        self.directory = directory
        self._address = address
        self.keys = {name: _secret() for name in _CAPS}
        self._ports = _free_port(address), _free_port(address)
        self.config = directory / "ceph.conf"
        self._osd = str(uuid.uuid4())
        self._fsid = str(uuid.uuid4())
        self._running: dict[Daemon, subprocess.Popen[bytes]] = {}
        self.config.write_text(
            _CONFIG.format(
                directory=directory,
                fsid=self._fsid,
                address=address,
                v2=self._ports[0],
                v1=self._ports[1],
                size=size,
            )
        )
        keyring = directory / "keyring"
        keyring.touch(mode=0o600)
        for name, caps in _CAPS.items():
            with keyring.open("a") as file:
                file.write(f"[{name}]\n\tkey = {self.keys[name]}\n")
                file.writelines(f'\tcaps {daemon} = "{cap}"\n' for daemon, cap in caps.items())
        for daemon in ("mon", "mgr", "osd", "mds"):
            (directory / daemon).mkdir()

    @property
    def monitors(self) -> str:
        """Where the monitor listens with the older protocol, as StorageClasses give it."""
        return f"{self._address}:{self._ports[1]}"

    def key(self, client: str) -> str:
        """The secret of ``admin`` or ``restricted``."""
        return self.keys[f"client.{client}"]

    def _run(self, *words: str, stdin: str = "", timeout: float = 60.0) -> str:
        """Standard output of a program that must succeed."""
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, input=stdin, env=self._environment, timeout=timeout
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.config), "CEPH_KEYRING": str(self.directory / "keyring")}

    def command(self, *words: str) -> Any:
        """What a command of the ``ceph`` tool answers, as client.admin."""
        text = self._run("ceph", "--format", "json", *words)
        return json.loads(text) if text.strip() else None

    def start(self) -> None:
        """Make the cluster; returns when its CephFS can be mounted."""
        monmap, address = str(self.directory / "monmap"), f"[v2:{self._address}:{self._ports[0]},v1:{self.monitors}]"
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self.launch("mon")
        self._run(
            "ceph",
            stdin=f"osd new {self._osd}\nosd pool create meta 8\nosd pool create data 8\n"
            f"fs new {FILESYSTEM} meta data\nfs set {FILESYSTEM} session_timeout 30\n",
        )
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", self._osd)
        for daemon in ("osd", "mds", "mgr"):
            self.launch(daemon)  # type: ignore[arg-type]  # mypy sees a str
        self.wait_active()

    def launch(self, daemon: Daemon) -> None:
        """Start a daemon that does not run."""
        name = {"mon": "a", "mgr": "x", "osd": "0", "mds": "a"}[daemon]
        with (self.directory / "stderr").open("ab") as err:
            # whatever becomes of the tests, the daemons end with them
            self._running[daemon] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", f"ceph-{daemon}", "-f", "-i", name],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    def wait_active(self, timeout: float = 60.0) -> None:
        """Return when an MDS serves the filesystem."""

        def active() -> bool:
            (filesystem,) = self.command("fs", "dump")["filesystems"]
            return any(mds["state"] == "up:active" for mds in filesystem["mdsmap"]["info"].values())

        eventually(active, timeout, what="an MDS is active", interval=0.1)

    def pid(self, daemon: Daemon) -> int:
        """Process id of a daemon."""
        return self._running[daemon].pid

    @contextlib.contextmanager
    def frozen(self, daemon: Daemon) -> Iterator[None]:
        """The daemon is stopped (SIGSTOP), as one whose disk or machine does not answer."""
        os.kill(self.pid(daemon), signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid(daemon), signal.SIGCONT)

    def kill(self, daemon: Daemon) -> None:
        """kill -9."""
        process = self._running.pop(daemon)
        assert process.poll() is None, f"ceph-{daemon} was not running"
        process.kill()
        process.wait(20)

    @contextlib.contextmanager
    def mounted(
        self, point: Path, *, client: str = "admin", root: str = "/", key: str | None = None, timeout: float = 30.0
    ) -> Iterator[Path]:
        """*root* of the filesystem, mounted at *point* by another ceph-fuse, as another node would.

        *key* is for a client that the cluster was not born with.
        """
        point.mkdir(exist_ok=True)
        keyring = self.directory / "keyring"
        if key is not None:
            keyring = self.directory / f"keyring.{client}"
            keyring.write_text(f"[client.{client}]\n\tkey = {key}\n")
        words = ["ceph-fuse", "-f", "--id", client, "-r", root, f"--keyring={keyring}", "--admin-socket="]
        words += ["--client_mount_timeout=10", str(point)]
        with (self.directory / "stderr").open("ab") as err:
            process = subprocess.Popen(words, env=self._environment, stdout=err, stderr=err, start_new_session=True)
        device = point.parent.stat().st_dev

        def there() -> bool:
            assert process.poll() is None, f"ceph-fuse ended: {(self.directory / 'stderr').read_text()[-1000:]}"
            return point.stat().st_dev != device

        try:
            eventually(there, timeout, what=f"CephFS is mounted at {point}", interval=0.05)
            yield point
        finally:
            subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True, timeout=20)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(20)

    def close(self) -> None:
        """End every daemon."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait(20)
            assert not alive(process.pid)
        self._running.clear()


@contextlib.contextmanager
def cluster(directory: Path, size: int = 4 << 30, address: str = "127.0.0.1") -> Iterator[Cluster]:
    """A new cluster in the empty *directory*, whose one OSD has *size* bytes; it ends with the block. Its daemons
    listen on *address*."""
    made = Cluster(directory, size, address)
    try:
        made.start()
        yield made
    finally:
        made.close()
