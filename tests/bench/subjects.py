"""What is compared: a bare directory, fusevol with and without the ledger, bindfs; each on its own backing tree."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusevol.keeper import client
from fusevol.server.spec import MountSpec

LIMIT_BYTES = 3 << 30
LIMIT_INODES = 1 << 20


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to measure: work below ``root``; ``pid`` is the process that serves it, if there is one."""

    name: str
    root: Path
    pid: int | None = None

    def private_bytes(self) -> int:
        """Memory that only this mount's process has (Private_Clean + Private_Dirty of smaps_rollup)."""
        if self.pid is None:
            return 0
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


@contextlib.contextmanager
def backing(scratch: Path) -> Iterator[tuple[Path, str]]:
    """A fresh XFS on a loop device where that can be made, else a directory of *scratch*. Yields it and its name."""
    plain = scratch / "backing"
    plain.mkdir()
    image = scratch / "xfs.img"
    if os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        kind = subprocess.run(["stat", "-f", "-c", "%T", str(plain)], check=True, capture_output=True, text=True)
        yield plain, f"{kind.stdout.strip()} (no XFS image could be made)"
        return
    with image.open("wb") as file:
        file.truncate(8 << 30)
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(plain)], check=True)
    try:
        yield plain, "xfs on a loop device"
    finally:
        subprocess.run(["umount", str(plain)], check=False)
        subprocess.run(["umount", "-l", str(plain)], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def native(source: Path) -> Iterator[Subject]:
    """The directory itself."""
    yield Subject("native", source)


@contextlib.contextmanager
def fusevol(source: Path, scratch: Path, *, quota: bool) -> Iterator[Subject]:
    """A mount as the agent makes it for a claim; without *quota*, without the ledger."""
    name = "fusevol" if quota else "fusevol-noquota"
    home = scratch / name
    mountpoint = home / "mnt"
    mountpoint.mkdir(parents=True)
    spec = MountSpec(
        mount_id=name,
        source=str(source),
        mountpoint=str(mountpoint),
        control=str(home / "control"),
        log=str(home / "log"),
        quota="ledger" if quota else "none",
        ledger=str(home / "ledger.json") if quota else None,
        limit_bytes=LIMIT_BYTES if quota else None,
        limit_inodes=LIMIT_INODES if quota else None,
    )
    spec.save(home / "spec.json")
    ready, told = os.pipe()
    with _keeper(home), os.fdopen(ready) as answers:
        try:
            request = {"op": "start", "mount_id": name, "spec": str(home / "spec.json"), "log": spec.log}
            answer, received = client.call(home, request, [told])
        finally:
            os.close(told)
        with os.fdopen(received[0]) as ended:
            said = [line.rstrip("\n") for line in answers]  # the server closes it when it has mounted
            if said[-1:] != ["READY"]:
                raise RuntimeError(f"The volume server did not start ({said}): see {spec.log}.")
            try:
                yield Subject(name, mountpoint, answer["pid"])
            finally:
                subprocess.run(["umount", str(mountpoint)], check=False, stderr=subprocess.DEVNULL)
                if not select.select([ended], [], [], 10)[0]:
                    signal.pidfd_send_signal(ended.fileno(), signal.SIGTERM)
                    select.select([ended], [], [], 10)


@contextlib.contextmanager
def _keeper(home: Path) -> Iterator[None]:
    """A keeper of its own for one mount."""
    ready, told = os.pipe()
    command = [sys.executable, "-m", "fusevol.keeper", "--dir", str(home), "--ready-fd", str(told)]
    keeper = subprocess.Popen(command, pass_fds=[told], start_new_session=True)
    os.close(told)
    try:
        with os.fdopen(ready) as answers:
            if answers.readline() != "READY\n":
                raise RuntimeError(f"The keeper did not start: see {home}/keeper.log.")
        yield
    finally:
        keeper.terminate()
        keeper.wait(10)


@contextlib.contextmanager
def bindfs(source: Path, scratch: Path) -> Iterator[Subject]:
    """Debian's bindfs with its own defaults."""
    mountpoint = scratch / "bindfs"
    mountpoint.mkdir()
    before = mountpoint.stat().st_dev
    server = subprocess.Popen(["bindfs", "-f", str(source), str(mountpoint)], start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while mountpoint.stat().st_dev == before:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("bindfs did not mount: run it by hand to see why.")
            time.sleep(0.01)
        yield Subject("bindfs", mountpoint, server.pid)
    finally:
        _stop(server, mountpoint)


def _stop(server: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Unmount and wait; lazily and by force if it does not work the polite way."""
    subprocess.run(["umount", str(mountpoint)], check=False, stderr=subprocess.DEVNULL)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        subprocess.run(["umount", "-l", str(mountpoint)], check=False, stderr=subprocess.DEVNULL)
        server.kill()
        server.wait(10)
