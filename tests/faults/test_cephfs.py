"""A Ceph cluster that fails: one clear sentence, other volumes go on, and all is well again when it answers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.pools.test_cephfs_claims import CLAIM, NAME, Seed, seed
from tests.support import ceph
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.processes import alive

__all__ = ["seed"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.expect_log("has not answered for", "do not end", "cannot be known", "failed to provision"),
]


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> Iterator[Agent]:
    """An agent that is impatient."""
    running = Agent(workdir, logs)
    (workdir / "agent.yaml").write_text("hangs: {giveUpAfter: 3s, reportAfter: 2s}\n")
    try:
        yield running.start()
    finally:
        running.close()


@contextmanager
def osd_stopped(cluster: ceph.Cluster) -> Iterator[None]:
    """What is written to files waits."""
    with cluster.frozen("osd"):
        yield


@contextmanager
def mds_gone(cluster: ceph.Cluster) -> Iterator[None]:
    """What is done to names waits."""
    cluster.kill("mds")
    try:
        yield
    finally:
        cluster.launch("mds")
        cluster.wait_active()


@pytest.mark.expect_log("ended unexpectedly", "has died", "was ended", "mount")
def test_its_client_dies(seed: Seed) -> None:
    """ceph-fuse is killed: it is started again, the volume mounted again, all that was durable is there."""
    seed.apply()
    target = seed.mount()
    durable(target / "before", "before")
    (client,) = seed.ceph_fuse()
    os.kill(client, signal.SIGKILL)
    eventually(lambda: not alive(client), what="ceph-fuse is dead")
    found = eventually((target / "before").read_text, 60.0, what="the volume is mounted again")
    durable(target / "after", "after")

    assert found == "before"
    assert seed.ceph_fuse() not in ([], [client])
    assert "Traceback" not in (seed.agent.directory / "agent.log").read_text()


def durable(path: Path, text: str) -> str:
    """Write *path* as a new file, to the disk; *text*."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return text


BY_HAND = pytest.mark.skipif(
    not os.environ.get("FUSEVOL_CEPH_OSD"),
    reason="the cluster itself does not always come back from it: set FUSEVOL_CEPH_OSD=1 to try",
)


@pytest.mark.parametrize("fault", [pytest.param(osd_stopped, marks=BY_HAND), mds_gone])
def test_a_cluster_that_hangs(seed: Seed, fault: object) -> None:
    """Whoever writes waits and is told of; claims elsewhere live; afterwards nothing is lost, without a restart."""
    assert callable(fault)
    seed.apply()
    target = seed.mount()
    durable(target / "before", "before")
    written: list[str] = []
    # a daemon: should the cluster not come back, the test fails, and is not waited for
    hanging = threading.Thread(target=lambda: written.append(durable(target / "during", "during")), daemon=True)
    broken: AbstractContextManager[None] = fault(seed.cluster)
    with broken:
        hanging.start()
        eventually(lambda: "Programs wait for the storage of" in seed.events(), 30.0, what="the hang is told")
        waits = hanging.is_alive()
        seed.agent.apply(
            CLAIM.replace("-test", "-else").replace("storageClassName: cephfs", "storageClassName: fusevol")
        )
        eventually(lambda: seed.agent.get("pvc", "dlkit-workspace-else", *NAME[1:])["spec"].get("volumeName"), 20.0)
        other = seed.agent.directory / "other"
        seed.agent.ok("mount", "dlkit-workspace-else", str(other), *NAME[1:])
        elsewhere = durable(other / "f", "elsewhere")
        seed.agent.apply(CLAIM.replace("-test", "-late"))
    hanging.join(60)
    assert written, "the write does not come to an end"
    late = eventually(
        lambda: seed.agent.get("pvc", "dlkit-workspace-late", *NAME[1:])["spec"].get("volumeName"), 60.0, what="bound"
    )
    durable(target / "after", "after")

    assert waits
    assert (written, elsewhere) == (["during"], "elsewhere")
    assert {p.name: p.read_text() for p in target.iterdir()} == {t: t for t in ("before", "during", "after")}
    assert late
