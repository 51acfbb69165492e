"""The guests themselves: what the other tests of this directory, and a later look at a disk, can rely on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import TREE, Disk, Guest, GuestError
from tests.support.guest_items import GuestTestError, Report, judge
from tests.support.polling import eventually

pytestmark = pytest.mark.root
WRITER = """
sysctl -qw vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=100000
mkfs.ext4 -q /dev/vda
mkdir /run/disk && mount /dev/vda /run/disk && cd /run/disk || exit
echo kept >synced && sync -f synced
echo lost >unsynced
cat synced unsynced
touch /etc/not-of-the-host
echo written >"$SHARED/written"
exec tail -f /dev/null
"""
READER = """
mkdir /run/disk && mount /dev/vda /run/disk && cd /run/disk || exit
cat synced
test -s unsynced || exit 7
"""


@pytest.fixture
def shared(workdir: Path) -> Path:
    """A directory to share with a guest."""
    path = workdir / "shared"
    path.mkdir()
    return path


@pytest.fixture
def guest(workdir: Path, shared: Path) -> Iterator[Guest]:
    """A guest with one empty disk."""
    image = workdir / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    with Guest("6.12", shared, disks=[Disk(image)]) as it:
        yield it


@pytest.mark.slow
def test_power_loss(guest: Guest, shared: Path) -> None:
    """A guest that loses its power and boots again has on its disk what it had synced, and nothing else is different.

    Its writes to the host's files are gone as well, and the exit status of its command comes back.
    """
    guest.start(["sh", "-ec", WRITER], {"SHARED": str(shared)})
    eventually((shared / "written").exists, 60, what="the guest has written")
    before = guest.output.read_text()
    assert guest.running()
    guest.power_loss()
    assert not guest.running()
    guest.start(["sh", "-c", READER])
    status = guest.wait(60)

    assert (before, guest.output.read_text(), status) == ("kept\nlost\n", "kept\n", 7)
    assert not Path("/etc/not-of-the-host").exists()


def test_no_end(guest: Guest) -> None:
    """A guest that does not end in time is told of with its console, and leaves no process."""
    guest.start(["tail", "-f", "/dev/null"])
    eventually(lambda: "Linux version" in guest.console.read_text() or guest.console.stat().st_size > 100, 60)

    with pytest.raises(GuestError, match=r"^The guest had not ended after 0 s\.\n--- .*/console\n"):
        guest.wait(0)


def test_dead_guest(guest: Guest) -> None:
    """A guest that ends before its command does is an error, not a result."""
    guest.start(["sh", "-c", "echo o >/proc/sysrq-trigger; exec tail -f /dev/null"])

    with pytest.raises(GuestError, match=r"^The guest ended before its command did\."):
        guest.wait(60)


def test_unknown_kernel(shared: Path) -> None:
    """A kernel that cannot be had is refused in a sentence."""
    with pytest.raises(RuntimeError, match=r"^'\.\./6' is no kernel series: give two numbers, as in 6\.12\.$"):
        Guest("../6", shared)


def report(when: str, outcome: str, **fields: object) -> Report:
    """What a guest reports of a test."""
    return {"when": when, "outcome": outcome, "text": "", "reason": "", "xfail": False, **fields}


PASSED = [report("setup", "passed"), report("call", "passed"), report("teardown", "passed"), {"when": "end"}]
SKIPPED = [report("setup", "skipped", reason="no disk"), report("teardown", "passed"), {"when": "end"}]


@pytest.mark.parametrize(
    ("reports", "why"),
    [
        ([*PASSED[:1], report("call", "failed", text="E  assert 1 == 2"), *PASSED[2:]], "assert 1 == 2"),
        ([*PASSED[:2], report("teardown", "failed", text="left behind"), PASSED[3]], "left behind"),
        (SKIPPED, r"skipped in the guest \(no disk\), and expected-skips\.txt"),
        (PASSED[3:], "did not run it"),
    ],
    ids=["failed", "teardown", "skipped", "not run"],
)
def test_verdict(reports: list[Report], why: str) -> None:
    """A test that failed in the guest, was skipped without leave, or did not run, fails on the host."""
    judge(PASSED, skip_expected=False)
    with pytest.raises(pytest.skip.Exception, match="no disk"):
        judge(SKIPPED, skip_expected=True)

    with pytest.raises(GuestTestError, match=why):
        judge(reports, skip_expected=False)


@pytest.mark.guest
def test_guest_is_one() -> None:
    """A test marked ``guest`` runs on the kernel that its name says, with this checkout."""
    import os
    import platform

    assert re.match(re.escape(os.environ["FUSEVOL_GUEST"]) + r"[.-]", platform.release())
    assert Path(__file__).is_relative_to(TREE)
