"""Two nodes with a CephFS between them: who may have a volume that is for one node at a time, and who no longer."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pools.test_cephfs_claims import ADMIN, CLAIM, CLASS, NAME
from tests.support import ceph, nodes
from tests.support.logs import LogCheck
from tests.support.nodes import NodeAgent
from tests.support.polling import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.expect_log("The trash of pool .* cannot be emptied"),
]
LEASE = 3.0
"""Seconds."""


class Pair:
    """The nodes ``left`` and ``right``, and the claim, which was made on the left one."""

    def __init__(self, left: NodeAgent, right: NodeAgent, manifests: str) -> None:
        self.left = left
        self.right = right
        self._manifests = manifests

    def share(self, modes: str = "ReadWriteOnce") -> None:
        """Make the claim on the left node, and tell the right one of its volume."""
        claim = CLAIM.replace("ReadWriteOnce", modes)
        self.left.apply(f"{self._manifests}---\n{claim}")
        eventually(lambda: self.left.get("pvc", *NAME)["status"].get("phase") == "Bound", 30.0, what="it is bound")
        bound = self.left.get("pvc", *NAME)
        volume = self.left.get("pv", bound["spec"]["volumeName"])
        for obj in (bound, volume):
            _forget(obj["metadata"], "uid", "resourceVersion", "creationTimestamp", "finalizers", "managedFields")
            obj.pop("status", None)
        _forget(volume["spec"]["claimRef"], "uid", "resourceVersion")
        _forget(bound["metadata"], "annotations")
        self.right.apply(f"{self._manifests}---\n{yaml.safe_dump_all([volume, bound])}")
        eventually(lambda: self.right.get("pvc", *NAME)["status"].get("phase") == "Bound", 30.0, what="there, too")


def _forget(fields: dict[str, Any], *names: str) -> None:
    for name in names:
        fields.pop(name, None)


def _mount(node: NodeAgent) -> Path:
    target = node.directory / "mnt"
    node.ok("mount", *NAME[:1], str(target), *NAME[1:])
    return target


def _refused(node: NodeAgent) -> str:
    done = node.cli("mount", *NAME[:1], str(node.directory / "mnt"), *NAME[1:])
    assert done.returncode != 0
    return done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[ceph.Cluster]:
    """A cluster that nodes reach from their networks."""
    reason = ceph.why_not()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="ceph"))
    with nodes.reachable() as address, ceph.cluster(directory, address=address) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def pair(cluster: ceph.Cluster, workdir: Path, logs: LogCheck) -> Iterator[Pair]:
    """See above."""
    secret = ADMIN.format(key=base64.b64encode(cluster.key("admin").encode()).decode())
    here = {"monitors": cluster.monitors, "claimRoot": f"/nodes-{workdir.name}"}
    storage_class = yaml.safe_dump({**CLASS, "parameters": CLASS["parameters"] | here})
    made: list[NodeAgent] = []
    try:
        for number, name in enumerate(("left", "right"), 1):
            made.append(NodeAgent(workdir / name, logs, name, number))
            (made[-1].directory / "agent.yaml").write_text(f"leaseDuration: {LEASE}s\n")
            made[-1].start()
        yield Pair(made[0], made[1], f"{secret}---\n{storage_class}")
    finally:
        for node in made:
            node.close()


def test_a_volume_goes_from_node_to_node(pair: Pair) -> None:
    """While one node has it the other is refused, with the name of the first; what that has written is there then."""
    pair.share()
    left, right = _mount(pair.left), pair.right.directory / "mnt"
    pair.left.shell(f"echo left > {left}/f")
    refusal = _refused(pair.right)
    pair.left.ok("umount", str(left))
    began = time.monotonic()
    _mount(pair.right)
    took = time.monotonic() - began
    read = pair.right.shell(f"cat {right}/f; echo right >> {right}/f").stdout
    again = _refused(pair.left)
    scanned = pair.right.ok("pool", "scan")

    assert 'is in use by the node "left"' in refusal
    assert took < LEASE
    assert read == "left\n"
    assert 'is in use by the node "right"' in again
    assert scanned == "All volumes are known.\n"


# what is written is durable or an error: so a line that is in the file was written then
_WRITER = """
i=0
while :; do
  i=$((i+1))
  echo $i >> {target}/log || {{ echo failed at $i; exit 1; }}
done
"""


@pytest.mark.expect_log("The lease", "the lease", "ended unexpectedly", "cannot be mounted", "died", "the connection")
def test_who_was_frozen_cannot_write(pair: Pair) -> None:
    """A node that did not renew its lease in time has lost it: what wrote there gets errors, and not a byte arrives."""
    pair.share()
    left, right = _mount(pair.left), pair.right.directory / "mnt"
    writer = pair.left.program(_WRITER.format(target=left))
    eventually(lambda: pair.left.shell(f"wc -l < {left}/log").stdout.strip() not in {"", "0"}, what="it writes")
    _refused(pair.right)
    with pair.left.frozen():
        began = time.monotonic()
        eventually(lambda: _mount(pair.right).name, 30.0, interval=0.2, what="the lease is over")
        took = time.monotonic() - began
        size = pair.right.shell(f"stat -c %s {right}/log; cp {right}/log {right}/copy").stdout
    said, _ = writer.communicate(timeout=30)
    late = pair.left.shell(f"echo late >> {left}/log; echo late > {left}/new")
    eventually(lambda: _closed(pair.left), 30.0, what="the left node has let go of it")
    after = pair.right.shell(f"stat -c %s {right}/log; cmp {right}/log {right}/copy && ls {right}").stdout
    pair.right.ok("umount", str(right))
    pair.left.ok("umount", str(left))
    eventually(lambda: _mount(pair.left).name, 30.0, interval=0.2, what="the left node has it again")
    back = pair.left.shell(f"cmp {left}/log {left}/copy && echo same").stdout

    assert LEASE / 2 < took < 4 * LEASE
    assert said.startswith("failed at")
    assert late.returncode != 0
    assert after.split() == [size.strip(), "copy", "log"]
    assert back == "same\n"


def _closed(node: NodeAgent) -> bool:
    return not node.processes()


def test_an_agent_that_is_away_keeps_what_it_has(pair: Pair) -> None:
    """Servers renew their leases themselves: the volume goes on without an agent, and a killed server's is held."""
    pair.share()
    left = _mount(pair.left)
    pair.left.kill()
    for pid in pair.left.processes():
        os.kill(pid, signal.SIGKILL)
    _refused(pair.right)
    since = time.monotonic()
    refusals = 0
    while time.monotonic() - since < 2 * LEASE:
        assert "left" in _refused(pair.right)
        refusals += 1
    written = pair.left.shell(f"echo on > {left}/f && cat {left}/f").stdout
    pair.left.start()
    pair.left.ok("umount", str(left))
    right = _mount(pair.right)

    assert refusals > 1
    assert written == "on\n"
    assert pair.right.shell(f"cat {right}/f").stdout == "on\n"


@pytest.mark.expect_log("is in use by the node")
def test_a_volume_is_not_deleted_from_under_a_node(pair: Pair) -> None:
    """Another node's claim of it may go, with the policy Delete: its volume stays until the first one lets go of it."""
    pair.share()
    left = _mount(pair.left)
    pair.left.shell(f"echo kept > {left}/f")
    pair.right.ok("delete", "pvc", *NAME, "--no-wait")
    eventually(lambda: "is in use by the node" in pair.right.ok("events", "-A"), 30.0, what="an event says why not")
    kept = pair.left.shell(f"cat {left}/f").stdout
    pair.left.ok("umount", str(left))
    eventually(lambda: not pair.right.get("pv")["items"], 60.0, what="it is deleted after all")

    assert kept == "kept\n"


def test_many_nodes_see_each_others_writes(pair: Pair) -> None:
    """ReadWriteMany: both have it, and what one writes the other reads within a second."""
    pair.share("ReadWriteMany")
    left, right = _mount(pair.left), _mount(pair.right)
    waits = []
    for number in range(5):
        writer, reader = (pair.left, pair.right) if number % 2 else (pair.right, pair.left)
        there, here = (left, right) if number % 2 else (right, left)
        writer.shell(f"echo {number} >> {there}/f && sync {there}/f")
        began = time.monotonic()
        eventually(
            lambda reader=reader, here=here, number=number: reader.shell(f"tail -n 1 {here}/f").stdout == f"{number}\n",
            what="it is seen",
        )
        waits.append(time.monotonic() - began)

    assert max(waits) < 2


def test_a_volume_of_many_nodes_is_not_deleted_from_under_one(pair: Pair) -> None:
    """ReadWriteMany: it stays while a node has it mounted, if without an agent, and goes when the last lets go."""
    pair.share("ReadWriteMany")
    left, right = _mount(pair.left), _mount(pair.right)
    pair.right.ok("umount", str(right))
    pair.left.kill()
    pair.right.ok("delete", "pvc", *NAME, "--no-wait")
    eventually(lambda: 'in use by the node "left"' in pair.right.ok("events", "-A"), 30.0, what="an event says why not")
    since = time.monotonic()
    writes = 0
    while time.monotonic() - since < 2 * LEASE:
        assert pair.left.shell(f"echo {writes} >> {left}/f && sync {left}/f").returncode == 0
        assert pair.right.get("pv")["items"]
        writes += 1
    kept = pair.left.shell(f"wc -l < {left}/f").stdout
    pair.left.start()
    pair.left.ok("umount", str(left))
    eventually(lambda: not pair.right.get("pv")["items"], 60.0, what="it is deleted after all")
    eventually(lambda: "is empty" in pair.right.cli("trash", "list").stderr, 60.0, what="nothing of it is left")

    assert int(kept) == writes > 1


@pytest.mark.expect_log(
    "The lease",
    "the lease",
    "is gone",
    "is in use by the node",
    "ended unexpectedly",
    "cannot be mounted",
    "died",
    "the connection",
)
def test_a_node_that_is_away_keeps_no_volume_of_many_nodes(pair: Pair) -> None:
    """ReadWriteMany: who did not renew its share in time does not keep it from being deleted, and learns of it."""
    pair.share("ReadWriteMany")
    left = _mount(pair.left)
    pair.left.shell(f"echo lost > {left}/f")
    with pair.left.frozen():
        pair.right.ok("delete", "pvc", *NAME, "--no-wait")
        eventually(lambda: 'in use by the node "left"' in pair.right.ok("events", "-A"), 30.0, what="it is kept")
        eventually(lambda: not pair.right.get("pv")["items"], 60.0, what="it is deleted after all")
    eventually(lambda: _closed(pair.left), 30.0, what="the left node has let go of it")
    late = pair.left.shell(f"echo late >> {left}/f")

    assert late.returncode != 0
