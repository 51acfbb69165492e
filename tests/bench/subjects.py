"""What is compared: bare directories and what serves them, each on a backing tree of its own.

A subject that this machine cannot have raises :class:`LeftOutError` with the reason in words when it is entered.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fusevol.keeper import client
from fusevol.server.client import call
from fusevol.server.spec import MountSpec
from fusevol.transport.kernel import parameter
from tests.bench import caches
from tests.bench.kinds import Group

LIMIT_BYTES: Final = 3 << 30
LIMIT_INODES: Final = 1 << 20
TOOLS: Final = Path("build/bench/tools")
"""What scripts/bench-tools.sh has built."""
ALL: Final[tuple[Group, ...]] = ("names", "listing", "data", "programs", "memory")
FilesystemKind = Literal["xfs", "btrfs"]


class LeftOutError(Exception):
    """A subject that cannot be had here: one sentence."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to measure: work below ``root``; ``pid`` is the process that serves it, if there is one."""

    name: str
    source: Path
    root: Path
    mountpoint: Path | None
    """What to remount for cold names; ``None`` where that is not ours (then the whole machine's are dropped)."""
    groups: tuple[Group, ...]
    identities: bool = True
    """Whether others than root may use it, and own what they make."""
    pid: int | None = None

    def forget_names(self) -> None:
        """The next look-up of every name asks the filesystem; see :mod:`tests.bench.caches`."""
        if self.mountpoint is None:
            caches.forget_all_names()
        else:
            caches.forget_names(self.mountpoint)
        caches.settle(self.pid)

    def private_bytes(self) -> int:
        """Memory that only this mount's process has (Private_Clean + Private_Dirty of smaps_rollup)."""
        if self.pid is None:
            return 0
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list of subjects: how to make it, on what, and what it is measured in."""

    name: str
    make: Callable[[Place, str], AbstractContextManager[tuple[Path, int | None]]]
    groups: tuple[Group, ...] = ALL
    identities: bool = True
    on: FilesystemKind = "xfs"
    native: str = "native"
    """The bare directory on the same filesystem, which its ratios are to."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one subject lives: its backing directory, and a scratch directory of its own outside the mount."""

    source: Path
    scratch: Path

    def mountpoint(self) -> Path:
        """A new directory to mount at."""
        point = self.scratch / "mnt"
        point.mkdir()
        return point


@contextlib.contextmanager
def backing(scratch: Path, kind: FilesystemKind) -> Iterator[Path]:
    """A fresh filesystem on a loop device, mounted. Raises :class:`LeftOutError`."""
    if not shutil.which(f"mkfs.{kind}"):
        raise LeftOutError(f"mkfs.{kind} is not installed")
    point = scratch / kind
    point.mkdir()
    image = scratch / f"{kind}.img"
    with image.open("wb") as file:
        file.truncate(8 << 30)
    for command in ([f"mkfs.{kind}", "-q", str(image)], ["mount", "-o", "loop", str(image), str(point)]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise LeftOutError(f"no {kind} on a loop device here ({done.stderr.strip()})")
    try:
        yield point
    finally:
        _unmount(point)


@contextlib.contextmanager
def native(place: Place, _name: str) -> Iterator[tuple[Path, int | None]]:
    """The directory itself."""
    yield place.source, None


def fusevol(*, quota: bool, io_uring: bool) -> Callable[[Place, str], AbstractContextManager[tuple[Path, int | None]]]:
    """A mount as the agent makes it for a claim; without *quota*, without the ledger."""

    @contextlib.contextmanager
    def make(place: Place, name: str) -> Iterator[tuple[Path, int | None]]:
        home = place.scratch
        point = place.mountpoint()
        spec = MountSpec(
            mount_id=name,
            source=str(place.source),
            mountpoint=str(point),
            control=str(home / "control"),
            log=str(home / "log"),
            quota="ledger" if quota else "none",
            ledger=str(home / "ledger.json") if quota else None,
            limit_bytes=LIMIT_BYTES if quota else None,
            limit_inodes=LIMIT_INODES if quota else None,
            io_uring=io_uring,
        )
        spec.save(home / "spec.json")
        with _keeper(home):
            ended, pid = _start(home, spec)
            try:
                status = call(Path(spec.control), {"op": "status"})
                if status["io_uring"] != io_uring:
                    raise LeftOutError(f"requests do not come over io_uring ({status['why_not']})")
                yield point, pid
            finally:
                _unmount(point)
                if not select.select([ended], [], [], 10)[0]:
                    signal.pidfd_send_signal(ended, signal.SIGTERM)
                    select.select([ended], [], [], 10)
                os.close(ended)

    return make


@contextlib.contextmanager
def offering_io_uring(path: Path = parameter.PARAMETER) -> Iterator[None]:
    """The kernel's FUSE offers io_uring meanwhile; what the parameter was before, it is afterwards, come what may.

    Mounts that exist are not changed by it (the kernel looks when a mount begins), and those that others make meanwhile
    may use it: so this is held for as long as a mount takes. Raises :class:`LeftOutError`.
    """
    try:
        before = path.read_text(encoding="ascii").strip()
    except OSError as e:
        raise LeftOutError("this kernel has no FUSE over io_uring (Linux 6.14 has)") from e
    try:
        try:
            path.write_text("Y", encoding="ascii")
        except OSError as e:
            raise LeftOutError(f"FUSE over io_uring cannot be switched on ({path}: {e.strerror})") from e
        yield
    finally:
        if path.read_text(encoding="ascii").strip() != before:
            path.write_text(before, encoding="ascii")


def _start(home: Path, spec: MountSpec) -> tuple[int, int]:
    """Have the keeper start a server. Returns a pidfd of it and its pid when it has mounted."""
    ready, told = os.pipe()
    with os.fdopen(ready) as answers, offering_io_uring() if spec.io_uring else contextlib.nullcontext():
        try:
            request = {"op": "start", "mount_id": spec.mount_id, "spec": str(home / "spec.json"), "log": spec.log}
            answer, received = client.call(home, request, [told])
        finally:
            os.close(told)
        said = [line.rstrip("\n") for line in answers]  # the server closes it when it has mounted
    if said[-1:] != ["READY"]:
        os.close(received[0])
        raise RuntimeError(f"The volume server did not start ({said}): see {spec.log}.")
    return received[0], answer["pid"]


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
def bindfs(place: Place, _name: str) -> Iterator[tuple[Path, int | None]]:
    """Debian's bindfs with its own defaults."""
    if not shutil.which("bindfs"):
        raise LeftOutError("bindfs is not installed")
    with _foreground(["bindfs", "-f", str(place.source)], place.mountpoint()) as served:
        yield served


@contextlib.contextmanager
def passthrough_hp(place: Place, _name: str) -> Iterator[tuple[Path, int | None]]:
    """libfuse's example with its own defaults: caches of a day, write-back, splice, threads as needed."""
    program = TOOLS / "passthrough_hp"
    if not program.exists():
        why = TOOLS / "passthrough_hp.why-not"
        raise LeftOutError(why.read_text(encoding="utf-8").strip() if why.exists() else f"{program} has not been built")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < 16_384:
        raise LeftOutError(f"it holds a descriptor for each name that the kernel knows, and {limit} are too few")
    command = [str(program.resolve()), "--foreground", str(place.source)]
    with _foreground(command, place.mountpoint()) as served:
        yield served


@contextlib.contextmanager
def _foreground(command: list[str], point: Path) -> Iterator[tuple[Path, int]]:
    """A FUSE server that is started with a mount point as its last argument and ends when that is unmounted."""
    before = point.stat().st_dev
    server = subprocess.Popen([*command, str(point)], start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while point.stat().st_dev == before:
            if server.poll() is not None or time.monotonic() > deadline:
                raise LeftOutError(f"it did not mount; run it by hand to see why: {' '.join(command)} DIRECTORY")
            time.sleep(0.01)
        yield point, server.pid
    finally:
        _unmount(point)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)


def _unmount(point: Path) -> None:
    """Unmount, lazily if it does not work the polite way."""
    if subprocess.run(["umount", str(point)], check=False, stderr=subprocess.DEVNULL).returncode:
        subprocess.run(["umount", "-l", str(point)], check=False, stderr=subprocess.DEVNULL)


ENTRIES: Final = (
    Entry("native", native),
    Entry("fusevol", fusevol(quota=True, io_uring=False)),
    Entry("fusevol-noquota", fusevol(quota=False, io_uring=False)),
    Entry("fusevol-uring", fusevol(quota=True, io_uring=True)),
    Entry("fusevol-uring-noquota", fusevol(quota=False, io_uring=True), ("names", "listing", "memory")),
    Entry("bindfs", bindfs),
    Entry("passthrough_hp", passthrough_hp, identities=False),
    Entry("native-btrfs", native, ("data",), on="btrfs", native="native-btrfs"),
    Entry("noquota-btrfs", fusevol(quota=False, io_uring=False), ("data",), on="btrfs", native="native-btrfs"),
)
"""The data of a volume without a limit goes by passthrough, by io_uring or not: no need to measure it twice."""
