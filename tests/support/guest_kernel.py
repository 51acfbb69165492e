"""Kernels for guests (``tests/support/guest.py``): Debian's cloud kernels, unpacked into a cache, with an initramfs.

A kernel is named by its series, ``6.1`` or ``6.12``; the newest package of it that apt offers is taken, once: what is
in the cache stays until it is removed (``make clean``). Nothing is installed.
"""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CACHE = Path(__file__).parents[2] / "build" / "guest"
_INIT = Path(__file__).with_name("guest_init.sh")
_MODULES = (
    "virtio_pci", "virtio_blk", "virtiofs", "overlay", "loop", "fuse",
    "xfs", "ext4", "quota_v2", "btrfs", "crc32c_intel", "crc32c_generic", "libcrc32c",
)  # fmt: skip
"""Those a kernel has built in, or does not have, are left out; what they depend on comes with them."""
_FEW_MINUTES = 300


class Kernel(NamedTuple):
    """A kernel that a guest can boot."""

    release: str
    """As ``uname -r`` tells it."""
    image: Path
    initramfs: Path


def kernel(series: str) -> Kernel:
    """The kernel of *series*, got ready if it is not. Raises ``RuntimeError`` with a sentence."""
    if not re.fullmatch(r"\d+\.\d+", series):
        raise RuntimeError(f"{series!r} is no kernel series: give two numbers, as in 6.12.")
    place = CACHE / series
    if not place.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{series}.", dir=CACHE) as scratch:
            unpacked = Path(scratch) / "unpacked"
            subprocess.run(["dpkg", "-x", _download(series, Path(scratch)), unpacked], check=True, timeout=_FEW_MINUTES)
            try:
                unpacked.rename(place)
            except OSError:
                if not place.is_dir():  # another run was faster
                    raise
    image = next((place / "boot").glob("vmlinuz-*"))
    release = image.name.removeprefix("vmlinuz-")
    initramfs = place / "initramfs"
    newest = max(p.stat().st_mtime for p in (_INIT, Path(__file__)))
    if not initramfs.exists() or initramfs.stat().st_mtime < newest:
        temporary = Path(tempfile.mkstemp(dir=place)[1])
        temporary.write_bytes(_archive(_contents(place, release)))
        temporary.replace(initramfs)
    return Kernel(release, image, initramfs)


def _download(series: str, directory: Path) -> Path:
    said = ""
    for update in (False, True):  # lists that are missing or old name packages that are not there any more
        if update:
            subprocess.run(["apt-get", "update", "-qq"], check=False, timeout=_FEW_MINUTES)
        name = _newest(series)
        if name is None:
            continue
        done = subprocess.run(
            ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name],
            cwd=directory, capture_output=True, text=True, check=False, timeout=_FEW_MINUTES,
        )  # fmt: skip
        said = done.stderr.strip()
        if done.returncode == 0:
            return next(directory.glob("*.deb"))
    raise RuntimeError(
        f"No Debian kernel of the series {series} could be downloaded ({said or 'apt knows none'}): "
        "see `apt-cache search linux-image-cloud-amd64`; it may need the suite bookworm-backports."
    )


def _newest(series: str) -> str | None:
    listed = subprocess.run(
        ["apt-cache", "pkgnames", f"linux-image-{series}."], capture_output=True, text=True, check=False, timeout=60
    )
    names = [n for n in listed.stdout.split() if n.endswith("-cloud-amd64")]
    return max(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], default=None)


def _contents(place: Path, release: str) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of all that the initramfs has."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("A guest's first program is busybox, which is not here: run `make setup`.")
    for directory in ("bin", "modules", "dev", "proc", "sys", "lower", "upper", "root"):
        yield directory, stat.S_IFDIR | 0o755, b""
    yield "bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()
    yield "bin/sh", stat.S_IFLNK | 0o777, b"busybox"
    yield "init", stat.S_IFREG | 0o755, _INIT.read_bytes()
    order = []
    for name, content in _modules(place / "lib" / "modules" / release):
        order.append(name)
        yield f"modules/{name}", stat.S_IFREG | 0o644, content
    yield "modules/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in order).encode()


def _modules(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the modules, each after those that it depends on."""
    files = {_module_name(path): path for path in directory.rglob("*.ko*")}
    done = set()

    def with_dependencies(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in files:
            return
        done.add(name)
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)  # of the ELF section .modinfo
        for other in depends[1].decode().split(",") if depends else ():
            yield from with_dependencies(other.replace("-", "_"))
        yield name, content

    for name in _MODULES:
        yield from with_dependencies(name)


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _archive(entries: Iterator[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst, "newc")."""
    made = bytearray()
    for number, (name, mode, content) in enumerate((*entries, ("TRAILER!!!", 0, b"")), start=1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        made += b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        made += bytes(-len(made) % 4) + content
        made += bytes(-len(made) % 4)
    return bytes(made)
