"""``fusevol doctor`` on this machine, on one without /dev/fuse, and with a pool that hangs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fusevol.transport import mount
from tests.conftest import LoopFs, StartServer
from tests.support.devices import frozen

pytestmark = pytest.mark.root

_CHECKOUT = Path(__file__).parents[2]
_WORDS = [sys.executable, "-m", "agent.cli.main", "doctor"]


def _doctor(workdir: Path, *arguments: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FUSEVOL_") or k == "FUSEVOL_TEST_RUN"}
    environment |= {"PYTHONPATH": str(_CHECKOUT), "FUSEVOL_CONFIG": str(workdir / "agent.yaml")}
    (workdir / "agent.yaml").touch()
    return subprocess.run(
        [*(before or []), *_WORDS, "--state-dir", str(workdir / "state"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=workdir,
        timeout=90,
    )


def _checks(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(c["area"], c["name"]): c for c in json.loads(done.stdout)["checks"]}


def test_what_works_here_is_found(workdir: Path, volume_server: StartServer) -> None:
    """Root on a machine that serves volumes: all that is needed is there, and features are those of a real mount."""
    offered = set(volume_server(transport="kernel").call("status")["stats"]["features"])
    done = _doctor(workdir, "-o", "json")
    checks = _checks(done)
    found = {name for (area, name), c in checks.items() if area == "mount" and c["state"] == "ok"}
    left = [m for m in mount.mounts() if "fusevol-doctor" in m.mountpoint]

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ok"] is True
    assert {"transport kernel", "transport pyfuse3"} <= found
    assert {"passthrough", "has-resend", "allow-idmap", "handle-killpriv-v2"} & offered == {
        "passthrough", "has-resend", "allow-idmap", "handle-killpriv-v2"
    } & found  # fmt: skip
    assert checks["pool default", "directory"]["state"] == "ok"
    assert left == []
    assert sorted(os.listdir(workdir)) == ["agent.yaml", "m0", "m0.err", "m0.json", "m0.log", "m0.sock", "m0.src"]


def test_the_table_has_a_remedy_for_all_that_is_missing(workdir: Path) -> None:
    """A person sees a line for each check, and below what to do about those that are not ok."""
    done = _doctor(workdir)
    table, _, remedies = done.stdout.partition("\nWhat to do:\n")
    missing = re.findall(r"^(?:\S+ )+ +(\S.*?)  +(?:missing|needed) ", table, re.MULTILINE)

    assert done.returncode == 0
    assert table.startswith("AREA")
    assert "transport kernel" in table
    assert len(remedies.splitlines()) >= len(missing)
    assert all(name in remedies for name in missing)


@pytest.mark.parametrize("kind", ["xfs", "ext4", "btrfs"])
def test_pools_are_tried(workdir: Path, loop_fs: LoopFs, kind: Any) -> None:
    """Each filesystem has what it is known for, and is left as it was."""
    point = loop_fs(kind)
    before = sorted(os.listdir(point))
    if kind == "btrfs":
        subprocess.run(["btrfs", "quota", "enable", str(point)], check=True, timeout=20)
    done = _doctor(workdir, "--pool", f"p={point}/not/there/yet", "-o", "json")
    checks = _checks(done)
    states = {name: c["state"] for (area, name), c in checks.items() if area == "pool p"}

    assert done.returncode == 0
    assert checks["pool p", "directory"]["found"].split("(")[1].startswith(kind)
    assert states["file handles"] == states["extended attributes"] == states["hole punching"] == "ok"
    assert states["reflink"] == ("missing" if kind == "ext4" else "ok")
    assert states["quotas"] == ("ok" if kind == "btrfs" else "missing")
    assert sorted(os.listdir(point)) == before


def test_without_the_device_it_says_so(workdir: Path) -> None:
    """A machine (or container) without /dev/fuse: exit code 1, and a remedy."""
    hide = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/fuse && exec "$@"', "sh"]
    done = _doctor(workdir, "-o", "json", before=hide)
    checks = _checks(done)
    table = _doctor(workdir, before=hide)

    assert (done.returncode, table.returncode) == (1, 1)
    assert checks["mount", "transport kernel"]["state"] == "needed"
    assert "/dev/fuse" in checks["mount", "transport kernel"]["remedy"]
    assert "Error: What has the state `needed` is missing" in table.stderr


def test_an_ordinary_user_is_told_what_root_is_for(workdir: Path) -> None:
    """Without privileges nothing breaks: what only root can do is said."""
    workdir.chmod(0o755)
    done = _doctor(workdir, "-o", "json", before=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
    checks = _checks(done)

    assert done.returncode in {0, 1}
    assert done.stderr in {
        "",
        "Error: What has the state `needed` is missing, and no volume can be mounted without it.\n",
    }
    assert checks["mount", "transport kernel"]["state"] == "missing"
    assert checks["machine", "capabilities"]["state"] == "missing"


@pytest.mark.slow
def test_a_pool_that_hangs_keeps_nobody_waiting(workdir: Path, loop_fs: LoopFs) -> None:
    """A pool whose disk does not answer is told within half a minute; the rest is as always."""
    point = loop_fs("ext4", 64 << 20)
    with frozen(point):
        began = time.monotonic()
        done = _doctor(workdir, "--pool", f"good={workdir}/pool", "--pool", f"bad={point}/pool", "-o", "json")
        took = time.monotonic() - began
    checks = _checks(done)

    assert took < 45
    assert done.returncode == 1
    assert checks["pool bad", "directory"]["state"] == "needed"
    assert "did not end within" in checks["pool bad", "directory"]["found"]
    assert checks["pool good", "directory"]["state"] == "ok"
