"""Volumes that go from one pool to another."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fusevol import quantity
from fusevol.errors import EXIT_FAILED
from fusevol.pool.comparison import first_difference
from fusevol.transport import mount
from tests.conftest import LoopFs
from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually
from tests.support.processes import alive

pytestmark = pytest.mark.root
SNAPSHOT = """
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: std, annotations: {snapshot.storage.kubernetes.io/is-default-class: "true"}}
driver: fusevol.io
deletionPolicy: Delete
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: s}
spec: {source: {persistentVolumeClaimName: data}}
"""


def _furnish(root: Path) -> None:
    """All that a copy may lose."""
    (root / "dir").mkdir(mode=0o2750)
    (root / "dir" / "data").write_bytes(os.urandom(3 << 20))
    os.link(root / "dir" / "data", root / "another name")
    (root / "link").symlink_to("dir/data")
    os.mkfifo(root / "fifo", 0o600)
    with (root / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    os.setxattr(root / "dir", "user.colour", b"green")
    subprocess.run(["setfacl", "-m", "u:1234:rw", root / "dir" / "data"], check=True)
    os.chown(root / "sparse", 1000, 1001)
    os.utime(root / "sparse", ns=(1, 1_234_567_890))
    os.chmod(root, 0o3740)


@pytest.fixture
def fast(agent: Agent, loop_fs: LoopFs) -> Path:
    """A second pool, ``fast``, on a filesystem of its own."""
    place = loop_fs("btrfs") / "pool"
    agent.ok("pool", "create", "fast", "--path", str(place))
    return place


def _handle(agent: Agent, volume: str) -> str:
    found: str = agent.get("pv", volume)["spec"]["csi"]["volumeHandle"]
    return found


def _mounted(agent: Agent, claim: str, target: Path) -> Path:
    api.mount(agent, claim, target)
    return target


def test_there_and_back(agent: Agent, fast: Path, workdir: Path) -> None:
    """Everything comes along, the limit too; the old volume is gone; and the claim can be used as before."""
    volume = api.bound_claim(agent, "data")
    target = _mounted(agent, "data", workdir / "mnt")
    _furnish(target)
    copy = workdir / "copy"
    subprocess.run(["cp", "-a", target, copy], check=True)
    api.unmount(agent, target)
    there = agent.ok("move", "data", "--to", "fast")
    handle, left = _handle(agent, volume), os.listdir(agent.pool / "volumes")
    _mounted(agent, "data", target)
    source = next(m for m in mount.mounts() if m.mountpoint == str(target))
    same, size = first_difference(copy, target), os.statvfs(target)
    capacity = agent.get("pv", volume)["spec"]["capacity"]["storage"]
    api.unmount(agent, target)
    agent.ok("move", f"pv/{volume}", "--to", "default")
    _mounted(agent, "data", target)
    again = first_difference(copy, target)
    api.unmount(agent, target)
    events = agent.ok("events", "--for", "pvc/data")

    assert there == "persistentvolumeclaim/data moved\n"
    assert handle == f"fast/{volume}"
    assert left == []
    assert "fast" in source.source
    assert same is again is None
    assert size.f_blocks * size.f_frsize == quantity.parse(capacity)
    assert _handle(agent, volume) == f"default/{volume}"
    eventually(lambda: os.listdir(fast / "volumes") == os.listdir(fast / "trash") == [], what="the other pool is empty")
    assert events.count("Moving") == events.count("Moved") == 2
    assert set(agent.get("pv", volume)["metadata"]["annotations"]) & {"fusevol.io/move-to", "fusevol.io/move-from"} == (
        set()
    )


def test_what_cannot_be_moved(agent: Agent, fast: Path, workdir: Path) -> None:
    """One sentence, and nothing has changed."""
    volume = api.bound_claim(agent, "data")
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolume, metadata: {name: host}, spec: {capacity: {storage: 1Gi}, "
        f"accessModes: [ReadWriteOnce], hostPath: {{path: {workdir}}}}}}}"
    )
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: unbound}, spec: {storageClassName: none, "
        "accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}"
    )
    target = _mounted(agent, "data", workdir / "mnt")
    said = {
        words: agent.cli("move", *words.split())
        for words in (
            "data --to fast",
            "nothing --to fast",
            "unbound --to fast",
            "pv/host --to fast",
            "pod/x --to fast",
            "data --to default",
            "data --to nowhere",
        )
    }
    (target / "f").write_text("x")

    assert f"is mounted at {target}" in said["data --to fast"].stderr
    assert "has no volume yet" in said["unbound --to fast"].stderr
    assert "is in no pool" in said["pv/host --to fast"].stderr
    assert "is no claim" in said["pod/x --to fast"].stderr
    assert "is in pool default already" in said["data --to default"].stderr
    assert 'no pool "nowhere"' in said["data --to nowhere"].stderr
    assert all(done.stderr.count("\n") == 1 for done in said.values()), said
    assert all(done.returncode != 0 for done in said.values())
    assert _handle(agent, volume) == f"default/{volume}"
    assert os.listdir(fast / "volumes") == []


def test_no_room(agent: Agent, loop_fs: LoopFs, workdir: Path) -> None:
    """What does not fit stays where it is, and is told so."""
    place = loop_fs("ext4", 32 << 20) / "pool"
    agent.ok("pool", "create", "small", "--path", str(place))
    volume = api.bound_claim(agent, "data")
    target = _mounted(agent, "data", workdir / "mnt")
    (target / "large").write_bytes(os.urandom(40 << 20))
    api.unmount(agent, target)
    done = agent.cli("move", "data", "--to", "small")
    _mounted(agent, "data", target)

    assert done.returncode == EXIT_FAILED
    assert "was not moved. The volume stays in its pool: " in done.stderr
    assert "full" in done.stderr or "space" in done.stderr
    assert (target / "large").stat().st_size == 40 << 20
    assert _handle(agent, volume) == f"default/{volume}"
    assert os.listdir(place / "volumes") == []
    assert agent.get("pv", volume)["status"]["phase"] == "Bound"


def test_a_bad_copy(agent: Agent, fast: Path, workdir: Path) -> None:
    """A copy that is not the same, though nobody said so, is not taken for the volume."""
    volume = api.bound_claim(agent, "data")
    file = agent.pool / "volumes" / volume / "data" / "f"
    file.write_text("right")
    (workdir / "bin").mkdir()
    bad = workdir / "bin" / "cp"
    bad.write_text(
        '#!/bin/bash\n/bin/cp "$@" && cd "${@: -1}" && touch -r f t && echo -n wrong > f && touch -r t f && rm t\n'
    )
    bad.chmod(0o755)
    agent.environment["PATH"] = f"{bad.parent}:{agent.environment['PATH']}"
    agent.stop()
    agent.start()
    done = agent.cli("move", "data", "--to", "fast")

    assert "The copy in pool fast is not the same, and was deleted: " in done.stderr
    assert done.returncode == EXIT_FAILED
    assert file.read_text() == "right"
    assert _handle(agent, volume) == f"default/{volume}"
    assert os.listdir(fast / "volumes") == []


def test_a_pod_waits_for_it(agent: Agent, fast: Path, workdir: Path) -> None:
    """Who wants the volume while it is copied is refused with the reason, and a Pod has it afterwards; a claim that is
    deleted meanwhile takes its volume with it."""
    volume = api.bound_claim(agent, "data")
    data = agent.pool / "volumes" / volume / "data"
    for i in range(15_000):  # so that it takes a while
        (data / f"f{i}").touch()
    agent.ok("move", "data", "--to", "fast", "--no-wait")
    copier = eventually(lambda: _copier(fast), interval=0.001, what="it is copied")
    os.kill(copier, 19)
    try:
        refused = agent.cli("mount", "data", str(workdir / "mnt"))
        twice = agent.ok("move", "data", "--to", "fast", "--no-wait")
        elsewhere = agent.cli("move", "data", "--to", "default")
        agent.ok("resize", "data", "128Mi", "--no-wait")
        agent.apply(SNAPSHOT)
        eventually(lambda: "is being moved" in agent.ok("events", "--for", "pvc/data"), what="growing waits")
        api.make_pod(agent, "user", "data")
        eventually(lambda: "is being moved to pool fast" in agent.ok("events", "--for", "pod/user"), what="it is told")
    finally:
        os.kill(copier, 18)
    eventually(lambda: api.is_ready(agent, "user"), 20.0, what="the Pod has its volume")
    handle = _handle(agent, volume)
    eventually(lambda: _limit(fast, volume) == 128 << 20, 20.0, what="it has grown where it is now")
    eventually(lambda: (agent.get("volumesnapshot", "s").get("status") or {}).get("readyToUse"), 20.0, what="snapshot")
    kept = os.listdir(fast / "snapshots")
    agent.ok("delete", "volumesnapshot", "s")
    api.delete(agent, "pod", "user")
    api.delete(agent, "pvc", "data")
    eventually(lambda: api.everything(agent, "pv") == [], 20.0, what="the volume is gone")

    assert "is being moved to pool fast" in refused.stderr
    assert twice == "persistentvolumeclaim/data is being moved\n"
    assert "is being moved to fast/" in elsewhere.stderr
    assert handle == f"fast/{volume}"
    assert not data.exists()
    assert not alive(copier)
    assert len(kept) == 1
    eventually(lambda: os.listdir(fast / "volumes") == os.listdir(fast / "trash") == [], what="both pools are empty")


def test_no_move_by_annotations_alone(agent: Agent, fast: Path) -> None:
    """Who writes the notes of a move into a PersistentVolume has no other volume deleted, nor its own."""
    one, other = api.bound_claim(agent, "one"), api.bound_claim(agent, "other")
    here = f"default/{one}"
    for source, target in ((f"default/{other}", here), (here, here), (f"fast/{one}", f"default/{other}")):
        agent.ok("annotate", "pv", one, f"fusevol.io/move-from={source}", f"fusevol.io/move-to={target}", "--overwrite")
    agent.ok("annotate", "pv", one, "fusevol.io/move-from-", "fusevol.io/move-to-")
    agent.ok("resize", "one", "128Mi")  # whatever was to be done has been done

    assert sorted(os.listdir(agent.pool / "volumes")) == sorted([one, other])
    assert os.listdir(fast / "volumes") == os.listdir(agent.pool / "trash") == []


def _limit(pool: Path, volume: str) -> int:
    found: int = json.loads((pool / "volumes" / volume / "volume.json").read_text())["capacity_bytes"]
    return found


def _copier(pool: Path) -> int:
    """The process that copies into *pool*, or 0."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == b"cp" and any(word.startswith(os.fsencode(pool)) for word in words):
                return int(entry.name)
    return 0
