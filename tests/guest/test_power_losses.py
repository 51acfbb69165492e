"""The power of a machine lost at any moment: what was acknowledged is there, and nothing else."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.guest import Disk, Guest
from tests.support.polling import eventually
from tests.support.powerloss import DISKS, RECORD

pytestmark = [pytest.mark.root, pytest.mark.slow]
LOSSES = int(os.environ.get("FUSEVOL_POWER_LOSSES", "3"))
SEED = int(os.environ.get("FUSEVOL_POWER_SEED", random.randrange(1 << 32)))
LONGEST = 6.0
"""Seconds until the power goes at the latest."""


def test_power_losses(workdir: Path) -> None:
    """The guest is ended while claims are made, filled, written to, grown, moved, snapshotted and deleted. Each time it
    comes up again all of them are in a legal state, with what was synced in them, and the pools have nothing else."""
    print(f"seed {SEED}, {LOSSES} losses of power")
    chance = random.Random(SEED)
    shared = workdir / "shared"
    shared.mkdir()
    disks = []
    for name in DISKS:
        image = workdir / name
        with image.open("wb") as file:
            file.truncate(1 << 30)
        disks.append(Disk(image))
    working, record = shared / "working", shared / RECORD
    command = [sys.executable, "-m", "tests.support.powerloss", str(shared)]
    with Guest("6.12", shared, disks=disks) as guest:
        for number in range(LOSSES):
            working.unlink(missing_ok=True)
            _boot(guest, [*command, str(SEED + number)], working)
            time.sleep(chance.uniform(0.1, LONGEST))  # the moment itself is what is tested
            assert guest.running(), f"after {number} losses: {_said(guest)}"
            guest.power_loss()
            print(f"{number + 1}: {_said(guest).splitlines()[-1]}", flush=True)
        guest.start([*command, "0", "--check-only"])
        status = guest.wait(300)
        said = _said(guest)

    assert status == 0, said
    done = Counter(word for line in record.read_text().splitlines() for word in line.split('"state": "')[1:])
    assert sum(done.values()) > 10 * LOSSES, "it did too little"


def _boot(guest: Guest, command: list[str], working: Path) -> None:
    """Start the guest, and see that it has checked everything.

    A kernel that panicked before anything of ours had begun was led astray by the emulator: it is started again.
    """
    for _ in range(3):
        guest.start(command)
        try:
            eventually(lambda: working.exists() or not guest.running(), 300, what="it has checked everything")
        except AssertionError as e:
            e.add_note(_said(guest) + guest.last_words())
            raise
        if working.exists():
            return
        words = guest.last_words()
        assert not guest.output.exists(), _said(guest) + words
        assert "Kernel panic" in words, words
        guest.power_loss()
        print("the guest's kernel panicked in its boot", flush=True)
    pytest.fail("the guest's kernel panics in each boot")


def _said(guest: Guest) -> str:
    """The end of what was said in the guest, which may not even have begun."""
    return guest.output.read_text()[-9000:] if guest.output.exists() else ""
