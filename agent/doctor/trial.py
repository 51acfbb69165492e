"""Tries things in a process of its own, which can be given up when it hangs: ``python -m agent.doctor.trial WHAT …``.

``mounts DIRECTORY`` mounts a volume by each transport, in an empty directory that the caller has made and removes;
``pool DIRECTORY`` tries what the filesystem of a pool can do. The answer is one JSON object on standard output. What is
mounted is mounted in a mount namespace of this process, and so gone with it, where that can be had.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from agent.doctor import kernel
from fusevol.errors import FusevolError
from fusevol.fs import _libc as calls
from fusevol.pool import place
from fusevol.server.client import call
from fusevol.server.spec import MountSpec, TransportChoice
from fusevol.transport import mount

Obj = dict[str, Any]
_DATA: Final = b"fusevol" * 10_000
_PATIENCE: Final = 8.0
"""Seconds for a server to mount, and for one to end."""
_ABORT: Final = 3600.0
"""Asked for so that the kernel is asked whether it could; nothing takes so long."""
_POSIX_ACL: Final = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
"""``u::rw-,g::r--,o::r--`` as the kernel has it (linux/posix_acl_xattr.h)."""


class _TrialError(Exception):
    """What was tried does not work; one sentence."""


def mounts(directory: Path) -> Obj:
    """A volume by each transport."""
    with contextlib.suppress(OSError):  # not root, or in a container: mounted for all to see then, and unmounted
        kernel.own_mounts()
    found: Obj = {}
    for transport in ("kernel", "pyfuse3"):
        if transport == "kernel" and os.geteuid() != 0:
            continue
        room = directory / transport
        room.mkdir()
        try:
            found[transport] = _mounted(room, transport)
        except (_TrialError, FusevolError, OSError) as e:
            found[transport] = {"error": str(e)}
    return found


def _mounted(room: Path, transport: TransportChoice) -> Obj:
    """Mount a volume in *room*, use it, and unmount it; what its server said of itself."""
    source, point = room / "source", room / "mount"
    source.mkdir()
    point.mkdir()
    spec = MountSpec(
        mount_id="doctor",
        source=str(source),
        mountpoint=str(point),
        control=str(room / "control"),
        log=str(room / "log"),
        transport=transport,
        abort_after_s=_ABORT,
    )
    server = _started(spec, room / "spec.json")
    try:
        return _used(spec)
    finally:
        with contextlib.suppress(FusevolError):
            call(Path(spec.control), {"op": "unmount", "lazy": True}, timeout=_PATIENCE)
        try:
            server.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            mount.abort(point)
            server.kill()


def _started(spec: MountSpec, file: Path) -> subprocess.Popen[bytes]:
    spec.save(file)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "fusevol.server", "--spec", str(file), "--ready-fd", str(writer)]
    server = subprocess.Popen(command, pass_fds=[writer], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as said:  # whoever started this process sees to it that it takes no longer than it may
        last = [line.rstrip("\n") for line in said][-1:]
    if last == ["READY"]:
        return server
    server.kill()
    raise _TrialError(last[0].removeprefix("ERROR ") if last else "the volume server ended before it had mounted")


def _used(spec: MountSpec) -> Obj:
    point = Path(spec.mountpoint)
    with (point / "file").open("w+b") as file:
        file.write(_DATA)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        if file.read() != _DATA or (Path(spec.source) / "file").read_bytes() != _DATA:
            raise _TrialError("what was written to a volume was not read back")
        status = call(Path(spec.control), {"op": "status"}, timeout=_PATIENCE)
    (point / "file").rename(point / "other")
    (point / "other").unlink()
    found = mount.find(point)
    result: Obj = {
        "stats": status["stats"],
        "io_uring": bool(status.get("io_uring")),
        "why_not": status.get("why_not") or {},
        "passed_by": status["stats"].get("backing_ids", 0) > 0,
        "waiting": mount.waiting(found.minor) if found is not None else None,
        "idmapped": "",
    }
    try:
        kernel.idmap(str(point))
    except OSError as e:
        result["idmapped"] = e.strerror or str(e)
    return result


def pool(path: Path) -> Obj:
    """What the filesystem of the pool at *path* can do, or of where it would be made: by name an error, or nothing."""
    with contextlib.suppress(OSError):
        kernel.own_mounts()
    rooms = [path / place.TMP, path, *path.parents]
    directory = Path(tempfile.mkdtemp(prefix="doctor.", dir=next(p for p in rooms if p.is_dir())))
    try:
        return _filesystem(directory)
    finally:
        shutil.rmtree(directory)


def _filesystem(directory: Path) -> Obj:
    found: Obj = {"type": _kind(directory)}
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    one, other = (
        os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) for name in ("a", "b")
    )
    os.write(one, _DATA)

    def written() -> None:
        began = time.monotonic()
        os.fsync(one)
        found["fsync_ms"] = round((time.monotonic() - began) * 1000, 2)

    def handled() -> None:
        os.close(calls.open_handle(here, calls.file_handle(one), os.O_PATH))

    def unnamed() -> None:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600))

    trials: dict[str, Callable[[], object]] = {
        "written": written,
        "handles": handled,
        "xattrs": lambda: os.setxattr(one, "user.fusevol", b"x"),
        "trusted xattrs": lambda: os.setxattr(one, "trusted.fusevol", b"x"),
        "acls": lambda: os.setxattr(one, "system.posix_acl_access", _POSIX_ACL),
        "reflink": lambda: kernel.reflink(one, other),
        "unnamed files": unnamed,
        "holes": lambda: calls.fallocate(one, calls.FALLOC_FL_PUNCH_HOLE | calls.FALLOC_FL_KEEP_SIZE, 0, 4096),
    }
    for name, attempt in trials.items():
        try:
            attempt()
            found[name] = ""
        except OSError as e:
            found[name] = e.strerror or errno.errorcode.get(e.errno or 0, str(e))
    found["quotas"] = [
        name for name, there in (("project", kernel.project_quotas), ("qgroups", kernel.qgroups)) if there(here)
    ]
    if os.geteuid() == 0:
        (directory / "mounted").mkdir()
        try:
            found["passed_by"] = _mounted(directory / "mounted", "kernel")["passed_by"]
        except (_TrialError, FusevolError, OSError):
            found["passed_by"] = False
    return found


def _kind(directory: Path) -> str:
    """The type of the filesystem of *directory*, as the mount table has it."""
    where = str(directory.resolve())
    best = max(
        (m for m in mount.mounts() if where == m.mountpoint or where.startswith(m.mountpoint.rstrip("/") + "/")),
        key=lambda m: len(m.mountpoint),
        default=None,
    )
    return best.fstype if best is not None else "unknown"


def main(argv: Sequence[str]) -> int:
    """Try what *argv* says; returns the exit status."""
    what, directory = argv
    json.dump({"mounts": mounts, "pool": pool}[what](Path(directory)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
