"""The conformance table on a bare directory and on mounts."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.fs import linux_cases, privilege_cases  # noqa: F401  # they enter cases in the table
from tests.fs.differences import DIFFERENCES
from tests.fs.posix_cases import CASES, ROOT_CASES, Refused
from tests.support import transports

ALL = CASES | ROOT_CASES
_names = itertools.count()


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A directory that others may pass through."""
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.stat().st_uid == os.geteuid() and path != Path(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o011)
    made = tmp_path / "case"
    made.mkdir(0o755)
    return made


@pytest.fixture(scope="module")
def sources() -> Iterator[Path]:
    """A place for what the module's tests make."""
    path = Path(tempfile.mkdtemp(prefix="px"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("name", ALL)
def test_bare(name: str, empty: Path) -> None:
    """A case of the table holds on a bare directory: it asks for no more than the machine's own filesystem does."""
    if name in ROOT_CASES and os.geteuid() != 0:
        pytest.skip("needs root: it acts as other users")

    try:
        ALL[name](str(empty))
    except Refused as e:
        pytest.skip(str(e))


@pytest.mark.root
@pytest.mark.parametrize("transport", ["kernel", "io_uring", "pyfuse3"])
@pytest.mark.parametrize("quota", ["none", "ledger"])
@pytest.mark.parametrize("group", range(2))
def test_mounted(transport: str, quota: str, group: int, workdir: Path, volume_server: StartServer) -> None:
    """Every case of the table holds on a mount of each transport, but those that are known to differ: these do not.

    The server has descriptors for fewer inodes than the cases use.
    """
    limits = {"limit_bytes": 256 << 20, "limit_inodes": 10_000} if quota == "ledger" else {}
    server = volume_server(quota=quota, descriptors=64, **transports.fields(transport), **limits)
    transports.check(server, transport)
    workdir.chmod(0o755)
    failed: dict[str, BaseException] = {}
    names = list(ALL)[group::2]
    for name in names:
        place = server.mountpoint / f"{name}.d"
        place.mkdir(0o755)
        try:
            ALL[name](str(place))
        except (AssertionError, OSError, Refused) as e:
            failed[name] = e
    known = {name for name in DIFFERENCES["pyfuse3" if transport == "pyfuse3" else "kernel"] if name in names}

    assert {name: e for name, e in failed.items() if name not in known} == {}
    assert known - failed.keys() == set()
