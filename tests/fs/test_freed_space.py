"""What was removed can be used again at once, though the server frees it when it has nothing better to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.conftest import LoopFs, StartServer
from tests.support import transports

MIB = 1 << 20
ROUNDS = 200


def _fill(path: Path) -> int:
    """Write to *path* until nothing fits; returns its size."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        while True:
            os.write(fd, b"x" * MIB)
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("name", ["kernel", "io_uring", "pyfuse3"])
def test_a_full_volume_takes_as_much_again_after_each_removal(
    volume_server: StartServer, loop_fs: LoopFs, name: str
) -> None:
    """Bytes: 200 times full, emptied and full again, without a pause in between, and df(1) says so each time."""
    source = loop_fs() / "volume"
    source.mkdir()
    server = volume_server(source, quota="ledger", limit_bytes=4 * MIB, **transports.fields(name))
    file = Path(server.mountpoint) / "file"
    sizes, free = [], []
    for _ in range(ROUNDS):
        sizes.append(_fill(file))
        file.unlink()
        v = os.statvfs(server.mountpoint)
        free.append((v.f_blocks - v.f_bfree) * v.f_frsize)

    transports.check(server, name)
    assert min(sizes) == max(sizes) >= 3 * MIB
    assert min(free) == max(free) < MIB


@pytest.mark.root
@pytest.mark.parametrize("name", ["kernel", "io_uring", "pyfuse3"])
def test_an_inode_is_free_when_its_name_is_gone(volume_server: StartServer, loop_fs: LoopFs, name: str) -> None:
    """Inodes: at the limit, a removed file makes room for exactly one other, 200 times."""
    source = loop_fs() / "volume"
    source.mkdir()
    server = volume_server(source, quota="ledger", limit_inodes=10, **transports.fields(name))
    files = [Path(server.mountpoint) / str(i) for i in range(10)]
    made = [file for file in files if _made(file)]
    again = 0
    for _ in range(ROUNDS):
        made[0].unlink()
        again += _made(made[0])
        assert not _made(files[-1])

    transports.check(server, name)
    assert len(made) == 9  # the root is the tenth
    assert again == ROUNDS


def _made(file: Path) -> bool:
    try:
        file.touch(exist_ok=False)
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        return False
    return True
