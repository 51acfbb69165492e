"""How many claims a second get their volume, on each kind of pool; and what a clone of a large volume costs.

``make rates`` asks for what is promised: 200 claims at once, 10 GiB. The defaults are short. The numbers are printed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fusevol import quantity
from fusevol.pool import Pool, VolumeRequest
from tests.conftest import LoopFs
from tests.support import api
from tests.support.agent import Agent
from tests.support.devices import Kind
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]
CLAIMS = int(os.environ.get("FUSEVOL_CLAIMS_AT_ONCE", "20"))
CLONED = quantity.parse(os.environ.get("FUSEVOL_CLONE_SIZE", "256Mi"))
MIB = 1 << 20
PROMISED = {"ext4": 20, "btrfs": 20}
"""Claims per second, when many are asked for: ext4 is a plain pool."""
PLACES = ["ext4", "xfs", "btrfs", "tmpfs", "cephfs"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, workdir: Path) -> Iterator[tuple[str, Path]]:
    """An empty directory on each kind of filesystem."""
    kind = request.param
    if kind == "cephfs":
        yield kind, request.getfixturevalue("cephfs")
    elif kind == "tmpfs":
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            yield kind, Path(directory)
    else:
        make: LoopFs = request.getfixturevalue("loop_fs")
        yield kind, make(kind, 2 << 30) / "pool"


def test_claims_at_once(place: tuple[str, Path], agent: Agent) -> None:
    """All of one file are bound."""
    kind, directory = place
    agent.ok("pool", "create", "rated", "--path", str(directory))
    meta = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "rated"}}
    agent.apply(yaml.safe_dump({**meta, "provisioner": "fusevol.io/fusevol", "parameters": {"pool": "rated"}}))
    spec = {
        "storageClassName": "rated",
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "64Mi"}},
    }
    claims = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": f"c{number}"}, "spec": spec}
        for number in range(CLAIMS)
    ]
    file = agent.directory / "all.yaml"
    file.write_text(yaml.safe_dump_all(claims))

    def bound() -> list[str]:
        claims = [o for o in api.everything(agent, "pvc") if (o.get("status") or {}).get("phase") == "Bound"]
        assert len(claims) == CLAIMS
        return [o["spec"]["volumeName"] for o in claims]

    began = time.perf_counter()
    agent.ok("apply", "-f", str(file), timeout=120)
    names = eventually(bound, 20 + CLAIMS, what="all are bound", interval=0.1)
    rate = CLAIMS / (time.perf_counter() - began)
    print(f"{kind}: {CLAIMS} claims in {CLAIMS / rate:.1f} s, {rate:.0f} a second")

    assert sorted(os.listdir(directory / "volumes")) == sorted(names)
    if CLAIMS >= 200:
        assert rate >= PROMISED.get(kind, 0)


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_clone(loop_fs: LoopFs, kind: Kind) -> None:
    """A clone takes moments and no space to speak of, however large its source is; and is another volume."""
    directory = loop_fs(kind, 2 * CLONED + (1 << 30)) / "pool"
    pool = Pool.open(directory, "p", create=True)
    source = pool.provision(VolumeRequest(id="source", capacity_bytes=2 * CLONED))
    block = os.urandom(MIB)
    with (source.data / "large").open("wb") as file:
        for number in range(CLONED // MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
        os.fsync(file.fileno())
    os.sync()
    before = pool.capacity().available
    began = time.perf_counter()
    made = pool.provision(VolumeRequest(id="clone", capacity_bytes=2 * CLONED), pool.volume("source"))
    took = time.perf_counter() - began
    os.sync()
    more = before - pool.capacity().available
    with (made.data / "large").open("r+b") as file:
        file.write(b"another")
    with (source.data / "large").open("rb") as file:
        first = file.read(8)
    pool.close()
    print(f"{kind}: a clone of {CLONED / MIB:.0f} MiB in {took * 1000:.0f} ms, {more / MIB:.1f} MiB more")

    assert took < 1
    assert more < max(CLONED // 200, 16 * MIB)
    assert first == bytes(8)
    assert (made.data / "large").stat().st_size == CLONED // MIB * MIB
