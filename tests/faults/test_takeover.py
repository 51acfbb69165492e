"""kill -9 of a volume server under load, and another one that goes on: no call fails, nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from fusevol.fs.memory import UNKNOWN
from fusevol.server.client import call
from fusevol.server.memory import SessionMemory
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from tests.conftest import LoopFs
from tests.fs.machine import du
from tests.support import eventually
from tests.support.devices import Kind
from tests.support.logs import LogCheck
from tests.support.takeover import Holder

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.expect_log("the connection was aborted"),  # files may still be open in it when the test ends
]

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


def counts_like_du(spec: MountSpec) -> bool:
    """Whether the ledger is where du is, as soon as the kernel has told of what it has forgotten."""

    def same() -> bool:
        counted = call(Path(spec.control), {"op": "drain"}, timeout=20.0)["usage"]
        return (counted["used_bytes"], counted["used_inodes"]) == du(Path(spec.source))

    return eventually(same, 10, what="ledger equals du")


class StartHolder(Protocol):
    """Starts a mount on a new filesystem of *kind*; see :func:`hold`."""

    def __call__(self, kind: Kind, **fields: Any) -> tuple[Holder, MountSpec]: ...


@pytest.fixture
def hold(workdir: Path, loop_fs: LoopFs, logs: LogCheck) -> Iterator[StartHolder]:
    """A factory for one mount on /dev/fuse whose server may be killed; *fields* are those of MountSpec."""
    started: list[Holder] = []
    point = workdir / "mnt"

    def start(kind: Kind, **fields: Any) -> tuple[Holder, MountSpec]:
        source = loop_fs(kind, 1 << 30) / "volume"
        source.mkdir()
        point.mkdir()
        base: dict[str, Any] = {
            "mount_id": "m",
            "source": str(source),
            "mountpoint": str(point),
            "control": str(workdir / "control"),
            "log": str(workdir / "log"),
            "ledger": str(workdir / "ledger"),
            "transport": "kernel",
            "io_uring": False,
        }
        spec = MountSpec(**(base | fields))
        logs.watch(workdir / "log")
        started.append(Holder(spec, workdir / "spec.json"))
        started[-1].start()
        return started[-1], spec

    rescue = threading.Timer(150, mount.abort, [point])
    rescue.start()
    try:
        yield start
    finally:
        rescue.cancel()
        for found in mount.below(point):
            mount.abort(found.minor)
            mount.unmount(point, lazy=True)
        for holder in started:
            holder.close()


@pytest.fixture(params=["none", "ledger"])
def held(request: pytest.FixtureRequest, hold: StartHolder) -> tuple[Holder, MountSpec]:
    """A mount with passthrough (no quota) and with the ledger."""
    return hold("xfs", quota=request.param)


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
    exact = spec.quota != "ledger" or counts_like_du(spec)

    assert all(stopped)
    assert failures == {}
    assert len(set(pids)) == KILLS
    assert lines == [b"%07d" % n for n in range(work["append"].done)]
    assert left == {name: sorted(f"one{n}" for n in range(0, work[name].done, 2)) for name in ("a", "b")}
    assert exact
    assert holder.scans == 0


MIB = 1 << 20


@contextlib.contextmanager
def ledger_load(root: Path) -> Iterator[list[Work]]:
    """Threads that change everything that a ledger counts, in one directory and partly in one file, until the end."""
    shared = os.open(root / "shared", os.O_CREAT | os.O_RDWR)

    def grow(n: int) -> None:
        try:
            os.pwrite(shared, b"s" * 9000, n * 5000 % (8 * MIB))
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
        if n % 50 == 0:
            os.ftruncate(shared, n * 777 % MIB)

    def turnover(own: str) -> Callable[[int], None]:
        def step(n: int) -> None:
            path = root / f"{own}{n % 7}"
            try:
                with path.open("wb") as file:
                    file.write(b"t" * (n * 997 % 60_000))
                    file.flush()
                    if n % 3 == 0:
                        path.unlink()
                        file.write(b"nameless" * 1000)
                if n % 5 == 0:
                    (root / f"{own}d").mkdir(exist_ok=True)
                    path.with_name(f"{own}s").symlink_to("s" * 900)
                    os.replace(path.with_name(f"{own}s"), root / f"{own}o")
                    (root / f"{own}d").rmdir()
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise

        return step

    work = [Work(grow), Work(grow), Work(turnover("a")), Work(turnover("b"))]
    try:
        yield work
    finally:
        stopped = [w.stop() for w in work]
        os.close(shared)
    assert all(stopped)


@pytest.mark.parametrize("kind", ["xfs", "ext4", "btrfs"])
def test_counters_go_on(hold: StartHolder, kind: Kind) -> None:
    """Whenever a server is killed, the next one's counters are du's as soon as the load is over, without a scan."""
    holder, spec = hold(kind, quota="ledger", limit_bytes=6 * MIB)
    wrong, failures, in_flight = [], [], 0
    for number in range(5 * KILLS):
        with ledger_load(Path(spec.mountpoint)) as work:
            eventually(lambda work=work, n=number: all(w.failure or w.done > n for w in work), 30, interval=0.005)
            holder.kill()
            holder.start()
        failures += [w.failure for w in work if w.failure]
        if not counts_like_du(spec):
            wrong.append(number)
        in_flight = Path(spec.log).read_text().count("in flight")
        if number + 1 >= KILLS and in_flight:
            break
    print(f"{in_flight} of {number + 1} kills were in the middle of an operation")

    assert failures == []
    assert wrong == []
    assert holder.scans == 0
    assert in_flight > 0


def test_changed_limits_go_on(hold: StartHolder, workdir: Path) -> None:
    """Limits that were changed while mounted hold in the next server, also if the mount's file has the old ones."""
    holder, spec = hold("xfs", quota="ledger", limit_bytes=8 * MIB, limit_inodes=100)
    file = Path(spec.mountpoint) / "f"
    file.write_bytes(b"x" * MIB)
    confirmed = call(Path(spec.control), {"op": "set-limits", "limit_bytes": 2 * MIB, "limit_inodes": None}, timeout=20)
    holder.kill()
    spec.save(workdir / "spec.json")
    holder.start()
    usage = call(Path(spec.control), {"op": "usage"}, timeout=20)["usage"]
    with pytest.raises(OSError, match="No space left"):
        file.write_bytes(b"x" * (3 * MIB))

    assert (usage["limit_bytes"], usage["limit_inodes"]) == (2 * MIB, None)
    assert usage == confirmed["usage"]


@pytest.mark.expect_log("counted anew")
@pytest.mark.parametrize("damage", ["counters", "operation"])
def test_what_cannot_be_understood_is_counted_anew(hold: StartHolder, damage: str) -> None:
    """Where the session memory makes no sense, the volume is counted, open files without a name included."""
    holder, spec = hold("xfs", quota="ledger", limit_bytes=64 * MIB)
    root = Path(spec.mountpoint)
    for i in range(50):
        (root / f"f{i}").write_bytes(b"x" * 5000)
    with (root / "gone").open("wb", buffering=0) as nameless:
        nameless.write(b"n" * 200_000)
        (root / "gone").unlink()
        holder.kill()
        assert holder.held is not None
        ends = (socket.socket(fileno=os.dup(holder.held.lot_in)), socket.socket(fileno=os.dup(holder.held.lot_out)))
        memory = SessionMemory(holder.held.session, ends)
        if damage == "counters":
            memory.journal.words[memory.journal.counters + 2] = -5
        else:
            where = memory.nodes()[(Path(spec.source) / "f7").stat().st_ino]
            memory.journal.load()
            memory.journal.know(where, UNKNOWN)
            memory.journal.begin((where,))
        for end in ends:
            end.close()
        holder.start()
        nameless.write(b"n" * 100_000)
        status = os.fstat(nameless.fileno())
        call(Path(spec.control), {"op": "drain"}, timeout=20.0)
        counted = call(Path(spec.control), {"op": "usage"}, timeout=20.0)["usage"]
        seen = du(Path(spec.source))

    assert holder.scans == 1
    assert (counted["used_bytes"], counted["used_inodes"]) == (seen[0] + status.st_blocks * 512, seen[1] + 1)
    assert counts_like_du(spec)


def test_a_large_volume_goes_on_at_once(hold: StartHolder) -> None:
    """Of a volume with many files, all known to the kernel, the next server looks at none before it answers."""
    holder, spec = hold("xfs", quota="ledger", limit_bytes=1 << 30)
    source, root = Path(spec.source), Path(spec.mountpoint)
    for d in range(10):
        (source / str(d)).mkdir()
        for f in range(1000):
            os.mknod(source / str(d) / str(f))
    for d in range(10):
        assert sum(entry.stat().st_size == 0 for entry in os.scandir(root / str(d))) == 1000
    before = call(Path(spec.control), {"op": "status"}, timeout=20.0)
    with (root / "open").open("wb", buffering=0) as file:
        (root / "closed").touch()  # from now on the kernel knows that a close needs no request
        holder.kill()
        began = time.perf_counter()
        holder.start()
        file.write(b"x")
        took = time.perf_counter() - began
        after = call(Path(spec.control), {"op": "status"}, timeout=20.0)
    print(f"{took * 1000:.0f} ms from the start of the process to the first answer")

    assert before["stats"]["nodes"] >= 10_000
    assert after["stats"]["nodes"] >= before["stats"]["nodes"]
    assert after["stats"]["descriptors"] < 20
    assert holder.scans == 0
