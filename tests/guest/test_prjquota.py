"""Project quotas of XFS and ext4: the driver and the meter, on kernels that have them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from fusevol.errors import InvalidError, UnavailableError
from fusevol.pool import Pool, drivers
from fusevol.pool.drivers import NO_LIMITS, Backing, Limits
from fusevol.pool.drivers.plain import Plain
from fusevol.pool.drivers.prjquota import PrjQuota
from fusevol.quota import project
from fusevol.quota.kernel import open_meter
from fusevol.quota.project import ProjectMeter
from tests.conftest import StartServer
from tests.support import transports
from tests.support.devices import make_loop_fs
from tests.support.polling import eventually
from tests.support.servers import VolumeServer

pytestmark = [pytest.mark.root, pytest.mark.guest]
Kind = Literal["xfs", "ext4"]
KINDS: list[Kind] = ["xfs", "ext4"]
FEATURES = {"xfs": (), "ext4": ("-b", "4096", "-O", "quota,project")}
MIB = 1 << 20
LIMIT = 8 * MIB
once = pytest.mark.guest("6.12")
"""For what does not depend on the kernel."""
REFUSED = {"xfs": errno.ENOSPC, "ext4": errno.EDQUOT}
NAMES = {"xfs": 48 * 4096, "ext4": 4 * 4096}
"""What must be left so that a name can be made."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each filesystem with project quotas."""
    found: Kind = request.param
    return found


@pytest.fixture
def point(workdir: Path, kind: Kind) -> Path:
    """A filesystem that enforces project quotas."""
    return make_loop_fs(workdir, kind, 512 * MIB, features=FEATURES[kind], options="loop,prjquota")


@pytest.fixture
def driver(point: Path) -> PrjQuota:
    """The driver of a pool on it."""
    pool = point / "pool"
    pool.mkdir()
    return PrjQuota(pool)


@pytest.fixture
def volume(driver: PrjQuota) -> Path:
    """The directory of a volume of 8 MiB and 50 inodes."""
    data = driver.pool / "volume"
    driver.make(data, Limits(LIMIT, 50))
    return data


@pytest.fixture
def root(point: Path) -> Iterator[int]:
    """A descriptor of the filesystem's root."""
    fd = os.open(point, os.O_RDONLY)
    yield fd
    os.close(fd)


def used(data: Path) -> tuple[int, int | None]:
    """Bytes and inodes that the kernel counts."""
    meter = ProjectMeter.open(data)
    try:
        return meter.usage()[:2]
    finally:
        meter.close()


def fill(path: Path, size: int = 65536) -> int:
    """Append to *path* until it is refused; returns the errno."""
    with path.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * size)
            except OSError as e:
                if size == 4096:
                    return e.errno or 0
                size = 4096


def attempt(make: Callable[[], object]) -> int:
    """The errno with which *make* is refused, 0 if it is not."""
    try:
        make()
    except OSError as e:
        return e.errno or 0
    return 0


def number_of(backing: Backing) -> int:
    """The project of a volume as its record has it."""
    return int(backing["project"])


def project_at(directory: Path) -> int:
    """The project of a directory."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        return project.project_of(fd)
    finally:
        os.close(fd)


def move(directory: Path, number: int) -> None:
    """Give a directory to a project."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        project.set_project(fd, number)
    finally:
        os.close(fd)


def write_at(path: Path, data: bytes, offset: int) -> int:
    """How much of *data* was written into an existing file."""
    with path.open("r+b", buffering=0) as file:
        return os.pwrite(file.fileno(), data, offset)


@pytest.fixture
def served(volume: Path, volume_server: StartServer) -> VolumeServer:
    """The volume, mounted as the agent does."""
    return volume_server(volume, quota="kernel", meter="prjquota")


def test_probed(point: Path, driver: PrjQuota, kind: Kind) -> None:
    """Where project quotas are enforced the driver is chosen, and tells what it can do there."""
    found = drivers.probe(driver.pool)
    able = found.capabilities()

    assert type(found) is PrjQuota
    assert (able.quota_bytes, able.quota_inodes, able.usage, able.remark) == (True, True, "project quotas", "")
    assert (able.clone, able.snapshot) == (("reflink", "reflink") if kind == "xfs" else ("copy", "copy"))


@once
@pytest.mark.parametrize("features", [True, False])
def test_not_enforced(workdir: Path, kind: Kind, features: bool) -> None:
    """Without the mount option the driver is not chosen, and what it says leads to quotas that are enforced."""
    point = make_loop_fs(workdir, kind, 512 * MIB, features=FEATURES[kind] if features else ())
    driver = PrjQuota(point)
    able = driver.capabilities()
    (point / "data").mkdir()

    assert type(drivers.probe(point)) is Plain
    assert (able.quota_bytes, able.quota_inodes, able.usage, able.granularity) == (False, False, "", 0)
    assert able.remark.startswith(f"Project quotas are not enforced on the filesystem of {point}: mount it with the")
    with pytest.raises(UnavailableError, match=r"keeps no quota for it \(project quotas are not enforced\)"):
        open_meter("prjquota", point / "data")


@once
def test_remedy(workdir: Path, kind: Kind) -> None:
    """On a filesystem that is mounted again without the option neither pool nor volume is used; a sentence says why."""
    point = make_loop_fs(workdir, kind, 512 * MIB, features=FEATURES[kind], options="loop,prjquota")
    driver = PrjQuota(point)
    data = point / "volume"
    backing = driver.make(data, Limits(LIMIT, None))
    Pool.open(point / "pool", "p", create=True).close()
    assert driver.check(data, backing, Limits(LIMIT, None)) == []
    image = str(workdir / f"{kind}0.img")
    subprocess.run(["umount", str(point)], check=True)
    subprocess.run(["mount", "-o", "loop", image, str(point)], check=True)
    found = driver.check(data, backing, Limits(LIMIT, None))
    with pytest.raises(
        InvalidError, match=r"cannot have the driver prjquota .*: mount it with the option prjquota .*\.$"
    ):
        Pool.open(point / "pool", "p")
    with pytest.raises(UnavailableError, match="switch its quotas on again"):
        open_meter("prjquota", data)
    subprocess.run(["umount", str(point)], check=True)
    subprocess.run(["mount", "-o", "loop,prjquota", image, str(point)], check=True)

    assert len(found) == 1
    assert "mount it with the option prjquota" in found[0]
    assert driver.check(data, backing, Limits(LIMIT, None)) == []


def test_limit_holds(served: VolumeServer, volume: Path, kind: Kind) -> None:
    """Through a mount a volume takes its limit to the last block and no block more; by passthrough where that exists.

    Reading, overwriting and deleting go on, and what is deleted can be written again.
    """
    status = served.call("status")
    file = served.mountpoint / "file"
    code = fill(file)
    os.sync()
    full, _ = used(volume)
    overwritten = write_at(file, b"again", 0)
    read = len(file.read_bytes())
    file.unlink()
    # XFS frees in the background
    assert eventually(lambda: attempt((served.mountpoint / "again").touch) == 0, 20)
    again = fill(served.mountpoint / "again")

    assert (code, again) == (REFUSED[kind], REFUSED[kind])
    assert LIMIT - 2 * 4096 <= full <= LIMIT
    assert (overwritten, full - 2 * 4096 <= read <= full) == (5, True)
    assert (status["quota"], status["passthrough"]) == ("kernel", transports.passthrough())


def test_inode_limit(served: VolumeServer, volume: Path, kind: Kind) -> None:
    """The limit of inodes is exact, the root of the volume counted; hard links are free."""
    made = 0
    while (code := attempt((served.mountpoint / f"f{made}").touch)) == 0:
        made += 1
    os.link(served.mountpoint / "f0", served.mountpoint / "link")
    (served.mountpoint / "f1").unlink()

    assert (made, code) == (49, REFUSED[kind])
    assert eventually(lambda: attempt((served.mountpoint / "g").touch) == 0)


def test_last_names(served: VolumeServer, volume: Path, kind: Kind) -> None:
    """A name can be made for as long as the granularity that the driver tells is left, whatever it is of."""
    file = served.mountpoint / "file"
    fill(file)
    os.sync()
    os.truncate(file, file.stat().st_size - NAMES[kind])
    names: tuple[Callable[[], object], ...] = (
        (served.mountpoint / "directory").mkdir,
        lambda: (served.mountpoint / "link").symlink_to("x" * 1000),
        (served.mountpoint / "file2").touch,
    )
    codes = []
    for make in names:
        codes.append(attempt(make))
        os.truncate(file, file.stat().st_size - 4 * 4096)  # what it has taken

    assert codes == [0, 0, 0]
    assert PrjQuota(volume.parent).capabilities().granularity == NAMES[kind]


MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 32 << 20)
mapped = mmap.mmap(fd, 32 << 20)
for i in range(0, 32 << 20, 4096):
    mapped[i] = 1
mapped.flush()
"""


def test_limit_holds_for_mappings(served: VolumeServer, volume: Path) -> None:
    """A program that writes by a mapping, as in a container (without CAP_SYS_RESOURCE), does not pass the limit."""
    path = str(served.mountpoint / "mapped")
    command = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-all", sys.executable, "-c", MAPPER, path]
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    os.sync()

    assert done.returncode != 0
    assert LIMIT // 2 <= used(volume)[0] <= LIMIT


def test_df(served: VolumeServer) -> None:
    """The mount shows the limits as its size."""
    (served.mountpoint / "file").write_bytes(b"x" * (2 * MIB))
    os.sync()
    st = os.statvfs(served.mountpoint)

    assert (st.f_blocks * st.f_frsize, st.f_files, st.f_ffree) == (LIMIT, 50, 48)
    assert 2 * MIB <= (st.f_blocks - st.f_bfree) * st.f_frsize <= 2 * MIB + 2 * 4096


@once
def test_change_of_limits(driver: PrjQuota, served: VolumeServer, volume: Path, kind: Kind) -> None:
    """Limits change under an open file; below what is used nothing is lost, and nothing can be added."""
    file = served.mountpoint / "file"
    fill(file)
    driver.set_limits(volume, {}, Limits(2 * LIMIT, 50))
    grown = attempt(lambda: write_at(file, b"x" * MIB, LIMIT))
    driver.set_limits(volume, {}, Limits(MIB, 10))
    read = len(file.read_bytes())
    shrunk = attempt(lambda: write_at(file, b"x" * MIB, LIMIT + MIB))
    driver.set_limits(volume, {}, NO_LIMITS)
    free = attempt(lambda: write_at(file, b"x" * MIB, 4 * LIMIT))

    assert (grown, read, shrunk, free) == (0, LIMIT + MIB, REFUSED[kind], 0)


@once
@pytest.mark.parametrize(("asked", "limit"), [(1, 4096), (4095, 4096), (10_000, 8192), (1_000_000, 999_424)])
def test_granularity(driver: PrjQuota, asked: int, limit: int) -> None:
    """A limit is rounded down to whole blocks, never to nothing, which would be none; that is no finding."""
    data = driver.pool / "odd"
    backing = driver.make(data, Limits(asked, None))

    assert driver.usage(data, backing).limit_bytes == limit
    assert driver.check(data, backing, Limits(asked, None)) == []


@once
def test_numbers(driver: PrjQuota, point: Path) -> None:
    """Volumes made at the same time, in two pools whose ranges are the same, have projects of their own."""
    other = PrjQuota(driver.pool)  # the same directory, so the same range: as of another process
    other._allocation = threading.Lock()  # type: ignore[misc]  # so it must not rely on that
    barrier = threading.Barrier(8)
    made: list[Backing] = []

    def make(worker: int) -> None:
        barrier.wait(20)
        mine = (driver, other)[worker % 2]
        made.extend(mine.make(driver.pool / f"{worker}.{i}", Limits(LIMIT, None)) for i in range(5))

    threads = [threading.Thread(target=make, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    counted = [used(directory) for directory in driver.pool.iterdir()]

    assert len({number_of(b) for b in made}) == len(made) == 40
    assert {inodes for _, inodes in counted} == {1}


@once
def test_number_given_back(driver: PrjQuota, volume: Path, root: int) -> None:
    """A removed volume's number loses its limits and is used again, as is one that a killed process had limited."""
    before = driver.usage(volume, {})
    number = project_at(volume)
    (volume / "dir").mkdir()
    (volume / "dir" / "file").write_bytes(b"x" * MIB)
    fill(volume / "file")
    driver.remove(volume, {})
    assert eventually(lambda: project.usage(root, number)[:2] == (0, 0), 20)
    left = project.usage(root, number)
    project.set_limits(root, number, 5 * MIB, 5)
    backing = driver.make(volume, Limits(LIMIT, None))

    assert (before.limit_bytes, left.limit_bytes, left.limit_inodes) == (LIMIT, None, None)
    assert number_of(backing) == number
    assert driver.usage(volume, backing)[2:] == (LIMIT, None)


@once
def test_interrupted_removal(driver: PrjQuota, volume: Path, root: int) -> None:
    """A removal that is done again when all is gone leaves the volume alone that has the number since."""
    number = project_at(volume)
    backing = {"project": str(number)}
    driver.remove(volume, backing)
    assert eventually(lambda: project.usage(root, number)[:2] == (0, 0), 20)
    other = driver.pool / "other"
    assert driver.make(other, Limits(LIMIT, None)) == backing
    driver.remove(volume, backing)

    assert driver.usage(other, backing).limit_bytes == LIMIT


@once
def test_foreign_numbers(driver: PrjQuota, point: Path, root: int) -> None:
    """A number that somebody else uses on the filesystem is not taken."""
    first = driver.make(driver.pool / "first", Limits(LIMIT, None))
    foreign = point / "foreign"
    foreign.mkdir()
    move(foreign, number_of(first) + 1)
    second = driver.make(driver.pool / "second", Limits(LIMIT, None))

    assert number_of(second) == number_of(first) + 2
    assert project.usage(root, number_of(first) + 1).limit_bytes is None


@once
def test_no_limits(driver: PrjQuota) -> None:
    """A volume without limits has no project, and is removed like any other."""
    data = driver.pool / "free"
    backing = driver.make(data, NO_LIMITS)
    number = project_at(data)
    (data / "file").touch()
    checked = driver.check(data, backing, None)
    driver.remove(data, backing)

    assert (backing, number, checked, data.exists()) == ({}, 0, [], False)


@once
def test_check(driver: PrjQuota, volume: Path) -> None:
    """A volume that lost its limit or its project is found, with a remedy."""
    backing = {"project": str(project_at(volume))}
    limits = Limits(LIMIT, 50)
    good = driver.check(volume, backing, limits)
    driver.set_limits(volume, backing, Limits(MIB, 50))
    changed = driver.check(volume, backing, limits)
    move(volume, 77)
    moved = driver.check(volume, backing, limits)

    assert good == []
    assert [text.partition(" is ")[2] for text in changed] == [
        "limited to 1048576 bytes and 50 inodes, not to 8388608 and 50: resize the volume to its size."
    ]
    assert moved[0].endswith(f"is of project 77, not {backing['project']}: copy what is in it into a new volume.")


def describe(top: Path) -> dict[str, Any]:
    """All that can be seen of a tree, by name."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for path in sorted([top, *top.rglob("*")]):
        st = path.lstat()
        name = str(path.relative_to(top))
        kind = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        attributes = {a: os.getxattr(path, a, follow_symlinks=False) for a in os.listxattr(path, follow_symlinks=False)}
        alike = first.setdefault(st.st_ino, name)
        blocks = 0 if st.st_blocks == 0 else 1
        found[name] = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_rdev, kind, attributes, alike, blocks)
    return found


@once
def test_copies(driver: PrjQuota, point: Path, kind: Kind) -> None:
    """A clone has all that its source has, in a project of its own with its own limit; a snapshot is in none.

    On XFS they share the source's blocks, and still count in full.
    """
    source = driver.pool / "source"
    driver.make(source, Limits(64 * MIB, None))
    (source / "dir").mkdir(mode=0o750)
    (source / "dir" / "file").write_bytes(os.urandom(6 * MIB))
    os.link(source / "dir" / "file", source / "link")
    (source / "symlink").symlink_to("dir/file")
    with (source / "sparse").open("wb") as file:
        file.truncate(8 * MIB)
    os.mkfifo(source / "fifo")
    os.mknod(source / "null", 0o20600, os.makedev(1, 3))
    os.setxattr(source / "dir" / "file", "user.note", b"\0value")
    os.setxattr(source / "dir", "trusted.note", b"x")
    subprocess.run(["setfacl", "-m", "u:1234:rwx,d:g:55:rx", str(source / "dir")], check=True)
    os.chown(source / "dir" / "file", 12, 34)
    os.chmod(source / "dir" / "file", 0o4751)  # noqa: S103  # a copy must have that, too
    for path in (source / "dir" / "file", source / "dir", source):
        os.utime(path, ns=(10**18 + 1, 10**18 + 123_456_789))
    os.sync()
    before = os.statvfs(point)
    clone = driver.pool / "clone"
    backing = driver.clone(source, {}, clone, Limits(12 * MIB, None))
    driver.snapshot(source, {}, driver.pool / "snapshot")
    os.sync()
    after = os.statvfs(point)
    taken = (before.f_bfree - after.f_bfree) * after.f_frsize
    (clone / "dir" / "file").write_bytes(b"own")

    assert describe(driver.pool / "snapshot") == describe(source)
    assert {k: v for k, v in describe(clone).items() if k not in {"dir/file", "link", "symlink"}} == {
        k: v for k, v in describe(source).items() if k not in {"dir/file", "link", "symlink"}
    }
    assert (taken < 4 * MIB) == (kind == "xfs")
    assert driver.usage(clone, backing).limit_bytes == 12 * MIB
    assert project_at(driver.pool / "snapshot") == 0
    code = attempt(lambda: driver.clone(source, {}, driver.pool / "small", Limits(3 * MIB, None)))
    assert code in {errno.ENOSPC, errno.EDQUOT}


@once
def test_meter_is_durable(driver: PrjQuota, volume: Path, point: Path, workdir: Path, kind: Kind) -> None:
    """Limits are still there when the filesystem was mounted again."""
    meter = ProjectMeter.open(volume)
    meter.set_limits(3 * MIB, 7)
    meter.close()
    subprocess.run(["umount", str(point)], check=True)
    subprocess.run(["mount", "-o", "loop,prjquota", str(workdir / f"{kind}0.img"), str(point)], check=True)

    assert driver.usage(volume, {})[2:] == (3 * MIB, 7)
