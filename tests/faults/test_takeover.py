"""kill -9 of a volume server under load, and another one that goes on: no call fails, nothing is lost or doubled."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusevol.server.client import call
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from tests.conftest import LoopFs
from tests.support import eventually
from tests.support.logs import LogCheck
from tests.support.takeover import Holder

pytestmark = [pytest.mark.root, pytest.mark.slow]

KILLS = int(os.environ.get("FUSEVOL_KILLS", "10"))


class Work:
    """A thread that calls *step* with 0, 1, 2, … until told to stop; its first failure ends it and is kept."""

    def __init__(self, step: Callable[[int], object]) -> None:
        self._step = step
        self.done = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._step(self.done)
                self.done += 1
        except BaseException as e:  # noqa: BLE001  # told by the test
            self.failure = e

    def stop(self) -> bool:
        """Whether it has stopped within a while."""
        self._stop.set()
        self._thread.join(30)
        return not self._thread.is_alive()


@pytest.fixture(params=["none", "ledger"])
def held(
    request: pytest.FixtureRequest, workdir: Path, loop_fs: LoopFs, logs: LogCheck
) -> Iterator[tuple[Holder, MountSpec]]:
    """A mount on /dev/fuse, with passthrough (no quota) and with the ledger, whose server may be killed."""
    source = loop_fs("xfs", 1 << 30) / "volume"
    point = workdir / "mnt"
    source.mkdir()
    point.mkdir()
    spec = MountSpec(
        mount_id="m",
        source=str(source),
        mountpoint=str(point),
        control=str(workdir / "control"),
        log=str(workdir / "log"),
        quota=request.param,
        ledger=str(workdir / "ledger"),
        transport="kernel",
        io_uring=False,
    )
    logs.watch(workdir / "log")
    holder = Holder(spec, workdir / "spec.json")
    rescue = threading.Timer(150, mount.abort, [point])
    rescue.start()
    try:
        holder.start()
        yield holder, spec
    finally:
        rescue.cancel()
        for found in mount.below(point):
            mount.abort(found.minor)
            mount.unmount(point, lazy=True)
        holder.close()


def test_mapped_writes_are_noticed_by_the_next(held: tuple[Holder, MountSpec]) -> None:
    """A file that was mapped before the kill shows the time of a write to the mapping after it."""
    holder, spec = held
    path = Path(spec.mountpoint) / "f"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as f:
        mapping = mmap.mmap(f.fileno(), 4096)
    with mapping:
        holder.kill()
        holder.start()
        path.stat()
        os.utime(path, (1, 1))
        mapping[:4] = b"late"
        mapping.flush()
        noticed = eventually(lambda: path.stat().st_mtime > 1e9, 5, what="the new time of change")

    assert noticed
    assert path.read_bytes()[:5] == b"late\0"


def test_no_system_call_fails(held: tuple[Holder, MountSpec]) -> None:
    """Open files, files without a name, names made and removed, appends: all go on, exactly once."""
    holder, spec = held
    root = Path(spec.mountpoint)
    block = os.open(root / "block", os.O_CREAT | os.O_RDWR)
    log = os.open(root / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    nameless = os.open(root / "gone", os.O_CREAT | os.O_RDWR)
    os.write(nameless, b"still here")
    os.unlink(root / "gone")
    (root / "a").mkdir()
    (root / "b").mkdir()

    def rewrite(n: int) -> None:
        data = n.to_bytes(8, "little")
        os.pwrite(block, data, n % 1000 * 8)
        assert os.pread(block, 8, n % 1000 * 8) == data

    def rewrite_nameless(n: int) -> None:
        # written each time, since a read would be answered from the kernel's cache
        os.pwrite(nameless, b"%010d" % n, 0)
        assert os.pread(nameless, 10, 0) == b"%010d" % n

    def names(directory: str) -> Callable[[int], None]:
        def step(n: int) -> None:
            one, other = root / directory / f"one{n}", root / directory / f"other{n}"
            fd = os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, b"x" * 5000)
            os.close(fd)
            os.rename(one, other)
            os.link(other, one)
            os.unlink(other)
            other.mkdir()
            other.rmdir()
            other.symlink_to("target")
            other.unlink()
            assert one.stat().st_size == 5000
            if n % 2:
                one.unlink()

        return step

    work = {
        "rewrite": Work(rewrite),
        "append": Work(lambda n: os.write(log, b"%07d\n" % n)),
        "nameless": Work(rewrite_nameless),
        "a": Work(names("a")),
        "b": Work(names("b")),
    }
    pids = []
    for _ in range(KILLS):
        before = {name: w.done for name, w in work.items()}
        eventually(
            lambda before=before: all(w.failure or w.done > before[name] for name, w in work.items()),
            30,
            interval=0.02,
            what="all are at work",
        )
        holder.kill()
        holder.start()
        assert holder.server is not None
        pids.append(holder.server.pid)
    stopped = [w.stop() for w in work.values()]
    failures = {name: w.failure for name, w in work.items() if w.failure}
    lines = (root / "log").read_bytes().splitlines()
    left = {name: sorted(os.listdir(root / name)) for name in ("a", "b")}
    for fd in (block, log, nameless):
        os.close(fd)
    drained = call(Path(spec.control), {"op": "drain"}, timeout=20.0)
    counted = subprocess.run(["du", "-s", "--block-size=1", spec.source], check=True, capture_output=True, text=True)
    real = counted.stdout.split()[0]

    assert all(stopped)
    assert failures == {}
    assert len(set(pids)) == KILLS
    assert lines == [b"%07d" % n for n in range(work["append"].done)]
    assert left == {name: sorted(f"one{n}" for n in range(0, work[name].done, 2)) for name in ("a", "b")}
    if spec.quota == "ledger":
        # what a kill left open stays known, and is counted, until the unmount
        assert 0 <= drained["usage"]["used_bytes"] - int(real) <= KILLS * 16384
