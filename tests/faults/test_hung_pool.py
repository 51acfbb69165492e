"""A pool whose storage hangs: what is not in it goes on, the agent too, and when it answers again so does the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fusevol.errors import ConflictError, FusevolError, UnavailableError
from fusevol.server.client import call
from fusevol.transport import mount
from tests.conftest import LoopFs, StartServer
from tests.support import api, transports
from tests.support.devices import frozen
from tests.support.logs import LogCheck
from tests.support.mortal import MortalAgent
from tests.support.polling import eventually
from tests.support.processes import alive

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.expect_log(
        "has not answered for", "has not ended", "do not end", "cannot be undone yet", "cannot be mounted"
    ),
]

_PATIENCE = "hangs: {giveUpAfter: 3s, reportAfter: 2s}\n"
_STRICT = "hangs: {giveUpAfter: 3s, reportAfter: 2s, abortAfter: 6s}\n"
_MAKE = "import os,sys; os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY))"
Hang = Callable[[], contextlib.AbstractContextManager[object]]


class Slow:
    """The directory of a pool, and what makes its storage hang."""

    def __init__(self, path: Path, hang: Hang, *, unkillable: bool) -> None:
        self.path = path
        self.hang = hang
        self.unkillable = unkillable
        """Whether who waits for it does not even end of SIGKILL."""


@pytest.fixture(params=["frozen", "stopped"])
def slow(request: pytest.FixtureRequest, loop_fs: LoopFs, volume_server: StartServer) -> Slow:
    """A filesystem to be frozen, which then answers reads only; and a mount that then answers nothing."""
    if request.param == "frozen":
        point = loop_fs("ext4", 64 << 20)
        return Slow(point / "pool", lambda: frozen(point), unkillable=True)
    server = volume_server(transport="kernel", io_uring=False, deadline=280.0)
    return Slow(server.mountpoint / "pool", server.stopped, unkillable=False)


class Node:
    """An agent with the pools ``default`` and ``slow``, and a class for each."""

    def __init__(self, agent: MortalAgent, slow: Slow) -> None:
        self.agent = agent
        self.slow = slow
        (agent.directory / "agent.yaml").write_text(_PATIENCE)
        self.start()
        storage_class = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "slow"},
            "provisioner": "fusevol.io/fusevol",
            "parameters": {"pool": "slow"},
        }
        agent.client.request("POST", "/v1/storageclasses", storage_class)

    def start(self) -> None:
        """Start the agent, again with both pools."""
        self.agent.start("--pool", f"default={self.agent.pool}", "--pool", f"slow={self.slow.path}")

    def claim(self, name: str, storage_class: str) -> None:
        """Create a claim of 16 MiB."""
        spec = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "16Mi"}},
            "storageClassName": storage_class,
        }
        self.agent.client.request("POST", api.path("pvc"), {"metadata": {"name": name}, "spec": spec})

    def mounted(self, name: str, storage_class: str) -> Path:
        """A claim that is bound, and mounted at a directory of its name."""
        self.claim(name, storage_class)
        eventually(lambda: api.is_bound(self.agent, name), 20.0, what=f"claim {name} is bound")
        target = self.agent.directory / name
        api.mount(self.agent, name, target)
        return target

    def pod(self, name: str, volume: dict[str, Any]) -> None:
        """Create a Pod with one volume."""
        containers = [{"name": "main", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]
        spec = {"containers": containers, "volumes": [{"name": "v", **volume}]}
        self.agent.client.request("POST", api.path("pod"), {"metadata": {"name": name}, "spec": spec})

    def works(self, number: int) -> float:
        """Make, mount, write, read, unmount and delete a claim in the pool that does not hang; the seconds it took."""
        began = time.monotonic()
        name = f"works{number}"
        target = self.mounted(name, "fusevol")
        (target / "f").write_text(name)
        assert (target / "f").read_text() == name
        api.unmount(self.agent, target)
        api.delete(self.agent, "pvc", name)
        eventually(lambda: api.find(self.agent, "pvc", name) is None, 20.0, what=f"claim {name} is gone")
        return time.monotonic() - began

    def told(self, name: str) -> list[str]:
        """Messages of the events of a claim or Pod."""
        events = self.agent.client.request("GET", "/v1/events")["items"]
        return [e["message"] for e in events if e["regarding"]["name"] == name]


@pytest.fixture
def node(workdir: Path, logs: LogCheck, slow: Slow) -> Iterator[Node]:
    """A running agent with both pools."""
    agent = MortalAgent(workdir, logs)
    try:
        yield Node(agent, slow)
    finally:
        agent.close()


def _program(path: Path) -> subprocess.Popen[bytes]:
    """A program that makes a file."""
    return subprocess.Popen([sys.executable, "-ISc", _MAKE, str(path)], stderr=subprocess.PIPE)


def _hangs(node: Node, name: str) -> bool:
    control = next((node.agent.run_dir / "servers").glob(f"*{name}*.sock"))
    return int(call(control, {"op": "status"})["stats"]["under_way"]) > 0


def _quietly(action: Callable[[], Any]) -> FusevolError | None:
    try:
        action()
    except FusevolError as e:
        return e
    return None


def test_everything_else_goes_on(node: Node) -> None:
    """With a hundred requests for the pool that hangs, claims of the other are made, mounted and undone as always."""
    agent = node.agent
    bad = node.mounted("bad", "slow")
    volume = api.is_bound(agent, "bad")
    usual = node.works(0)
    with node.slow.hang():
        program = _program(bad / "f")
        eventually(lambda: _hangs(node, volume), 20, what="a program hangs in the volume")
        node.claim("late", "slow")
        with ThreadPoolExecutor(100) as pool:
            asked = [
                pool.submit(_quietly, lambda: agent.client.request("GET", "/v1/pools/slow", timeout=30))
                for _ in range(100)
            ]
            took = [node.works(i) for i in range(1, 5)]
            answers = [future.result() for future in asked]
        pools = {p["name"]: p for p in agent.client.request("GET", "/v1/pools")["items"]}
        eventually(lambda: any("has not answered" in m for m in node.told("late")), 30, what="an event says why")
        eventually(lambda: any("Programs wait for the storage" in m for m in node.told("bad")), 40, what="an event")
        began = time.monotonic()
        refused = _quietly(lambda: api.unmount(agent, bad))
        refusal = time.monotonic() - began
        waits = program.poll() is None
    said = program.communicate(timeout=20)[1]
    eventually(lambda: api.is_bound(agent, "late"), 20, what="the claim is bound after all")
    eventually(lambda: any("no longer" in m for m in node.told("bad")), 40, what="an event that it is over")
    eventually(lambda: _quietly(lambda: api.unmount(agent, bad)) is None, 60, interval=0.5, what="the unmount")
    made = os.listdir(node.slow.path / "volumes" / volume / "data")

    assert max(took) < usual + 5
    assert {type(a) for a in answers} <= {UnavailableError, type(None)}
    assert "capacity" in pools["default"]
    assert ("error" in pools["slow"]) or "capacity" in pools["slow"]
    assert isinstance(refused, ConflictError | UnavailableError)
    assert refusal < 60
    assert waits
    assert (said, made) == (b"", ["f"])


def test_an_agent_is_replaced_while_a_pool_hangs(node: Node) -> None:
    """kill -9 of an agent that waits for the pool: the next one starts, serves the rest, and later the pool as well."""
    agent = node.agent
    bad, good = node.mounted("bad", "slow"), node.mounted("good", "fusevol")
    before = api.servers(agent)
    with node.slow.hang():
        node.claim("late", "slow")  # what makes a volume hangs in every store
        eventually(lambda: any("has not answered" in m for m in node.told("late")), 30, what="the agent waits for it")
        killed = agent._process
        assert killed is not None
        killed.kill()
        eventually(lambda: not alive(killed.pid), what="it is dead")
        lingers = killed.poll() is None
        began = time.monotonic()
        node.start()
        took = time.monotonic() - began
        (good / "f").write_text("x")
        node.works(1)
        servers = api.servers(agent)
    status = killed.wait(20)
    eventually(lambda: api.is_bound(agent, "late"), 20, what="the claim is bound after all")
    (bad / "f").write_text("x")
    api.unmount(agent, good)
    eventually(lambda: _quietly(lambda: api.unmount(agent, bad)) is None, 60, interval=0.5, what="the unmount")

    assert lingers or not node.slow.unkillable
    assert status == -signal.SIGKILL
    assert took < 45
    assert servers == before
    assert not mount.below(agent.directory / "bad")


@pytest.mark.expect_log("m0 .*the connection was aborted")  # the slow storage itself, at the end of the test
def test_a_start_does_not_wait_for_a_pool(node: Node) -> None:
    """After a reboot with a pool that hangs the agent is ready without it; its mounts come back when it answers, and
    until then a Pod that has one is not ready."""
    agent = node.agent
    bad, good = node.mounted("bad", "slow"), node.mounted("good", "fusevol")
    node.pod("p", {"persistentVolumeClaim": {"claimName": "bad"}})
    eventually(lambda: api.is_ready(agent, "p"), 20, what="the Pod is ready")
    (bad / "f").write_text("bad")
    (good / "f").write_text("good")
    agent.power_off(node.slow.path.parent)
    with node.slow.hang():
        began = time.monotonic()
        node.start()
        took = time.monotonic() - began
        read = (good / "f").read_text()
        there, ready = mount.is_mounted(bad), api.is_ready(agent, "p")
        node.works(1)
    eventually(lambda: (bad / "f").read_text() == "bad", 20, what="the mount is back")
    eventually(lambda: api.is_ready(agent, "p"), 90, what="the Pod is ready again")

    assert took < 60
    assert read == "good"
    assert not there
    assert not ready
    assert len(agent.processes()) == 2


def test_pods_on_a_path_that_hangs(node: Node) -> None:
    """Forty Pods that want a path which hangs wait and are told why; a Pod that does not is ready at once."""
    agent = node.agent
    path = node.slow.path.parent / "new"
    with node.slow.hang():
        for i in range(40):
            source = {"path": str(path / str(i)), "type": "DirectoryOrCreate"}
            node.pod(f"bad{i}", {"hostPath": source})
        began = time.monotonic()
        node.pod("good", {"emptyDir": {"sizeLimit": "1Mi"}})
        eventually(lambda: api.is_ready(agent, "good"), 30, what="the good Pod is ready")
        took = time.monotonic() - began
        eventually(lambda: any("has not answered" in m for m in node.told("bad0")), 30, what="an event says why")
        api.delete(agent, "pod", "good")
        eventually(lambda: api.find(agent, "pod", "good") is None, 30, what="the good Pod is gone")
    eventually(lambda: all(api.is_ready(agent, f"bad{i}") for i in range(40)), 40, what="all Pods are ready")

    assert took < 15
    assert len(os.listdir(path)) == 40


@pytest.mark.expect_log("does not answer: it is killed", "ended unexpectedly", "mounted again")
@pytest.mark.parametrize("transport", ["kernel", "io_uring"])
def test_a_server_that_hangs_itself_is_replaced(agent: MortalAgent, transport: str) -> None:
    """With a limit, a server that answers nothing is killed; who waited for it goes on, and the volume works again."""
    transports.fields(transport)  # switches io_uring on for the machine where it is wanted
    agent.stop()
    (agent.directory / "agent.yaml").write_text(_STRICT)
    agent.start()
    target = agent.directory / "mnt"
    api.bound_claim(agent, "data")
    api.mount(agent, "data", target)
    (server,) = api.servers(agent).values()
    os.kill(server, signal.SIGSTOP)
    began = time.monotonic()
    program = _program(target / "f")
    program.communicate(timeout=60)
    took = time.monotonic() - began
    eventually(lambda: set(api.servers(agent).values()) - {server}, 30, what="there is another server")
    eventually(lambda: (target / "g").write_text("x"), 30, what="the volume works again")
    events = agent.client.request("GET", "/v1/events")["items"]

    assert 6 <= took < 40
    assert {"VolumeServerHangs", "VolumeServerKilled"} <= {e["reason"] for e in events}
