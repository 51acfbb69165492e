"""Many calls at once, calls for a pool that hangs, calls that are given up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from agent.csi import csi_pb2 as pb
from agent.csi.refusal import Code
from tests.conftest import LoopFs
from tests.csi.conftest import CsiAgent
from tests.support.csi import MIB, Kubelet, Mode, capability
from tests.support.devices import frozen
from tests.support.logs import LogCheck
from tests.support.polling import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]

MANY = 100
SLOWEST = 30.0
"""Seconds that one of :data:`MANY` Pods at once may take; a busy machine took 3, a kubelet waits 120."""


def test_a_hundred_pods_at_once(kubelet: Kubelet, agent: CsiAgent) -> None:
    """A hundred volumes are made, staged and published at the same time: all are right, the slowest is soon enough."""

    def pod(i: int) -> float:
        began = time.monotonic()
        volume = kubelet.plugin.create(f"v{i}", (i + 1) * MIB)
        kubelet.stage(volume)
        target = kubelet.publish(volume)
        took = time.monotonic() - began
        (target / "f").write_text(volume)
        return took

    began = time.monotonic()
    with ThreadPoolExecutor(MANY) as pool:
        took = sorted(pool.map(pod, range(MANY)))
    whole = time.monotonic() - began
    print(f"{MANY} pods: {whole:.2f} s, each p50 {took[MANY // 2]:.2f} s, p99 {took[-2]:.2f} s, max {took[-1]:.2f} s")
    sizes = []
    for i in range(MANY):
        size = os.statvfs(kubelet.target("pod", f"default/v{i}"))
        sizes.append(size.f_blocks * size.f_frsize)
    read = [(agent.pool / "volumes" / f"v{i}" / "data" / "f").read_text() for i in range(MANY)]
    began = time.monotonic()
    with ThreadPoolExecutor(MANY) as pool:
        list(pool.map(kubelet.unpublish, [f"default/v{i}" for i in range(MANY)]))
        list(pool.map(kubelet.unstage, [f"default/v{i}" for i in range(MANY)]))
        list(pool.map(lambda i: kubelet.plugin.call("DeleteVolume", volume_id=f"default/v{i}"), range(MANY)))
    print(f"undone in {time.monotonic() - began:.2f} s")

    assert sizes == [(i + 1) * MIB for i in range(MANY)]
    assert read == [f"default/v{i}" for i in range(MANY)]
    assert took[-2] < SLOWEST
    assert os.listdir(agent.pool / "volumes") == []
    assert not agent.processes()


def test_one_call_at_a_time_for_a_volume(kubelet: Kubelet, agent: CsiAgent) -> None:
    """Fifty calls for one volume at once make one volume and one server; those that come too many are ABORTED."""

    def pod(_: int) -> int:
        try:
            kubelet.plugin.create("v")
            kubelet.stage("default/v")
        except grpc.RpcError as e:
            code: int = e.code().value[0]
            return code
        return 0

    with ThreadPoolExecutor(50) as pool:
        codes = set(pool.map(pod, range(50)))
    kubelet.stage("default/v")

    assert 0 in codes
    assert codes <= {0, Code.ABORTED}
    assert os.listdir(agent.pool / "volumes") == ["v"]
    assert len(agent.processes()) == 1


@pytest.fixture
def hanging(workdir: Path, logs: LogCheck, loop_fs: LoopFs) -> Iterator[tuple[CsiAgent, Path]]:
    """An agent with a second pool, ``slow``, on a filesystem that can be frozen."""
    point = loop_fs("ext4", 64 << 20)
    agent = CsiAgent(workdir, logs)
    agent.configure("hangs: {giveUpAfter: 3s, reportAfter: 2s}\n")
    try:
        agent.start("--pool", f"default={agent.pool}", "--pool", f"slow={point}/pool")
        yield agent, point
    finally:
        agent.close()


@pytest.mark.expect_log("has not answered for", "has not ended", "do not end")
def test_a_pool_that_hangs_holds_up_nobody_else(hanging: tuple[CsiAgent, Path]) -> None:
    """With a hundred calls for a pool that hangs, Pods of the other pool come and go; the hundred are told."""
    agent, point = hanging
    kubelet = Kubelet(agent)
    with contextlib.closing(kubelet):
        bad = kubelet.plugin.create("bad", MIB, parameters={"pool": "slow"})
        kubelet.stage(bad)
        target = kubelet.publish(bad)

        def works(i: int) -> float:
            began = time.monotonic()
            volume = kubelet.plugin.create(f"good{i}")
            kubelet.stage(volume)
            (kubelet.publish(volume) / "f").write_text("x")
            kubelet.unpublish(volume)
            kubelet.unstage(volume)
            kubelet.plugin.call("DeleteVolume", volume_id=volume)
            return time.monotonic() - began

        usual = works(0)
        with frozen(point):
            program = subprocess.Popen([sys.executable, "-ISc", "open(__import__('sys').argv[1], 'x')", target / "f"])
            with ThreadPoolExecutor(MANY) as pool:
                asked = [
                    pool.submit(
                        kubelet.plugin.refusal,
                        "CreateVolume",
                        name=f"late{i}",
                        volume_capabilities=[capability()],
                        capacity_range=pb.CapacityRange(required_bytes=MIB),
                        parameters={"pool": "slow"},
                    )
                    for i in range(MANY)
                ]
                took = max(works(i) for i in range(1, 6))
                codes = {future.result()[0] for future in asked}
            stats = eventually(
                lambda: _abnormal(kubelet, bad, target), 20, what="the condition says that the volume hangs"
            )
            told = kubelet.plugin.call("Probe").ready.value
        assert program.wait(20) == 0
        late = eventually(
            lambda: not _refused(kubelet, "late0"), 20, what="the pool is as before, and the volume can be made"
        )
        kubelet.unpublish(bad)
        kubelet.unstage(bad)
        print(f"usual {usual:.2f} s, while the other pool hung at most {took:.2f} s")

        assert took < usual + 3
        assert codes == {Code.UNAVAILABLE}
        assert stats
        assert told
        assert late


@pytest.mark.expect_log("has not answered for", "has not ended", "do not end")
def test_a_call_ends_with_its_deadline(hanging: tuple[CsiAgent, Path]) -> None:
    """A caller is answered when its patience is over, and the same call later completes what was begun."""
    agent, point = hanging
    kubelet = Kubelet(agent)
    with contextlib.closing(kubelet):
        fields = {
            "name": "v",
            "volume_capabilities": [capability(Mode.SINGLE_NODE_WRITER)],
            "capacity_range": pb.CapacityRange(required_bytes=MIB),
            "parameters": {"pool": "slow"},
        }
        slow = kubelet.plugin.create("slow", MIB, parameters={"pool": "slow"})
        with frozen(point):
            codes = [
                kubelet.plugin.refusal("CreateSnapshot", 0.05, name="s", source_volume_id=slow)[0] for _ in range(12)
            ]
            began = time.monotonic()
            code, _ = kubelet.plugin.refusal("CreateVolume", 0.5, **fields)
            took = time.monotonic() - began
            given_up = kubelet.plugin.start("CreateVolume", 60.0, **fields)
            given_up.cancel()
            after = kubelet.plugin.create("w")
        eventually(lambda: not _refused(kubelet, "v"), 20, what="the volume can be made")

        assert code == Code.DEADLINE_EXCEEDED
        assert codes == [Code.DEADLINE_EXCEEDED] * 12  # one that nobody waits for any more keeps no other waiting
        assert took < 2
        assert given_up.cancelled()
        assert after == "default/w"


def _abnormal(kubelet: Kubelet, volume: str, target: Path) -> str:
    stats = kubelet.plugin.call("NodeGetVolumeStats", volume_id=volume, volume_path=str(target))
    return str(stats.volume_condition.message) if stats.volume_condition.abnormal else ""


def _refused(kubelet: Kubelet, name: str) -> bool:
    try:
        kubelet.plugin.create(name, MIB, parameters={"pool": "slow"})
    except grpc.RpcError:
        return True
    return False
