"""Small filesystems on loop devices."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from fusevol.transport import mount

Kind = Literal["xfs", "ext4", "btrfs"]

_MKFS = {
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
SMALLEST = {"xfs": 300 << 20, "ext4": 16 << 20, "btrfs": 128 << 20}
"""What the mkfs programs accept, in bytes."""


def make_loop_fs(
    directory: Path, kind: Kind, size: int, *, features: Sequence[str] = (), options: str = "loop"
) -> Path:
    """A new *kind* filesystem of *size* bytes in a sparse file in *directory*, mounted; returns the mount point.

    *features* are arguments for mkfs, *options* those of the mount.
    """
    number = sum(1 for _ in directory.glob("*.img"))
    image = directory / f"{kind}{number}.img"
    point = directory / f"{kind}{number}"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(max(size, SMALLEST[kind]))
    subprocess.run([*_MKFS[kind], *features, str(image)], check=True, capture_output=True, timeout=60)
    # -o loop sets autoclear: the device goes with the mount, whoever removes it
    subprocess.run(["mount", "-o", options, str(image), str(point)], check=True, capture_output=True, timeout=60)
    return point


@contextlib.contextmanager
def frozen(point: Path) -> Iterator[Callable[[], None]]:
    """Freeze the filesystem mounted at *point*: who writes to it waits, unkillable, as for a disk that does not answer.

    Yields what thaws it before the end.
    """
    assert mount.is_mounted(point), f"to freeze {point} would freeze what it lies on"
    over = False

    def thaw() -> None:
        nonlocal over
        if not over:
            subprocess.run(["fsfreeze", "--unfreeze", str(point)], check=True, timeout=20)
            over = True

    subprocess.run(["fsfreeze", "--freeze", str(point)], check=True, timeout=20)
    try:
        yield thaw
    finally:
        thaw()


def abort_all(directory: Path) -> None:
    """End the connection of every FUSE mount below *directory*: whoever waits in it gets an error."""
    for minor in {found.minor for found in mount.below(directory) if found.is_fuse}:
        mount.abort(minor)


def tear_down(directory: Path) -> None:
    """End every mount below *directory*: FUSE connections are aborted first, so that nothing can hang."""
    abort_all(directory)
    for found in mount.below(directory):
        for lazy in (False, True):
            with contextlib.suppress(OSError):
                mount.unmount(found.mountpoint, lazy=lazy)
                break
