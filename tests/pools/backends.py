"""The filesystems that the table of tests in ``test_drivers.py`` runs over. One entry more is one driver more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusevol import btrfs
from fusevol.usage import Enforcer
from tests.conftest import LoopFs
from tests.support import ceph

Missing = Callable[[], str]


def here() -> str:
    """For what every kernel has that tests run on."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One kind of filesystem under a pool, and what is promised for it."""

    name: str
    make: Callable[[LoopFs, Path], Path]
    """Makes it; returns the directory for the pool. Mounts below the second argument are undone after the test."""
    driver: str
    """The one that probing must choose."""
    enforcer: Enforcer
    """Who keeps a limit of bytes."""
    inodes: Enforcer
    """Who keeps a limit of inodes."""
    early: int
    """By how many bytes a writer may be stopped too early: what blocks and metadata take."""
    snapshot: Literal["instant", "reflink", "copy"]
    used: Callable[[Path], int]
    """What the filesystem's own tools say that the volume in a directory uses, after a sync."""
    counts_shared: bool = True
    """Whether what a clone shares with its source counts against the clone's limit."""
    holes: bool = True
    """Whether a hole in a file takes no space."""
    missing: Missing = here
    """Why this machine cannot run it; empty if it can."""
    fixture: str = ""
    """The fixture that makes it, instead of ``make``."""


def by_du(data: Path) -> int:
    """As ``du`` counts."""
    command = ["du", "-s", "--block-size=1", "--", str(data)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])


def by_qgroup(data: Path) -> int:
    """As ``btrfs qgroup show`` counts: what the subvolume refers to."""
    command = ["btrfs", "qgroup", "show", "--raw", "-f", "--sync", str(data)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return int(lines[-1].split()[1])


def on(kind: Literal["ext4", "xfs", "btrfs"], quota: Literal["", "full", "simple"] = "") -> Callable[..., Path]:
    """A filesystem of half a GiB on a loop device."""

    def make(loop_fs: LoopFs, _workdir: Path) -> Path:
        point = loop_fs(kind, 512 << 20)
        if quota:
            fd = os.open(point, os.O_RDONLY)
            try:
                btrfs.enable_quota(fd, simple=quota == "simple")
            finally:
                os.close(fd)
        (point / "pool").mkdir()
        return point / "pool"

    return make


def on_tmpfs(_loop_fs: LoopFs, workdir: Path) -> Path:
    """A tmpfs."""
    point = workdir / "tmpfs"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "none", str(point)], check=True)
    return point


def by_fixture(_loop_fs: LoopFs, _workdir: Path) -> Path:
    """For what a fixture makes."""
    raise NotImplementedError


BLOCK = 4096
SECTOR = 512
BACKENDS = [
    Backend(
        name="plain-ext4", make=on("ext4"), driver="plain", enforcer="ledger", inodes="ledger",
        early=2 * BLOCK, snapshot="copy", used=by_du,
    ),
    Backend(
        name="plain-xfs", make=on("xfs"), driver="plain", enforcer="ledger", inodes="ledger",
        early=2 * BLOCK, snapshot="reflink", used=by_du,
    ),
    Backend(
        name="plain-tmpfs", make=on_tmpfs, driver="plain", enforcer="ledger", inodes="ledger",
        early=2 * BLOCK, snapshot="copy", used=by_du,
    ),
    Backend(
        name="btrfs-no-quota", make=on("btrfs"), driver="btrfs", enforcer="ledger", inodes="ledger",
        early=2 * BLOCK, snapshot="instant", used=by_du,
    ),
    Backend(
        name="btrfs", make=on("btrfs", "full"), driver="btrfs", enforcer="kernel", inodes="ledger",
        early=64 << 10, snapshot="instant", used=by_qgroup,
    ),
    Backend(
        name="btrfs-simple", make=on("btrfs", "simple"), driver="btrfs", enforcer="kernel", inodes="ledger",
        early=64 << 10, snapshot="instant", used=by_qgroup, counts_shared=False,
    ),
    Backend(
        name="cephfs", make=by_fixture, driver="cephfs", enforcer="ledger", inodes="ledger",
        early=2 * SECTOR, snapshot="copy", used=by_du, holes=False, missing=lambda: ceph.why_not() or "",
        fixture="cephfs",
    ),
]  # fmt: skip
