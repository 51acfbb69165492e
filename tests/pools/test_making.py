"""`fusevol pool create|grow|delete`: filesystems that the agent makes, mounts, mounts again and takes away."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusevol.transport import mount
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root
MIB = 1 << 20
_CLASS = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %(pool)s}
provisioner: fusevol.io/fusevol
allowVolumeExpansion: true
parameters: {pool: %(pool)s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: %(pool)s
  resources: {requests: {storage: %(size)s}}
"""


def claim(pool: str, size: str = "16Mi") -> str:
    """A claim of a class that names *pool*."""
    return _CLASS % {"pool": pool, "size": size}


def show(agent: Agent, pool: str) -> dict[str, Any]:
    """A pool as the API has it."""
    found: dict[str, Any] = agent.client.request("GET", f"/v1/pools/{pool}")
    return found


def refused(agent: Agent, *arguments: str) -> str:
    """The one sentence with which a command is refused."""
    done = agent.cli(*arguments)
    assert done.returncode != 0, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


@pytest.fixture
def device(workdir: Path) -> Iterator[Path]:
    """An empty block device of 400 MiB."""
    image = workdir / "device.img"
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    command = ["losetup", "--find", "--show", str(image)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    try:
        yield Path(found)
    finally:
        for point in mount.mounts():
            if point.source == found:
                with contextlib.suppress(OSError):
                    mount.unmount(point.mountpoint, lazy=True)
        subprocess.run(["losetup", "--detach", found], check=True, timeout=20)


def test_image(agent: Agent, workdir: Path) -> None:
    """A pool in an image: limits by the kernel, whoever dies; passthrough, growth online, a restart, deletion."""
    image = workdir / "pool.img"
    said = agent.ok("pool", "create", "quick", "--image", str(image), "--size", "256Mi")
    found = show(agent, "quick")
    agent.apply(claim("quick"))
    target = workdir / "data"
    agent.ok("mount", "data", str(target))
    (server,) = agent.client.request("GET", "/v1/servers")["items"]
    assert said.startswith("pool/quick created (btrfs, ")
    assert (found["driver"], found["capabilities"]["quota_bytes"], found["source"]["fs"]) == ("btrfs", True, "btrfs")
    assert (server["quota"], server["passthrough"]) == ("kernel", True)
    assert image.stat().st_blocks * 512 >= 256 * MIB
    with pytest.raises(OSError, match="quota exceeded") as caught:
        (target / "file").write_bytes(bytes(17 * MIB))
    assert caught.value.errno == errno.EDQUOT
    os.kill(server["pid"], signal.SIGKILL)
    assert os.statvfs(target).f_blocks * 4096 == 16 * MIB
    (again,) = agent.client.request("GET", "/v1/servers")["items"]
    assert (again["pid"] != server["pid"], again["usage"]["limit_bytes"]) == (True, 16 * MIB)
    agent.apply(claim("quick", "24Mi"))
    assert eventually(lambda: os.statvfs(target).f_blocks * 4096 == 24 * MIB, 20)
    (target / "file").write_bytes(b"x" * 20 * MIB)

    assert "cannot shrink" in refused(agent, "pool", "grow", "quick", "--size", "200Mi")
    assert "add --size" in refused(agent, "pool", "grow", "quick")
    with (target / "open").open("wb", buffering=0) as file:
        file.write(b"before")
        agent.ok("pool", "grow", "quick", "--size", "384Mi")
        file.write(b"after")
    assert show(agent, "quick")["capacity"]["total"] == 384 * MIB
    agent.stop()
    agent.start()
    assert (target / "open").read_bytes() == b"beforeafter"
    assert show(agent, "quick")["capacity"]["total"] == 384 * MIB

    assert "has 1 volume" in refused(agent, "pool", "delete", "quick")
    agent.ok("umount", str(target))
    agent.ok("delete", "pvc", "data")
    assert eventually(lambda: agent.cli("pool", "delete", "quick").returncode == 0, 30)
    assert not image.exists()
    assert mount.below(agent.state) == []
    assert [p["name"] for p in agent.client.request("GET", "/v1/pools")["items"]] == ["default"]


@pytest.mark.parametrize("fs", ["xfs", "btrfs"])
def test_device(agent: Agent, device: Path, workdir: Path, fs: str) -> None:
    """A pool on a device is mounted again after a restart of the machine (here: after it was unmounted)."""
    agent.ok("pool", "create", "disk", "--device", str(device), "--fs", fs)
    agent.apply(claim("disk"))
    target = workdir / "data"
    agent.ok("mount", "data", str(target))
    (target / "file").write_bytes(b"kept")
    point = Path(show(agent, "disk")["path"])
    agent.ok("umount", str(target))
    agent.stop()
    mount.unmount(point)
    agent.start()
    agent.ok("mount", "data", str(target))

    assert (target / "file").read_bytes() == b"kept"
    assert mount.find(point).fstype == fs  # type: ignore[union-attr]  # it is mounted
    assert "in use" in refused(agent, "pool", "create", "other", "--device", str(device))
    assert "grows with it" in refused(agent, "pool", "grow", "disk", "--size", "1Gi")
    agent.ok("pool", "grow", "disk")
    agent.ok("umount", str(target))
    agent.ok("delete", "pvc", "data")
    assert eventually(lambda: agent.cli("pool", "delete", "disk").returncode == 0, 30)
    assert not mount.is_mounted(point)


@pytest.mark.parametrize("content", ["ext4", "partitions", "unknown"])
def test_never_over_data(agent: Agent, device: Path, workdir: Path, content: str) -> None:
    """Nothing that holds data is formatted, whatever it is, nothing of it is changed; with --force it is."""
    if content == "ext4":
        subprocess.run(["mkfs.ext4", "-q", str(device)], check=True, timeout=60)
    elif content == "partitions":
        # an MBR with one partition of 100 MiB: status, CHS, type, CHS, LBA, sectors; signature
        entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 204800)
        with device.open("r+b") as file:
            file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    else:
        with device.open("r+b") as file:
            file.seek(5000)
            file.write(b"precious")
    before = device.read_bytes()
    told = refused(agent, "pool", "create", "disk", "--device", str(device))
    whole = workdir / "whole.img"
    whole.write_bytes(before[: 400 * MIB])
    of_image = refused(agent, "pool", "create", "disk", "--image", str(whole), "--size", "400Mi")

    assert "already holds data" in told
    assert "--force" in told
    assert "already holds data" in of_image
    assert device.read_bytes() == before
    assert whole.read_bytes() == before
    assert "There is no pool" in refused(agent, "pool", "show", "disk")
    agent.ok("pool", "create", "disk", "--device", str(device), "--force")


@pytest.mark.expect_log("pool gone cannot be (used|emptied)")
def test_cannot_be_mounted(agent: Agent, workdir: Path) -> None:
    """A pool whose image is gone is shown with the reason, others work, and it comes back with its image."""
    image, aside = workdir / "pool.img", workdir / "aside"
    agent.ok("pool", "create", "gone", "--image", str(image), "--size", "128Mi")
    agent.ok("pool", "create", "other", "--path", str(workdir / "other"))
    point = Path(show(agent, "gone")["path"])
    agent.stop()
    mount.unmount(point)
    image.rename(aside)
    agent.start()
    (found,) = [p for p in agent.client.request("GET", "/v1/pools")["items"] if p["name"] == "gone"]
    agent.apply(claim("other"))

    assert "is not there: attach the device, or put the image file back." in found["error"]
    assert "is not there" in refused(agent, "pool", "show", "gone")
    assert eventually(lambda: agent.get("pvc", "data")["status"].get("phase") == "Bound", 20)
    aside.rename(image)
    assert show(agent, "gone")["driver"] == "btrfs"
    agent.stop()
    mount.unmount(point)
    image.rename(aside)
    agent.start()
    assert "with --force" in refused(agent, "pool", "delete", "gone")
    agent.ok("pool", "delete", "gone", "--force")
    assert "There is no pool" in refused(agent, "pool", "show", "gone")
    assert aside.exists()


@pytest.mark.expect_log("pool half cannot be (used|emptied)")
def test_interrupted(agent: Agent, workdir: Path) -> None:
    """A creation that was interrupted is shown as failed, is no pool, and can be deleted and done again."""
    agent.stop()
    book = agent.state / "pools.d"
    book.mkdir()
    record = {"version": 1, "name": "half", "kind": "image", "place": str(workdir / "half.img"), "fs": "btrfs"}
    (book / "half.json").write_text(json.dumps(record))
    agent.start()
    told = refused(agent, "pool", "show", "half")
    agent.ok("pool", "delete", "half")
    agent.ok("pool", "create", "half", "--image", str(workdir / "half.img"), "--size", "128Mi")

    assert "was not made to the end" in told
    assert show(agent, "half")["driver"] == "btrfs"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x"], "one of --path, --device and --image"),
        (["x", "--path", "/p", "--device", "/dev/x"], "one of --path, --device and --image"),
        (["X", "--path", "/p"], "cannot be the name of a pool"),
        (["default", "--path", "/p"], "There is a pool"),
        (["x", "--path", "/"], "must be an absolute path"),
        (["x", "--path", "/p", "--fs", "xfs"], "is not formatted"),
        (["x", "--path", "/p", "--driver", "zfs"], "There is no pool driver"),
        (["x", "--path", "/p", "--overcommit", "0"], "give a number above 0"),
        (["x", "--image", "/p.img"], "--size goes with --image"),
        (["x", "--image", "/p.img", "--size", "1Mi"], "is too small for btrfs"),
        (["x", "--image", "/p.img", "--size", "1Gi", "--fs", "zfs"], "choose one of xfs, btrfs"),
        (["x", "--device", "/dev/none-there"], "There is no device"),
        (["x", "--device", "/etc/passwd"], "is not a block device"),
    ],
)
def test_bad_orders(agent: Agent, arguments: list[str], said: str) -> None:
    """What cannot be made is refused in one sentence, and nothing is left of it."""
    assert said in refused(agent, "pool", "create", *arguments)
    assert [p["name"] for p in agent.client.request("GET", "/v1/pools")["items"]] == ["default"]


def test_promises(agent: Agent, workdir: Path) -> None:
    """A claim for more than a pool may promise stays Pending, and its event says why."""
    agent.ok("pool", "create", "strict", "--image", str(workdir / "p.img"), "--size", "128Mi", "--overcommit", "1")
    agent.apply(claim("strict", "256Mi"))

    def told() -> list[str]:
        events = agent.client.request("GET", "/v1/events")["items"]
        return [e["message"] for e in events if e["reason"] == "ProvisioningFailed"]

    assert "there is no room for 256Mi" in eventually(told, 20)[0]
    assert agent.get("pvc", "data")["status"]["phase"] == "Pending"
