"""A pool's filesystem fails for good, and is put right: told, nobody else harmed, taken up again by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fusevol.transport import mount
from tests.conftest import LoopFs
from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.expect_log("The pool bad has failed|bad_.* ended unexpectedly|cannot be emptied"),
]
CLAIM = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: bad}
provisioner: fusevol.io/fusevol
parameters: {pool: bad}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: bad, accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
"""
CONTENT = b"what was synced\n" * 10_000


def _begin(agent: Agent, workdir: Path) -> tuple[Path, Path]:
    """A volume of the pool ``bad`` and one of another pool, both mounted, with a synced file."""
    agent.apply(CLAIM)
    targets = []
    for claim in ("data", "other"):
        if claim == "other":
            api.make_claim(agent, claim)
        eventually(lambda claim=claim: api.is_bound(agent, claim), what=f"{claim} is bound")  # type: ignore[misc]
        target = workdir / f"mnt-{claim}"
        api.mount(agent, claim, target)
        with (target / "f").open("wb") as file:
            file.write(CONTENT)
            os.fsync(file.fileno())
        targets.append(target)
    return targets[0], targets[1]


def _shut_down(point: Path) -> None:
    """As after an error of the disk: XFS refuses everything, what is in its log is kept."""
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", point], check=True)


def _told(agent: Agent, reason: str, claim: str = "data") -> bool:
    return reason in agent.ok("events", "--for", f"pvc/{claim}")


def _works(target: Path) -> bool:
    """Whether what was synced is there, and more can be written."""
    (target / "probe").write_text("x")
    (target / "probe").unlink()
    return (target / "f").read_bytes() == CONTENT


def _others_go_on(agent: Agent, other: Path) -> bool:
    api.make_claim(agent, "one-more")
    eventually(lambda: api.is_bound(agent, "one-more"), what="another pool makes volumes")
    return _works(other) and not _told(agent, "PoolFailed", "other")


def test_a_filesystem_of_ours(agent: Agent, workdir: Path) -> None:
    """One that the agent has made is mounted anew, and its volumes with it; nobody has to do anything."""
    agent.ok("pool", "create", "bad", "--image", str(workdir / "image"), "--size", "512Mi", "--fs", "xfs")
    target, other = _begin(agent, workdir)
    _shut_down(agent.state / "disks" / "bad")
    with pytest.raises(OSError, match="Input/output error"):
        (target / "f").read_bytes()
    shown = agent.cli("pool", "show", "bad")
    eventually(lambda: _told(agent, "PoolFailed"), 15.0, what="the claim is told")
    eventually(lambda: _told(agent, "PoolRecovered"), 30.0, what="the pool works again")
    eventually(lambda: _works(target), 30.0, what="the volume is mounted again")

    assert shown.returncode != 0
    assert "Input/output error" in shown.stderr
    assert _others_go_on(agent, other)


def test_a_filesystem_of_the_machine(agent: Agent, workdir: Path, loop_fs: LoopFs) -> None:
    """One that somebody else has mounted is let go of, so that they can mend it, and taken up when they have. Meanwhile
    no pool is made in the empty directory that it was mounted on."""
    point = loop_fs("xfs")
    device = next(m.source for m in mount.mounts() if m.mountpoint == str(point))
    image = subprocess.run(["losetup", "-nO", "BACK-FILE", device], check=True, capture_output=True, text=True).stdout
    agent.ok("pool", "create", "bad", "--path", str(point))
    target, other = _begin(agent, workdir)
    _shut_down(point)
    eventually(lambda: _told(agent, "PoolFailed"), 15.0, what="the claim is told")
    eventually(lambda: subprocess.run(["umount", point], check=False).returncode == 0, 30.0, what="it is let go of")
    refused = agent.cli("pool", "show", "bad")
    eventually(lambda: "not a pool" in _error(agent) or "no pool" in _error(agent), what="it is missed")
    empty = os.listdir(point)
    went_on = _others_go_on(agent, other)
    subprocess.run(["mount", "-o", "loop", image.strip(), point], check=True)
    eventually(lambda: _told(agent, "PoolRecovered"), 30.0, what="the pool works again")
    eventually(lambda: _works(target), 30.0, what="the volume is mounted again")

    assert refused.returncode != 0
    assert empty == []
    assert went_on


def _error(agent: Agent) -> str:
    return agent.cli("pool", "show", "bad").stderr


@pytest.mark.parametrize("fs", ["xfs", "btrfs"])
def test_an_image_that_was_cut_off(agent: Agent, workdir: Path, fs: str) -> None:
    """A part of the pool's disk is missing: errors, until it is put back; then all that was synced is there."""
    image = workdir / "image"
    agent.ok("pool", "create", "bad", "--image", str(image), "--size", "512Mi", "--fs", fs)
    target, other = _begin(agent, workdir)
    subprocess.run(["sync", "-f", agent.state / "disks" / "bad"], check=True)
    shutil.copyfile(image, workdir / "copy")
    os.truncate(image, 4096)
    eventually(lambda: _told(agent, "PoolFailed"), 15.0, what="the claim is told")
    went_on = _others_go_on(agent, other)
    recovered = _told(agent, "PoolRecovered")
    with (workdir / "copy").open("rb") as kept, image.open("r+b") as file:
        shutil.copyfileobj(kept, file)
        os.fsync(file.fileno())
    eventually(lambda: _told(agent, "PoolRecovered"), 40.0, what="the pool works again")
    eventually(lambda: _works(target), 30.0, what="the volume is mounted again")

    assert went_on
    assert not recovered
    assert f"The image file {image} was cut off: it has 4Ki of 512Mi" in agent.ok("events", "--for", "pvc/data")


def test_a_filesystem_that_is_read_only_for_a_while(agent: Agent, workdir: Path, loop_fs: LoopFs) -> None:
    """Nobody who reads is disturbed when somebody makes a filesystem of the machine read-only; it is told, and when it
    can be written to again, too."""
    point = loop_fs("ext4")
    agent.ok("pool", "create", "bad", "--path", str(point))
    target, _other = _begin(agent, workdir)
    before = agent.processes()
    with (target / "f").open("rb") as file:
        subprocess.run(["mount", "-o", "remount,ro", point], check=False)
        if not os.statvfs(point).f_flag & os.ST_RDONLY:  # busy: files are open for writing
            subprocess.run(["mount", "-o", "remount,ro,bind", point], check=True)
        eventually(lambda: _told(agent, "PoolFailed"), 15.0, what="the claim is told")
        read = file.read()
        subprocess.run(["mount", "-o", "remount,rw", point], check=True)
        subprocess.run(["mount", "-o", "remount,rw,bind", point], check=True)
    eventually(lambda: _told(agent, "PoolRecovered"), 30.0, what="the pool works again")

    assert read == CONTENT
    assert "has become read-only" in agent.ok("events", "--for", "pvc/data")
    assert agent.processes() == before
    assert _works(target)
