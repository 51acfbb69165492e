"""The ledger: never over the limit, trusted after a clean end only."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fusevol.quota import ledger as ledger_module
from fusevol.quota.checkpoint import Checkpoint
from fusevol.quota.ledger import Ledger
from fusevol.quota.scan import ScanProgress, Total, scan
from fusevol.usage import Quota, Usage


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree of two files in two directories."""
    (tmp_path / "data" / "below").mkdir(parents=True)
    (tmp_path / "data" / "file").write_bytes(b"x" * 10000)
    (tmp_path / "data" / "below" / "other").write_bytes(b"x")
    return tmp_path / "data"


def fresh(tmp_path: Path, limit_bytes: int | None = None, limit_inodes: int | None = None) -> Ledger:
    """A ledger whose counters are 0."""
    source = tmp_path / "empty"
    source.mkdir()
    made = Ledger.open(tmp_path / "fresh.json", source, limit_bytes=limit_bytes, limit_inodes=limit_inodes)
    used = made.usage()
    made.settle(0, 0, -used.used_bytes, -used.used_inodes)
    return made


def open_counting(checkpoint: Path, source: Path) -> tuple[Ledger, list[ScanProgress]]:
    """A ledger without limits, and the progress reports of its scan: none if it trusted the checkpoint."""
    reports: list[ScanProgress] = []
    made = Ledger.open(checkpoint, source, limit_bytes=None, limit_inodes=None, progress=reports.append)
    return made, reports


def refusal(made: Ledger, nbytes: int, inodes: int) -> int | None:
    """The errno with which a reservation is refused."""
    try:
        made.reserve(nbytes, inodes)
    except OSError as e:
        return e.errno
    return None


def test_is_a_quota(tmp_path: Path) -> None:
    """The ledger fits the protocol that the filesystem asks (checked by mypy), and shows its limits."""
    quota: Quota = fresh(tmp_path, 100, 10)

    assert quota.usage() == Usage(0, 0, 100, 10)


@pytest.mark.parametrize(("nbytes", "inodes"), [(101, 0), (0, 11), (101, 1), (1, 11)])
def test_refuses_and_reserves_nothing(tmp_path: Path, nbytes: int, inodes: int) -> None:
    """A reservation over either limit is ENOSPC and takes nothing of the other."""
    made = fresh(tmp_path, 100, 10)
    code = refusal(made, nbytes, inodes)

    assert (code, made.reserved()) == (errno.ENOSPC, (0, 0))


def test_exactly_the_limit(tmp_path: Path) -> None:
    """The last byte and the last inode can be had, one more of either cannot."""
    made = fresh(tmp_path, 100, 10)
    codes = [refusal(made, 100, 10), refusal(made, 1, 0), refusal(made, 0, 1)]

    assert codes == [None, errno.ENOSPC, errno.ENOSPC]


@pytest.mark.parametrize(
    ("limit", "used", "asked", "granted"),
    [(None, 0, 10000, 8192), (10000, 0, 20480, 8192), (8192, 4096, 8192, 4096), (4096, 1, 4096, 0), (10, 50, 4096, 0)],
)
def test_reserve_upto(tmp_path: Path, limit: int | None, used: int, asked: int, granted: int) -> None:
    """As much as there is room for, in whole granules; nothing when over the limit."""
    made = fresh(tmp_path, limit)
    made.settle(0, 0, used, 0)
    got = made.reserve_upto(asked, 4096)

    assert (got, made.reserved()) == (granted, (granted, 0))


def test_lowered_limit(tmp_path: Path) -> None:
    """A limit below what is used refuses growth and nothing else, until enough is freed."""
    made = fresh(tmp_path, 100, 10)
    made.settle(0, 0, 80, 5)
    made.set_limits(50, 5)
    over = [refusal(made, 1, 0), refusal(made, 0, 1), refusal(made, 0, 0), made.reserve_upto(10, 1)]
    made.settle(0, 0, -40, -1)
    freed = [refusal(made, 10, 1), refusal(made, 1, 0)]

    assert (over, freed) == ([errno.ENOSPC, errno.ENOSPC, None, 0], [None, errno.ENOSPC])


def test_concurrent(tmp_path: Path) -> None:
    """16 threads that reserve and settle at random are never over the limit by a byte, and every byte adds up."""
    limit, inode_limit = 1 << 20, 500
    made = fresh(tmp_path, limit, inode_limit)
    start = threading.Barrier(16)
    held = [(0, 0)] * 16
    refused = [0] * 16
    worst = [0, 0]

    def look() -> None:
        """What the ledger has taken and promised right now, while the others go on."""
        with made._lock:
            worst[0] = max(worst[0], made._used_bytes + made._reserved_bytes)
            worst[1] = max(worst[1], made._used_inodes + made._reserved_inodes)

    def work(index: int) -> None:
        chance = random.Random(index)
        nbytes = inodes = 0
        start.wait()
        for _ in range(4000):
            if chance.random() < 0.35:
                give, less = chance.randint(0, nbytes), chance.randint(0, inodes)
                made.settle(0, 0, -give, -less)
                nbytes, inodes = nbytes - give, inodes - less
                continue
            more = chance.randint(0, 1)
            if chance.random() < 0.5:
                asked, more = made.reserve_upto(chance.randint(1, 200_000), 512), 0
            else:
                asked = chance.randint(1, 200_000)
                if refusal(made, asked, more) is not None:
                    refused[index] += 1
                    continue
            look()
            cost = chance.randint(0, asked)
            made.settle(asked, more, cost, more)
            nbytes, inodes = nbytes + cost, inodes + more
        held[index] = nbytes, inodes

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(refused) > 100, "the limit was hardly reached"
    assert worst[0] > limit // 2

    assert worst[0] <= limit
    assert worst[1] <= inode_limit
    assert made.reserved() == (0, 0)
    assert made.usage()[:2] == (sum(h[0] for h in held), sum(h[1] for h in held))


def test_fast(tmp_path: Path) -> None:
    """A reservation and its settlement take microseconds at most (measured: 0.6; the bound leaves room for load)."""
    made = fresh(tmp_path, 1 << 40, 1 << 30)
    best = 1.0
    for _ in range(10):
        begin = time.perf_counter()
        for _ in range(5000):
            made.reserve(4096, 1)
            made.settle(4096, 1, 0, 0)
        best = min(best, (time.perf_counter() - begin) / 5000)

    assert best < 5e-6


def test_first_open_counts(tmp_path: Path, tree: Path) -> None:
    """Without a checkpoint the tree is counted, with progress, and the counters are du's."""
    made, reports = open_counting(tmp_path / "l.json", tree)

    assert made.usage()[:2] == scan(tree) == (reports[-1].nbytes, reports[-1].inodes)


def test_clean_end_is_trusted(tmp_path: Path, tree: Path) -> None:
    """After a clean end the counters come from the checkpoint without a scan."""
    first, _ = open_counting(tmp_path / "l.json", tree)
    first.settle(0, 0, 12345, 7)
    expected = first.usage()
    first.close()
    second, reports = open_counting(tmp_path / "l.json", tree)

    assert (second.usage(), reports) == (expected, [])


def test_killed_owner(tmp_path: Path, tree: Path) -> None:
    """A process killed with a trusted ledger open leaves a checkpoint that is not trusted."""
    open_counting(tmp_path / "l.json", tree)[0].close()
    script = (
        "import os, signal, sys; from pathlib import Path; from fusevol.quota.ledger import Ledger\n"
        "l = Ledger.open(Path(sys.argv[1]), Path(sys.argv[2]), limit_bytes=None, limit_inodes=None)\n"
        "l.settle(0, 0, 999, 9); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "l.json"), str(tree)]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[3], timeout=30)
    assert done.returncode == -9
    made, reports = open_counting(tmp_path / "l.json", tree)

    assert reports
    assert made.usage()[:2] == scan(tree)


def test_died_scanning(tmp_path: Path, tree: Path) -> None:
    """A stop in the middle of the scan is followed by another scan."""

    def stop(progress: ScanProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ledger.open(tmp_path / "l.json", tree, limit_bytes=None, limit_inodes=None, progress=stop)

    assert open_counting(tmp_path / "l.json", tree)[1]


def test_other_directory(tmp_path: Path, tree: Path) -> None:
    """A checkpoint beside a copy of the tree is not trusted: the directory is another inode."""
    open_counting(tmp_path / "l.json", tree)[0].close()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(tree), str(copy)], check=True)

    assert open_counting(tmp_path / "l.json", copy)[1]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"state": "dirty"}, {"used_bytes": -1}, {"used_bytes": "5"}, {"used_inodes": True},
        {"used_inodes": 1.5}, {"source": None}, {"source": {"inode": 1}},
    ],
)  # fmt: skip
def test_damaged_checkpoint(tmp_path: Path, tree: Path, change: dict[str, object]) -> None:
    """A checkpoint with a field that makes no sense is not trusted."""
    file = tmp_path / "l.json"
    open_counting(file, tree)[0].close()
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    made, reports = open_counting(file, tree)

    assert reports
    assert made.usage()[:2] == scan(tree)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": 1'])
def test_torn_checkpoint(tmp_path: Path, tree: Path, text: bytes) -> None:
    """A checkpoint that is no JSON object is not trusted, and replaced."""
    file = tmp_path / "l.json"
    file.write_bytes(text)
    made, reports = open_counting(file, tree)
    made.close()

    assert reports
    assert Checkpoint.load(file) is not None


def test_marked_before_use(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark "in use" is on disk before counting begins and before the ledger is given out."""
    file = tmp_path / "l.json"
    states = []

    def counted(source: Path, progress: object = None) -> Total:
        states.append(json.loads(file.read_text())["state"])
        return scan(source)

    monkeypatch.setattr(ledger_module, "scan", counted)
    made, _ = open_counting(file, tree)
    made.close()
    open_counting(file, tree)
    states.append(json.loads(file.read_text())["state"])

    assert states == ["in-use", "in-use"]


def test_unsettled_end_is_not_clean(tmp_path: Path, tree: Path) -> None:
    """A ledger closed with a reservation open is counted again: an operation never told its cost."""
    made, _ = open_counting(tmp_path / "l.json", tree)
    made.reserve(1, 0)
    made.close()

    assert open_counting(tmp_path / "l.json", tree)[1]


def test_close_twice(tmp_path: Path, tree: Path) -> None:
    """A second close does not write over the mark of the ledger that was opened after the first."""
    made, _ = open_counting(tmp_path / "l.json", tree)
    made.close()
    open_counting(tmp_path / "l.json", tree)
    made.close()

    assert json.loads((tmp_path / "l.json").read_text())["state"] == "in-use"


def test_recount_changes_nothing(tmp_path: Path, tree: Path) -> None:
    """A recount tells what is on disk and leaves the counters alone."""
    made, _ = open_counting(tmp_path / "l.json", tree)
    truth = made.usage()
    made.settle(0, 0, 512, 1)
    counted = made.recount(tree)

    assert (counted, made.usage().used_bytes) == (truth, truth.used_bytes + 512)


def test_descriptors(tmp_path: Path, tree: Path) -> None:
    """Opening and closing a ledger leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    open_counting(tmp_path / "l.json", tree)[0].close()

    assert len(os.listdir("/proc/self/fd")) == before
